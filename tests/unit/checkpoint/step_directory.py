"""One of our checkpoints made by hand, as two ranks with tensor parallelism would leave it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from rest_megatron.checkpoint.manifest import Manifest, file_entry, write_manifest
from rest_megatron.model.huggingface import write_companions


def make_step(directory: Path, model: Path, step: int = 3, dtype: str = "bfloat16") -> Path:
    """The weights of `model` as masters, moments of 0.5 and 0.25, matrices cut in two along their rows."""
    masters = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    hf = AutoConfig.from_pretrained(model)
    if hf.tie_word_embeddings:
        masters.pop("lm_head.weight", None)
    tensors = {f"master/{name}": tensor for name, tensor in masters.items()}
    for kind, value in (("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
        tensors |= {f"{kind}/{name}": torch.full_like(tensor, value) for name, tensor in masters.items()}
    for part in ("state", "rng", "hf"):
        (directory / part).mkdir(parents=True)
    for rank in range(2):
        shard, starts = {}, {}
        for key, tensor in tensors.items():
            half = len(tensor) // 2
            whole = tensor.dim() == 1
            shard[key] = tensor if whole else tensor[half * rank : half * (rank + 1)].contiguous()
            starts[key] = {"saved_offsets": [0] if whole else [half * rank, 0]}
        metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(starts)}
        save_file(shard, directory / "state" / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", metadata)
    save_file({"torch": torch.zeros(8, dtype=torch.uint8)}, directory / "rng" / "rank-00000.safetensors")
    hf.dtype = dtype
    write_companions(hf, model, directory / "hf")
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    manifest = Manifest(
        format=1,
        step=step,
        model_dtype=dtype,
        layout={
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 1,
            "virtual_pipeline_model_parallel_size": None,
            "data_parallel_size": 1,
            "world_size": 2,
        },
        versions={"torch": "2.13.0", "megatron-core": "0.16.1"},
        state={"train": {"cursor": [step, 7], "text": "x" * 300}, "actor": {"version": step}},
        tensors={key: {"shape": list(tensor.shape), "dtype": "float32"} for key, tensor in tensors.items()},
        files={path.relative_to(directory).as_posix(): file_entry(path) for path in files},
    )
    write_manifest(directory, manifest)
    return directory
