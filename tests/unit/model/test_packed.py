"""Attention over packs of sequences with shared beginnings, against each sequence by itself in float64."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.model.attention import CoreAttention
from rest_megatron.model.packed import PADDED_PAIRS, PackedSequences, Span
from rest_megatron.model.rotary import rotate

CPU = torch.device("cpu")
HEADS, GROUPS, DIM = 4, 2, 16
PACKS = {
    "one sequence": [Span(7, 0)],
    "plain": [Span(5, 0), Span(5, 0), Span(9, 0), Span(1, 0)],
    "a group": [Span(6, 0), Span(3, 6, 0), Span(3, 6, 0), Span(5, 6, 0)],
    "answers of one token": [Span(4, 0), Span(1, 4, 0), Span(1, 4, 0)],
    "prompts of one token": [Span(1, 0), Span(1, 0), Span(2, 1, 0), Span(3, 1, 1), Span(4, 1, 1)],
    "turns": [Span(4, 0), Span(6, 0), Span(2, 4, 0), Span(3, 4, 0), Span(2, 6, 1), Span(5, 7, 3), Span(1, 7, 3)],
    "far apart in length": [Span(50, 0), Span(2, 50, 0), Span(200, 50, 0), Span(201, 50, 0)],
}
CONFIG = SimpleNamespace(attention_dropout=0.0)


def inverse_frequencies():
    return 100.0 ** -(torch.arange(0, DIM, 2) / DIM)


def rotated(x, positions, dtype):
    """Hugging Face's formula: x cos + rotate_half(x) sin."""
    angles = positions[:, None] * inverse_frequencies().to(dtype)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def alone(spans, query, key, value):
    """[t, heads * dim]: every span's queries on the keys of the whole sequence so far, by the formula."""
    bounds = [0]
    for span in spans:
        bounds.append(bounds[-1] + span.length)
    out = []
    for number, span in enumerate(spans):
        chain = [number]
        while spans[chain[0]].parent >= 0:
            chain.insert(0, spans[chain[0]].parent)
        rows = [row for i in chain for row in range(bounds[i], bounds[i + 1])]
        positions = torch.arange(len(rows), dtype=query.dtype)
        k, v = (x[rows].repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
        k = rotated(k, positions, query.dtype)
        q = rotated(query[rows[span.start :]], positions[span.start :], query.dtype)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(DIM)
        hidden = torch.arange(len(rows)) > positions[span.start :, None]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
    return torch.cat(out)


def inputs(spans):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(span.length for span in spans)
    shapes = ((tokens, HEADS, DIM), (tokens, GROUPS, DIM), (tokens, GROUPS, DIM), (tokens, HEADS * DIM))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def with_gradients(attend, tensors, upstream):
    """The output, and the gradients of query, key and value."""
    tensors = [x.requires_grad_() for x in tensors]
    out = attend(*tensors)
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in tensors)]


@pytest.mark.parametrize("name", PACKS)
def test_every_token_sees_its_own_sequence_and_nothing_else(name):
    spans = PACKS[name]
    *tensors, upstream = inputs(spans)
    attention = CoreAttention(CONFIG, 1, None, "self")
    packed = PackedSequences.of(spans, CPU).prepared(inverse_frequencies(), torch.float32)
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
    blocks = PackedSequences.of(PACKS["a group"], CPU).blocks
    assert [(block.first, block.lengths, block.prefix) for block in blocks] == [(0, (6,), ()), (1, (3, 3, 5), (0,))]
    blocks = PackedSequences.of(PACKS["far apart in length"], CPU).blocks
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
