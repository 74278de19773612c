"""What a directory holds: one of our checkpoints, a Hugging Face model, or a Megatron-core distributed checkpoint."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rest_megatron.checkpoint.manifest import NAME, check_files, check_name, read_manifest, step_directories
from rest_megatron.convert.torch_dist import is_torch_dist
from rest_megatron.errors import CheckpointError
from rest_megatron.model.huggingface import INDEX
from rest_megatron.utils.files import ASIDE, UNFINISHED

STEP, HUGGING_FACE, MEGATRON = "checkpoint of rest_megatron", "Hugging Face model", "Megatron-core checkpoint"
CHECKPOINTS = "checkpoints"
TRACKER = "latest_checkpointed_iteration.txt"
COMPANIONS = "huggingface"
"""Beside a Megatron-core checkpoint, in verl's layout and ours: config.json and the tokenizer."""
DEPTH = 3
UNFINISHED_NAMES = (".partial", UNFINISHED, ASIDE)
# Weights that are not safetensors, and what turns them into safetensors.
FOREIGN = {
    "model_world_size_*_rank_*.pt": (
        "verl's FSDP shards",
        "python -m verl.model_merger merge --backend fsdp --local_dir {} --target_dir NEW",
    ),
    "pytorch_model*.bin": (
        "weights that are not safetensors",
        'python -c "from transformers import AutoModelForCausalLM as M; '
        "M.from_pretrained('{}', dtype='auto').save_pretrained('NEW')\"",
    ),
    "mp_rank_*/model_optim_rng.pt": (
        "a checkpoint of Megatron-LM's old format",
        "Megatron-LM with --ckpt-format torch --ckpt-convert-format torch_dist --ckpt-convert-save NEW",
    ),
    "*_optim_states.pt": (
        "a DeepSpeed checkpoint",
        "the zero_to_fp32.py that DeepSpeed puts beside it, with --safe_serialization",
    ),
}


@dataclass(frozen=True)
class Found:
    """A directory with weights."""

    kind: str
    """STEP, HUGGING_FACE or MEGATRON."""
    directory: Path
    companions: Path | None
    """Where config.json and the tokenizer are; None: nowhere near."""


def recognise(path: Path, check: Callable[[Path], object], warn: Callable[[str], object]) -> Found:
    """What `path` is, or the one checkpoint below it: of several steps of a run the newest that passes.

    check: raises CheckpointError for a step of ours that must not be taken; `warn` is called with each skipped one.
    Raises CheckpointError when there is nothing, or more than one thing.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} {'is not a directory' if path.exists() else 'does not exist'}")
    for checkpoints in (path, path / CHECKPOINTS):
        if steps := step_directories(checkpoints):
            step = _newest(checkpoints, steps, check, warn)
            return Found(STEP, step, step / "hf")
    try:
        found = _found(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be searched: {error}") from error
    if found.kind == STEP:
        check(found.directory)
    return found


def check_whole(step: Path) -> None:
    """Raise CheckpointError unless one of our checkpoints has its name, and every file the size and hash it had."""
    manifest = read_manifest(step)
    check_name(step, manifest)
    check_files(step, manifest)


def _found(path: Path) -> Found:
    found = _at(path) or _tracked(path)
    level = [path]
    for _ in range(DEPTH):
        if found is not None:
            return found
        level = [child for one in level for child in _children(one)]
        found = _only(path, [here for child in level if (here := _at(child))])
    if found is None:
        raise CheckpointError(f"{path} holds no weights that can be read{_foreign(path)}")
    return found


def _at(directory: Path) -> Found | None:
    """What lies directly in `directory`."""
    config = (directory / "config.json").is_file()
    if config and ((directory / INDEX).is_file() or any(directory.glob("*.safetensors"))):
        return Found(HUGGING_FACE, directory, directory)
    if (directory / NAME).is_file():
        return Found(STEP, directory, directory / "hf")
    if is_torch_dist(directory):
        near = (directory, directory.parent, directory.parent / COMPANIONS)
        return Found(MEGATRON, directory, next((p for p in near if (p / "config.json").is_file()), None))
    return None


def _tracked(directory: Path) -> Found | None:
    """The iteration that Megatron-LM, or verl, names as its last."""
    try:
        last = (directory / TRACKER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / TRACKER} cannot be read: {error}") from error
    names = [f"iter_{int(last):07d}", f"global_step_{int(last)}"] if last.isdecimal() and len(last) < 20 else [last]
    for child in directory.iterdir():
        if child.name in names and child.is_dir():
            return _found(child)
    wanted = " or ".join(name[:40] for name in names)
    raise CheckpointError(f"{directory / TRACKER} names {last[:40]!r}, but there is no {wanted} beside it")


def _children(directory: Path) -> list[Path]:
    """The directories to look into: of a verl step the actor's alone."""
    if (directory / "actor").is_dir():
        return [directory / "actor"]
    return sorted(
        child
        for child in directory.iterdir()
        if child.is_dir() and not child.name.startswith(".") and not child.name.endswith(UNFINISHED_NAMES)
    )


def _only(path: Path, found: list[Found]) -> Found | None:
    """The one to take: verl writes a `dist_ckpt` of the optimizer beside Hugging Face weights."""
    found = [one for one in found if one.kind == HUGGING_FACE] or found
    if len(found) > 1:
        names = ", ".join(str(one.directory.relative_to(path)) for one in found[:6])
        raise CheckpointError(f"{path} holds {len(found)} models: {names}. Name one of them")
    return found[0] if found else None


def _newest(
    checkpoints: Path, steps: list[Path], check: Callable[[Path], object], warn: Callable[[str], object]
) -> Path:
    for step in steps:
        try:
            check(step)
            return step
        except CheckpointError as error:
            warn(f"{step.name} is skipped: {error.args[0]}")
    raise CheckpointError(f"none of the {len(steps)} checkpoints in {checkpoints} is whole. See `verify`")


def _foreign(path: Path) -> str:
    """What weights of another kind are there, and how they become readable."""
    for pattern, (what, how) in FOREIGN.items():
        # verl keeps config.json in a directory of its own, and the shards above it.
        if match := next(chain(_below(path, pattern), path.parent.glob(pattern)), None):
            directory = match.parent.parent if "/" in pattern else match.parent
            return f". It holds {what} ({match}): Python pickles, which are not read. Use\n  {how.format(directory)}"
    return f": no {NAME}, no config.json with safetensors, no metadata.json of a distributed checkpoint"


def _below(path: Path, pattern: str) -> Iterator[Path]:
    for depth in range(DEPTH + 1):
        yield from sorted(path.glob("*/" * depth + pattern))
