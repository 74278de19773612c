"""A directory of any of the three kinds, opened as the Hugging Face tensors of its model."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from rest_megatron.checkpoint.manifest import read_manifest
from rest_megatron.config.check import MODEL_TYPES
from rest_megatron.convert.megatron_format import MegatronWeights
from rest_megatron.convert.recognise import HUGGING_FACE, MEGATRON, STEP, Found
from rest_megatron.convert.torch_dist import TorchDist
from rest_megatron.convert.weights import Converted, Weights, open_huggingface, open_state
from rest_megatron.errors import CheckpointError
from rest_megatron.model.huggingface import read_hf_config
from rest_megatron.model.mapping import expected_tensors, mismatch
from rest_megatron.model.model import DTYPES, check_supported

MASTER = "master/"


@dataclass(frozen=True)
class Model:
    """A model on disk."""

    found: Found
    hf: PreTrainedConfig
    companions: Path
    """Where config.json, the tokenizer and their like are."""
    weights: Weights
    """By Hugging Face name, in the dtype of the working weights."""


def open_model(found: Found, companions: Path | None, trust_pickle: bool) -> Model:
    """The model of `found`. companions: where config.json and the tokenizer are; None: as found.

    Raises CheckpointError unless its tensors are those of config.json, ConfigError for an architecture that is not
    supported.
    """
    companions = companions or found.companions
    if companions is None:
        raise CheckpointError(
            f"{found.directory} holds no config.json. Give --model DIR, the Hugging Face directory of the same model"
        )
    hf = read_config(companions)
    return Model(found, hf, companions, open_weights(found, hf, trust_pickle))


def open_pair(first: Found, second: Found, companions: Path | None, trust_pickle: bool) -> tuple[Weights, Weights]:
    """Two models to compare: their working weights, or masters and moments where both are our checkpoints.

    One without a config.json has the other's. Raises as `open_model` does.
    """
    if first.kind == second.kind == STEP:
        one, other = (open_state(found.directory, read_manifest(found.directory)) for found in (first, second))
        return one, other
    models = [
        open_model(found, companions or found.companions or other.companions, trust_pickle)
        for found, other in ((first, second), (second, first))
    ]
    return models[0].weights, models[1].weights


def open_weights(found: Found, hf: PreTrainedConfig, trust_pickle: bool) -> Weights:
    """The Hugging Face tensors of `found`. Raises CheckpointError unless they are those of `hf`."""
    if found.kind == HUGGING_FACE:
        return open_huggingface(found.directory, hf)
    if found.kind == MEGATRON:
        return MegatronWeights(TorchDist(found.directory, trust_pickle), hf)
    manifest = read_manifest(found.directory)
    state = open_state(found.directory, manifest)
    names = {key.removeprefix(MASTER): key for key in state.tensors if key.startswith(MASTER)}
    expected = expected_tensors(hf)
    if problem := mismatch({name: state.tensors[key].shape for name, key in names.items()}, expected):
        raise CheckpointError(f"{found.directory} {problem}. Its masters and config.json are of different models")
    return Converted(state, {name: names[name] for name in expected}, DTYPES[manifest.model_dtype])


def read_config(directory: Path) -> PreTrainedConfig:
    """config.json of a Hugging Face directory. Raises CheckpointError, or ConfigError for what is not supported."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json; name a Hugging Face directory")
    hf = read_hf_config(directory)
    if hf.model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{directory / 'config.json'} has model_type={hf.model_type!r}. Supported: {', '.join(MODEL_TYPES)}"
        )
    check_supported(hf)
    return hf
