"""Packs of spans, and what every token of one sees, by the formula."""

import math

import torch

from rest_megatron.model.packed import Span

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
