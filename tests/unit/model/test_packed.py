"""Attention over packs of sequences with shared beginnings, against each sequence by itself in float64."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.model.attention import CoreAttention
from rest_megatron.model.packed import PADDED_PAIRS, PackedSequences
from rest_megatron.model.rotary import rotate
from tests.unit.model.packs import DIM, HEADS, PACKS, alone, inputs, inverse_frequencies, with_gradients

CPU = torch.device("cpu")
CONFIG = SimpleNamespace(attention_dropout=0.0)


def prepared(name):
    return PackedSequences.of(PACKS[name], CPU).prepared(inverse_frequencies(), torch.float32)


@pytest.mark.parametrize("name", PACKS)
def test_every_token_sees_its_own_sequence_and_nothing_else(name):
    spans = PACKS[name]
    *tensors, upstream = inputs(spans)
    attention = CoreAttention(CONFIG, 1, None, "self")
    packed = prepared(name)
    ours = with_gradients(
        lambda q, k, v: attention(q, k, v, packed_seq_params=packed), [x.clone() for x in tensors], upstream
    )
    exact = with_gradients(lambda q, k, v: alone(spans, q, k, v), [x.double() for x in tensors], upstream.double())
    # A sum over the keys of a token, each rounded by itself.
    bar = 8 * math.sqrt(max(span.start + span.length for span in spans)) * 2**-24
    for what, a, b in zip(("output", "query", "key", "value"), ours, exact, strict=True):
        assert (a - b).abs().max() <= bar * b.abs().max(), what


def test_the_keys_of_a_span_are_those_of_all_it_continues_and_its_own():
    packed = PackedSequences.of(PACKS["turns"], CPU)
    bounds = packed.cu_seqlens_kv.tolist()
    keys = [packed.key_index[a:b].tolist() for a, b in pairwise(bounds)]
    first = [0, 1, 2, 3]
    assert keys[0] == first
    assert keys[3] == [*first, 12, 13, 14]
    assert keys[5] == [*first, 12, 13, 14, *range(17, 22)]
    assert (packed.max_seqlen_q, packed.max_seqlen_kv) == (6, 12)
    assert PackedSequences.of(PACKS["plain"], CPU).key_index is None


def test_neighbours_with_one_parent_attend_together_where_little_is_padded():
    blocks = prepared("a group").blocks
    assert [(block.first, block.lengths, block.prefix) for block in blocks] == [(0, (6,), ()), (1, (3, 3, 5), (0,))]
    blocks = prepared("far apart in length").blocks
    assert [block.lengths for block in blocks] == [(50,), (2,), (200, 201)]
    for block in blocks:
        padding = len(block.lengths) * max(block.lengths) - block.size
        assert padding * (block.prefix_length + max(block.lengths)) <= PADDED_PAIRS * len(block.lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_and_its_gradient_round_as_the_formula_does(dtype):
    generator = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(9, HEADS, DIM, generator=generator).to(dtype) for _ in range(2))
    angles = torch.arange(9)[:, None] * inverse_frequencies()
    cos, sin = angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]

    def formula(x):
        first, second = x.chunk(2, dim=-1)
        both = torch.cat([-second, first], dim=-1)
        return x * torch.cat([cos, cos], -1) + both * torch.cat([sin, sin], -1)

    ours, theirs = (with_gradients(turn, [x.clone()], upstream) for turn in (lambda x: rotate(x, cos, sin), formula))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
