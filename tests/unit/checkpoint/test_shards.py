"""Which file of a checkpoint holds which tensor."""

from types import SimpleNamespace
from unittest import mock

import pytest
from transformers import Qwen3Config

from rest_megatron.actor.optimizer_state import KINDS
from rest_megatron.checkpoint import shards
from rest_megatron.checkpoint.shards import file_numbers
from rest_megatron.model.mapping import expected_tensors

MODEL = Qwen3Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
# In the order of the model: embedding, head, last norm; then of each layer two norms, q, k, v, o, gate, up, down, two
# norms. As the first version numbered them.
ALONE = [1, 2, 3, *(3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11), *(11, 11, 12, 13, 14, 15, 16, 17, 18, 19, 19)]
SIX_RANKS = [1, 2, 3, *(3, 3, 3, 3, 3, 3, 4, 4, 5, 5, 5), *(5, 5, 5, 5, 5, 6, 6, 7, 7, 7, 7)]


@pytest.mark.parametrize("tp_size, dp_size, numbers", [(1, 1, ALONE), (2, 3, SIX_RANKS)])
def test_masters_and_moments_of_a_tensor_go_into_the_file_that_has_room(tp_size, dp_size, numbers):
    with mock.patch.object(shards, "GROUP_BYTES", 40_000):
        found = file_numbers(MODEL, SimpleNamespace(tp_size=tp_size, dp_size=dp_size))
    names = zip(expected_tensors(MODEL), numbers, strict=True)
    assert found == {f"{kind}/{name}": number for name, number in names for kind in KINDS}
