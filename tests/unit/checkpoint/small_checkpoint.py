"""A checkpoint of three small files."""

from pathlib import Path

from rest_megatron.checkpoint.manifest import (
    Manifest,
    file_entry,
    write_manifest,
)

FILES = {
    "state/shard-00001.safetensors": b"numbers" * 50,
    "rng/rank-00000.safetensors": b"seeds",
    "hf/config.json": b"",
}


def make_checkpoint(directory: Path, step: int = 3) -> Path:
    """A checkpoint of three small files, none of which is what its name says."""
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    manifest = Manifest(
        format=1,
        step=step,
        model_dtype="bfloat16",
        layout={"tensor_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": None},
        versions={"torch": "2.13.0"},
        state={"train": {"cursor": [1, 2], "mean": 0.1, "text": "naïve \ud800"}, "actor": {"version": 4}},
        tensors={"master/model.norm.weight": {"shape": [64], "dtype": "float32"}},
        files={name: file_entry(directory / name) for name in FILES},
    )
    write_manifest(directory, manifest)
    return directory
