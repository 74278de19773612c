"""Hugging Face safetensors into this rank's shards, and back, slice by slice.

Loading reads only this rank's slices. Export writes each pipeline stage's tensors (`gather.py`), and gives the finished
directory its name when the disk has all of it.
"""

import json
import shutil
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from rest_megatron.config.schema import ModelConfig
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.model.gather import Planned, file_plan, write_stage
from rest_megatron.model.mapping import Piece, expected_tensors, kv_groups, mapped_parameters, merge, mismatch
from rest_megatron.model.model import Policy
from rest_megatron.utils.files import ASIDE, recover, replace_directory, sync, sync_tree, unwritable

INDEX = "model.safetensors.index.json"
CHAT_TEMPLATE = "chat_template.jinja"  # wins over one in tokenizer_config.json
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
COMPANIONS = (".json", ".jinja", ".txt", ".model")
NOT_COMPANIONS = ("config.json", "metadata.json", INDEX)  # the second is Megatron-core's
MAX_FILE_BYTES = 4 * 2**30


def read_hf_config(directory: Path) -> PreTrainedConfig:
    """config.json of a Hugging Face directory, supported or not. Raises CheckpointError when it cannot be read."""
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    # A broken config.json raises anything up to a bare Exception.
    except Exception as error:
        raise CheckpointError(f"{directory / 'config.json'} cannot be read: {error}") from error


class WeightSource(Protocol):
    """Where slices of Hugging Face tensors come from."""

    def read(self, piece: Piece, tp_rank: int, tp_size: int) -> Tensor:
        """This rank's shard of the piece's tensor, on the CPU."""


class Safetensors:
    """The safetensors of a Hugging Face directory, checked against the config before anything is read.

    Raises CheckpointError for a missing or truncated file, and for missing, unknown or misshapen tensors.
    """

    def __init__(self, directory: Path, hf: PreTrainedConfig) -> None:
        self.directory = directory
        self.handles = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(directory):
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} cannot be read: {error}. The file is missing, truncated or not safetensors; copy it again"
                ) from error
            for name in handle.keys():
                self.handles[name] = handle
                shapes[name] = tuple(handle.get_slice(name).get_shape())
        check_tensors(directory, shapes, hf)

    def read(self, piece: Piece, tp_rank: int, tp_size: int) -> Tensor:
        """This rank's shard of the piece's tensor; only its bytes are read."""
        whole = self.handles[piece.name].get_slice(piece.name)
        if piece.dim is None:
            return whole[:]
        size = piece.shape[piece.dim] // tp_size
        cut = slice(tp_rank * size, (tp_rank + 1) * size)
        return whole[cut] if piece.dim == 0 else whole[:, cut]


class RandomWeights:
    """Seeded initial weights, the same on every layout: norms 1, biases 0, matrices normal(0, initializer_range)."""

    def __init__(self, seed: int, hf: PreTrainedConfig) -> None:
        self.seed = seed
        self.std = hf.initializer_range
        self.order = {name: i for i, name in enumerate(expected_tensors(hf))}

    def read(self, piece: Piece, tp_rank: int, tp_size: int) -> Tensor:
        """This rank's shard; the whole tensor is drawn from a generator of its own, then cut."""
        if len(piece.shape) == 1:
            fill = torch.zeros if piece.name.endswith("bias") else torch.ones
            return fill(piece.local_shape(tp_size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.order[piece.name])
        whole = torch.empty(piece.shape).normal_(0.0, self.std, generator=generator)
        return whole if piece.dim is None else whole.chunk(tp_size, dim=piece.dim)[tp_rank]


def weight_source(model: ModelConfig, seed: int, hf: PreTrainedConfig) -> WeightSource:
    """Where the run's weights come from. Raises CheckpointError when the safetensors do not hold the model."""
    return RandomWeights(seed, hf) if model.random_init else Safetensors(Path(model.path), hf)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory: those that its index names, or all where it has none.

    Raises CheckpointError when there are none, or the index cannot be read. Whether a named one exists is not checked.
    """
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return [directory / name for name in names]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error!r}. Copy the model again") from error
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"no .safetensors in {directory}. Point model.path at a Hugging Face directory with safetensors weights, "
            "or set model.random_init=true to start from random weights"
        )
    return files


def check_tensors(directory: Path, found: dict[str, tuple[int, ...]], hf: PreTrainedConfig) -> None:
    """Raise CheckpointError unless `found`, name to shape, are the tensors of `hf`.

    A tied head may be there or not, and old models store buffers of the rotary embedding.
    """
    ignorable = {"lm_head.weight"} if hf.tie_word_embeddings else set()
    kept = {n: s for n, s in found.items() if n not in ignorable and not n.endswith("rotary_emb.inv_freq")}
    problem = mismatch(kept, expected_tensors(hf))
    if problem:
        raise CheckpointError(f"{directory} {problem}. The weights and config.json must belong to the same model")


@torch.no_grad()
def load_weights(policy: Policy, source: WeightSource, parallel: Parallel) -> None:
    """Fill every parameter of this rank and mark how tensor parallelism cuts it.

    The `tensor_model_parallel` mark is what lets DeepSpeed's global norm count each parameter once.
    """
    groups = kv_groups(policy.hf, parallel)
    for mapped in mapped_parameters(policy):
        pieces = [source.read(piece, parallel.tp_rank, parallel.tp_size) for piece in mapped.pieces]
        mapped.parameter.copy_(merge(pieces, groups))
        mapped.parameter.tensor_model_parallel = mapped.dim is not None  # type: ignore[attr-defined]  # Megatron's mark


def export(
    policy: Policy, parallel: Parallel, directory: Path, model_path: Path, chat_template: str | None = None
) -> None:
    """Write the policy as a Hugging Face directory that `from_pretrained` reads: weights, config, tokenizer.

    chat_template: the one that was trained with, where it is not the one in `model_path`. Collective over all ranks. An
    existing directory is replaced only when the new one is complete and on the disk. Raises CheckpointError on all
    ranks when one cannot write.
    """
    partial = directory.with_name(directory.name + ".partial")
    parallel.on_main(lambda: _begin(directory, partial))
    plan = file_plan(policy, parallel, MAX_FILE_BYTES)
    # A file is synced where it was written: another node's cache is out of rank 0's reach.
    parallel.on_all(lambda: write_stage(policy, parallel, partial, plan, sync) if parallel.dp_rank == 0 else None)
    parallel.on_main(lambda: _complete(policy, partial, directory, plan, model_path, chat_template))


def _begin(directory: Path, partial: Path) -> None:
    """Make `partial`. An export that a kill left aside, without a successor, gets its name back."""
    aside = directory.with_name(directory.name + ASIDE)
    if aside.exists():
        recover(aside)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(
            f"{partial} cannot be made: {error}. Check its disk's free space and permissions"
        ) from error


def _complete(
    policy: Policy,
    partial: Path,
    directory: Path,
    plan: dict[str, Planned],
    model_path: Path,
    chat_template: str | None,
) -> None:
    """All weights are there: the rest, and the name."""
    try:
        _write_index(partial, plan)
        write_companions(policy.hf, model_path, partial, chat_template)
    except OSError as error:
        raise unwritable(directory, error) from error
    sync_tree(partial)
    replace_directory(directory, partial)


def _write_index(directory: Path, plan: dict[str, Planned]) -> None:
    weight_map = {name: planned.file for name, planned in plan.items()}
    if len(set(weight_map.values())) > 1:
        total = sum(planned.size for planned in plan.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))


def write_companions(hf: PreTrainedConfig, source: Path, directory: Path, chat_template: str | None = None) -> None:
    """What a Hugging Face directory holds beside weights.

    Tokenizer, template and generation files travel unchanged from `source`, but for another chat template when one is
    given; config.json is written from what was trained.
    """
    for path in (*sorted(source.iterdir()), *sorted(source.glob(MORE_TEMPLATES))):
        if path.is_file() and path.suffix in COMPANIONS and path.name[0] != "." and path.name not in NOT_COMPANIONS:
            copy = directory / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            # The content alone: a read-only file could not be written again.
            shutil.copyfile(path, copy)
    hf.save_pretrained(directory)
    if chat_template is not None:
        (directory / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
