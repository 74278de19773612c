"""The publisher: the actor's weights in files that the server can read, checked before anything is sent."""

import hashlib
import math
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from rest_megatron.actor.actor import Actor
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import MainOnly
from rest_megatron.errors import CheckpointError, EngineError
from rest_megatron.model.gather import file_plan, write_stage
from rest_megatron.model.mapping import expected_tensors, mismatch
from rest_megatron.model.model import DTYPES
from rest_megatron.rollout.vllm.client import Address
from rest_megatron.rollout.vllm.server import Server
from rest_megatron.rollout.vllm.staging import choose_base, remove_abandoned, require_room, staging_directory

# Several files, so that one is hashed while the next is written; each costs a call, so not many more.
NUM_FILES = 8
MIN_FILE_BYTES, MAX_FILE_BYTES = 16 << 20, 1 << 30
HASHING_THREADS = 4
STORED = {"float32": "F32", "bfloat16": "BF16"}  # safetensors' names of our precisions


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file as it lies on the disk. tensors: name -> (safetensors' name of the dtype, shape)."""

    path: str
    sha256: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def describe_file(path: Path) -> WeightFile:
    """Read a file's header and checksum. Raises EngineError for a truncated or broken one."""
    try:
        with safe_open(path, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}
            tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path}, written for vLLM, cannot be read back: {error}. Nothing was sent") from error
    return WeightFile(str(path), digest, tensors)


def check_manifest(files: list[WeightFile], hf: PreTrainedConfig, dtype: str) -> None:
    """Raise EngineError unless the files hold every tensor of the model exactly once, in its shape and `dtype`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, (stored, shape) in file.tensors.items():
            if name in shapes:
                _refuse(f"hold {name} twice, the second time in {Path(file.path).name}")
            if stored != STORED[dtype]:
                _refuse(f"hold {name} as {stored}, must be {STORED[dtype]} (model.dtype={dtype})")
            shapes[name] = shape
    problem = mismatch(shapes, expected_tensors(hf))
    if problem:
        _refuse(problem.replace("lacks", "lack").replace("has ", "have "))


def _refuse(problem: str) -> None:
    raise EngineError(f"the files written for vLLM {problem}. Nothing was sent to the server")


class Publisher:
    """Writes the actor's weights for the server. Every method is collective, the constructor too.

    server: whose address rank 0 knows. Raises ConfigError where the weights cannot pass or find no room.
    """

    def __init__(self, actor: Actor, config: Config, server: MainOnly[Server]) -> None:
        self._policy, self._parallel, self._dtype = actor.policy, actor.parallel, config.model.dtype
        numbers = sum(math.prod(shape) for shape in expected_tensors(self._policy.hf).values())
        self._size = numbers * DTYPES[self._dtype].itemsize
        file_bytes = min(MAX_FILE_BYTES, max(MIN_FILE_BYTES, self._size // NUM_FILES))
        self._plan = file_plan(self._policy, self._parallel, file_bytes)
        hosts = set(self._parallel.on_all(socket.gethostname))
        self._base = server.call(lambda held: self._prepare(config, held.address, hosts))

    @contextmanager
    def written(self, version: int) -> Iterator[list[WeightFile]]:
        """All weights in files, checked, for as long as the context lasts; the same list on every rank.

        Raises EngineError, on all ranks alike, when one cannot write or the check fails.
        """
        with ExitStack() as stack:  # rank 0's directory, removed in any case
            directory = self._parallel.on_main(lambda: stack.enter_context(staging_directory(self._base, version)))
            parts = self._parallel.on_all(lambda: self._write(directory))
            files = [file for part in parts for file in part]
            self._parallel.on_main(lambda: check_manifest(files, self._policy.hf, self._dtype))
            yield files

    def _prepare(self, config: Config, address: Address, hosts: set[str]) -> Path:
        base = choose_base(config, address, hosts)
        remove_abandoned(base)
        require_room(base, self._size)
        return base

    def _write(self, directory: Path) -> list[WeightFile]:
        """This rank's files. One is hashed while the next is written."""
        if self._parallel.dp_rank != 0:
            return []
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            described: list[Future[WeightFile]] = []
            try:
                write_stage(
                    self._policy,
                    self._parallel,
                    directory,
                    self._plan,
                    lambda path: described.append(pool.submit(describe_file, path)),
                )
            except CheckpointError as error:
                raise EngineError(
                    f"{error.args[0]}; rollout.sync_dir is what all ranks and the server must share"
                ) from error
            return [one.result() for one in described]
