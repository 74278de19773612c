"""A run's checkpoints: written so that an unfinished one is never taken for a whole one, and read on any layout.

`step-N.tmp` gets all files, each synced to the disk, then the manifest with their hashes, and then its name.
"""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.distributed.tensor import DTensor

import rest_megatron
from rest_megatron.actor.actor import Actor
from rest_megatron.checkpoint.choose import LATEST, prune, verify
from rest_megatron.checkpoint.manifest import FORMAT, Manifest, check_sizes, file_entry, write_manifest
from rest_megatron.checkpoint.rng import fits, rng_states, set_rng_states
from rest_megatron.checkpoint.shards import copy_state, expected_keys, read_state, state_bytes, write_share
from rest_megatron.config.schema import CheckpointConfig
from rest_megatron.distributed.parallel import COLLECTIVE_TIMEOUT, Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.model.mapping import mismatch
from rest_megatron.utils.files import UNFINISHED, replace_directory, replace_durably, sync, write_durably

STATE, RNG, HF = "state", "rng", "hf"
PACKAGES = ("torch", "megatron-core", "deepspeed")
T = TypeVar("T")


class CheckpointStore:
    """Saves and loads an actor. Every method is collective over all ranks.

    Args:
        directory: of the run's checkpoints.
        actor: what is saved and loaded.
        parallel: this rank's place.
        settings: `keep` and `background` are read here.
        companions: writes what a Hugging Face directory holds beside weights into a given directory; called on rank 0.
    """

    def __init__(
        self,
        directory: Path,
        actor: Actor,
        parallel: Parallel,
        settings: CheckpointConfig,
        companions: Callable[[Path], None],
    ) -> None:
        self.directory = directory
        self.actor = actor
        self.parallel = parallel
        self.settings = settings
        self.companions = companions
        # Of its own, so that a save in the background never meets the collectives of the training.
        self.group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        self._thread: _Thread | None = None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        attachments: Mapping[str, str] | None = None,
        *,
        rng: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the checkpoint `step`; one that is there already is replaced. Then delete those beyond `keep`.

        state: plain JSON, given back as manifest.state["train"]; attachments: file name -> text. Both are rank 0's.
        rng: this rank's RNG states, as an earlier `rng_states` returned them; None: as they are now. The generators
        themselves stay as they are.
        With `background` it returns when the state is copied to CPU memory; the next call waits for the rest. Raises
        CheckpointError on all ranks, and leaves earlier checkpoints as they were, when a rank cannot write.
        """
        self.close()
        texts = {name: text.encode() for name, text in (attachments or {}).items()}
        self._on_main(lambda: self._make_room(sum(map(len, texts.values()))))
        share = copy_state(self.actor, self.parallel)
        manifest = self._manifest(step, json.loads(json.dumps(state)))
        states = rng_states(self.parallel.device) if rng is None else dict(rng)
        files = {_rng_file(self.parallel.rank): save(states)}
        if self.parallel.rank == 0:
            files |= texts
        write = partial(self._write, manifest, share, files)
        if not self.settings.background:
            write()
        else:
            self._thread = _Thread(write, self.parallel.device)
            self._thread.start()

    def close(self) -> None:
        """Wait for the save under way, and raise its error."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
            if thread.error is not None:
                raise thread.error

    def load(self, directory: Path, manifest: Manifest | None = None) -> bool:
        """Overwrite the actor's masters, moments, weights, counters and, on the layout that saved them, RNG states.

        manifest: as `choose.newest` or `choose.verify` returned it; None: the files are verified first. Returns whether
        the RNG states were restored: on another layout they stay as they are. Raises CheckpointError on all ranks.
        """
        self.close()
        manifest = manifest or verify(directory, self.parallel)
        found = {key: tuple(tensor["shape"]) for key, tensor in manifest.tensors.items()}
        if problem := mismatch(found, expected_keys(self.actor.policy.hf)):
            raise CheckpointError(f"{directory} {problem}. It was saved by a run of another model than model.path")
        self._on_all(lambda: read_state(self.actor, self.parallel, directory / STATE))
        self.actor.restore(manifest.state["actor"])
        return self._load_rng(directory, manifest)

    def _load_rng(self, directory: Path, manifest: Manifest) -> bool:
        if manifest.layout != _layout(self.parallel):
            return False
        states: dict[str, Tensor] = {}

        def read() -> bool:
            path = directory / _rng_file(self.parallel.rank)
            try:
                states.update(load_file(path))
            except SafetensorError as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
            return fits(states, self.parallel.device)

        if not all(self._on_all(read)):
            return False
        set_rng_states(states, self.parallel.device)
        return True

    def _make_room(self, attached: int) -> None:
        """Raise CheckpointError when the disk has less room than a checkpoint takes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        needed = state_bytes(self.actor.policy.hf) + attached
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory} has {free / 2**30:.3f} GiB free, a checkpoint takes {needed / 2**30:.3f} GiB. "
                "Free some of its disk, or lower checkpoint.keep"
            )

    def _manifest(self, step: int, state: dict[str, Any]) -> Manifest:
        """Of a checkpoint whose files are not written yet."""
        counters = self._on_all(self.actor.counters)
        if any(of_rank != counters[0] for of_rank in counters):
            raise CheckpointError(f"the ranks are at different updates: {counters}")
        return Manifest(
            format=FORMAT,
            step=step,
            model_dtype=self.actor.config.model.dtype,
            layout=_layout(self.parallel),
            versions={"rest_megatron": rest_megatron.__version__, **{name: version(name) for name in PACKAGES}},
            state={"train": state, "actor": counters[0]},
            tensors={
                key: {"shape": list(shape), "dtype": "float32"}
                for key, shape in expected_keys(self.actor.policy.hf).items()
            },
            files={},
        )

    def _write(self, manifest: Manifest, share: dict[str, DTensor], files: dict[str, bytes]) -> None:
        """Everything after the copy. All its collectives are over the group of the store."""
        directory = self.directory / f"step-{manifest.step:08d}"
        unfinished = directory.with_name(directory.name + UNFINISHED)
        try:
            self._on_main(lambda: _make_directories(unfinished))
            shards = write_share(share, unfinished / STATE, self.actor.policy.hf, self.parallel, self.group)
            share.clear()
            entries = self._on_all(lambda: self._write_files(unfinished, files, shards))
            listed = {name: entry for of_rank in entries for name, entry in of_rank.items()}
            self._on_main(lambda: self._complete(directory, unfinished, replace(manifest, files=listed)))
        except CheckpointError:
            if self.parallel.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _write_files(self, unfinished: Path, files: dict[str, bytes], shards: list[Path]) -> dict[str, dict[str, Any]]:
        """Write what is not tensors of the model; the manifest's entries of all files of this rank."""
        paths = [*shards]
        for name, content in files.items():
            write_durably(unfinished / name, content)
            paths.append(unfinished / name)
        if self.parallel.rank == 0:
            self.companions(unfinished / HF)
            written = [path for path in sorted((unfinished / HF).rglob("*")) if path.is_file()]
            for path in written:
                sync(path)
            paths += written
        entries = {}
        for path in paths:
            entries[path.relative_to(unfinished).as_posix()] = file_entry(path)
            self.parallel.watch.beat()
        return entries

    def _complete(self, directory: Path, unfinished: Path, manifest: Manifest) -> None:
        """All files are there: the manifest, the name, the hint, and room for the next one."""
        check_sizes(unfinished, manifest)
        for path in (STATE, RNG, HF):
            sync(unfinished / path)
        write_manifest(unfinished, manifest)
        replace_directory(directory, unfinished)
        replace_durably(self.directory / LATEST, f"{directory.name}\n".encode())
        prune(self.directory, self.settings.keep, directory)

    def _on_main(self, function: Callable[[], None]) -> None:
        """`function()` on rank 0; its CheckpointError or OSError is raised on all, as CheckpointError."""
        self._on_all(lambda: function() if self.parallel.rank == 0 else None)

    def _on_all(self, function: Callable[[], T]) -> list[T]:
        """Every rank's `function()`, over the group of the store; an OSError is raised on all as CheckpointError."""

        def checked() -> T:
            try:
                return function()
            except OSError as error:
                raise CheckpointError(
                    f"rank {self.parallel.rank}: {error}. Check the disk's free space and permissions"
                ) from error

        return self.parallel.on_all(checked, self.group)


class _Thread(threading.Thread):
    """Runs a function, and keeps its error. It does not keep a process alive that wants to end."""

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.function = function
        self.device = device
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            if self.device.type == "cuda":
                # A thread starts on the first device, whoever's that is.
                torch.cuda.set_device(self.device)
            self.function()
        except BaseException as error:
            self.error = error


def _make_directories(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in (STATE, RNG, HF):
        (unfinished / name).mkdir(parents=True)


def _rng_file(rank: int) -> str:
    return f"{RNG}/rank-{rank:05d}.safetensors"


def _layout(parallel: Parallel) -> dict[str, int | None]:
    return {
        "tensor_model_parallel_size": parallel.tp_size,
        "pipeline_model_parallel_size": parallel.pp_size,
        "virtual_pipeline_model_parallel_size": parallel.num_chunks if parallel.num_chunks > 1 else None,
        "data_parallel_size": parallel.dp_size,
        "world_size": parallel.world_size,
    }
