"""Hugging Face tensors as Megatron-core's checkpoints name, merge and pad them, and back."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from rest_megatron.convert.tensor_file import Spec
from rest_megatron.convert.torch_dist import TorchDist
from rest_megatron.convert.weights import Weights
from rest_megatron.errors import CheckpointError
from rest_megatron.model.mapping import Piece, expected_tensors, merge, mismatch, pieces_of, split

MAX_MULTIPLE = 128 * 64
"""Megatron-LM pads the vocabulary to a multiple of 128 x the tensor parallel size, which is at most 64 here."""
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
FC1 = "mlp.linear_fc1.weight"
QKV = "self_attention.linear_qkv."
NORMS = {
    "input_layernorm.weight": QKV + "layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Parameter -> its key in a checkpoint: Transformer Engine fuses these norms into the next linear layer, and
Megatron's other layers save theirs under the same keys."""
LAYER = (
    *NORMS,
    QKV + "weight",
    QKV + "bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "self_attention.linear_proj.weight",
    FC1,
    "mlp.linear_fc2.weight",
)


def layer_key(number: int, name: str) -> str:
    """The name of a parameter of layer `number`, from 0."""
    return f"decoder.layers.{number}.{name}"


def parameters(hf: PreTrainedConfig) -> dict[str, list[Piece]]:
    """Every parameter of the whole model, each once, with its pieces; named as in the model, with global layers."""
    whole = {name: pieces_of(name, hf, None) for name in (EMBEDDING, "decoder.final_layernorm.weight", HEAD)}
    if hf.tie_word_embeddings:
        del whole[HEAD]
    layers = {
        layer_key(i, name): pieces_of(layer_key(i, name), hf, i) for i in range(hf.num_hidden_layers) for name in LAYER
    }
    expected = expected_tensors(hf)
    return {name: ps for name, ps in (whole | layers).items() if all(piece.name in expected for piece in ps)}


def merged_shape(pieces: list[Piece]) -> tuple[int, ...]:
    """Shape of the whole parameter."""
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def checkpoint_key(name: str) -> str:
    """The key under which a checkpoint holds the parameter `name`."""
    for parameter, key in NORMS.items():
        name = name.replace(f".{parameter}", f".{key}")
    return name


def read_parameter(weights: Weights, pieces: list[Piece], hf: PreTrainedConfig, rows: int) -> Tensor:
    """The parameter of these pieces, padded with zeros to `rows`."""
    tensor = merge([weights.read(piece.name) for piece in pieces], hf.num_key_value_heads)
    if len(tensor) == rows:
        return tensor
    padded = tensor.new_zeros(rows, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return padded


class MegatronWeights:
    """The Hugging Face tensors of a Megatron-core checkpoint; rows that pad its vocabulary are cut off.

    Raises CheckpointError unless its tensors are those of `hf`.
    """

    def __init__(self, source: TorchDist, hf: PreTrainedConfig) -> None:
        self.source = source
        self.hf = hf
        self.tensors: dict[str, Spec] = {}
        self._keys: dict[str, tuple[list[str], list[Piece]]] = {}
        self._pending: dict[str, Tensor] = {}
        self.vocabulary = source.tensors[EMBEDDING].shape[0] if EMBEDDING in source.tensors else 0
        """Rows of the embedding, padding included."""
        found, expected = self._match()
        if problem := mismatch(found, expected):
            raise CheckpointError(f"{source.directory} {problem}. Its weights and config.json are of different models")

    def _match(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Shapes by key: those found, with the padding cut off, and those expected."""
        found = {name: spec.shape for name, spec in self.source.tensors.items()}
        expected: dict[str, tuple[int, ...]] = {}
        for name, pieces in parameters(self.hf).items():
            keys = _spelling(name, found)
            # Gate and up have keys of their own where Megatron-core saved with `singleton_local_shards`.
            parts = [[piece] for piece in pieces] if len(keys) > 1 else [pieces]
            expected |= {key: merged_shape(part) for key, part in zip(keys, parts, strict=True)}
            if name in (EMBEDDING, HEAD) and name in found and found[name][0] > self.hf.vocab_size:
                check_padding(self.source.directory, name, found[name][0], self.hf.vocab_size)
                found[name] = (self.hf.vocab_size, *found[name][1:])
            for piece in pieces:
                self._keys[piece.name] = (keys, pieces)
                if keys[0] in self.source.tensors:
                    self.tensors[piece.name] = Spec(piece.shape, self.source.tensors[keys[0]].dtype)
        return found, expected

    def read(self, name: str) -> Tensor:
        """The whole tensor. The others of its parameter are kept until another parameter is read."""
        if name not in self._pending:
            self._pending = {}
            keys, pieces = self._keys[name]
            read = [self.source.read(key) for key in keys]
            if len(read) == 1:
                rows = merged_shape(pieces)[0]
                read = split(read[0][:rows], pieces, self.hf.num_key_value_heads, 1)
            self._pending = {piece.name: part for piece, part in zip(pieces, read, strict=True)}
        return self._pending.pop(name)


def check_padding(directory: Path, name: str, rows: int, vocab_size: int) -> None:
    """Raise CheckpointError when `rows` are more than a vocabulary and what it can be padded with."""
    most = min(MAX_MULTIPLE - 1, vocab_size)
    if rows - vocab_size > most:
        raise CheckpointError(
            f"{directory}: {name} has {rows} rows, {rows - vocab_size} more than vocab_size={vocab_size} in "
            f"config.json. Padding is {most} at most: its weights and config.json are of different models, or "
            "--vocab-multiple is too large"
        )


def _spelling(name: str, found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The keys that hold the parameter `name` in this checkpoint; the usual one where it has none."""
    key = checkpoint_key(name)
    if key in found:
        return [key]
    if name in found:
        return [name]
    apart = [f"{name}_w", f"{name}_v"]
    return apart if name.endswith(FC1) and any(one in found for one in apart) else [key]


def extra_states(hf: PreTrainedConfig) -> list[str]:
    """Keys of the empty extra states that a model asks for, with Megatron's own layers or with Transformer Engine's."""
    modules = ["linear_qkv", "linear_proj", "core_attention"]
    modules += ["q_layernorm", "k_layernorm"] if hf.model_type == "qwen3" else []
    names = [f"self_attention.{module}" for module in modules] + ["mlp.linear_fc1", "mlp.linear_fc2"]
    count = hf.num_hidden_layers
    keys = [f"decoder.layers.{name}._extra_state/shard_{i}_{count}" for name in names for i in range(count)]
    return [*keys, "decoder.final_layernorm._extra_state/shard_0_1"]


def padded_rows(name: str, pieces: list[Piece], vocab_multiple: int) -> int:
    """Rows of a parameter in a checkpoint whose vocabulary is padded to a multiple of `vocab_multiple`."""
    rows = merged_shape(pieces)[0]
    return rounded_up(rows, vocab_multiple) if name in (EMBEDDING, HEAD) else rows


def rounded_up(rows: int, multiple: int) -> int:
    """The least multiple that is not below `rows`."""
    return -(-rows // multiple) * multiple
