"""Tokens drawn from vocabulary shards over gloo are those drawn from the whole vocabulary."""

import pytest
import torch
import torch.distributed as dist

from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.startup import initialize
from rest_megatron.rollout.draw import NO_TOKEN, draw_tokens

VOCAB = 96
TEMPERATURE = 0.8


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows on a grid of uniforms, then rows with special shards, with uniforms at both ends."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(256 + 24, VOCAB, generator=generator)
    grid = (torch.arange(256) + 0.5) / 256
    logits[:256] = logits[0]
    ends = torch.tensor([0.0, 0.3, 1 - 2**-24]).repeat(8)
    special = logits[256:].view(8, 3, VOCAB)
    special[0, :, : VOCAB // 2] = -torch.inf
    special[1, :, VOCAB // 2 :] = -torch.inf
    special[2, :, VOCAB // 4 : 3 * VOCAB // 4] = -torch.inf
    special[3, :, 1:] = -torch.inf
    special[4, :, :-1] = -torch.inf
    special[5, :, 5] = torch.nan
    special[6, :, -1] = torch.nan
    special[7] = -torch.inf
    return logits, torch.cat([grid, ends])


def drawn(launch) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from this rank's columns."""
    parallel = initialize(launch, ParallelConfig(launch.world_size), torch.device("cpu"), seed=0)
    logits, uniforms = make_rows()
    shard = logits.chunk(launch.world_size, dim=1)[dist.get_rank()]
    return draw_tokens(shard, uniforms, TEMPERATURE, parallel.tp_group)


@pytest.mark.parametrize("world_size", [2, 4])
def test_shards_draw_what_the_whole_vocabulary_draws(pool, world_size):
    logits, uniforms = make_rows()
    tokens, log_probs = draw_tokens(logits, uniforms, TEMPERATURE, None)
    for rank_tokens, rank_log_probs in pool.run(drawn, world_size):
        assert torch.equal(rank_tokens, tokens)
        assert torch.allclose(rank_log_probs, log_probs, rtol=0, atol=1e-6)
    exact = (logits[0].double() / TEMPERATURE).softmax(-1)
    counts = torch.bincount(tokens[:256], minlength=VOCAB)
    assert ((counts - 256 * exact).abs() <= 1.001).all()
    assert (tokens[256:271] >= 0).all() and logits[256:271].gather(1, tokens[256:271, None]).isfinite().all()
    assert (tokens[271:] == NO_TOKEN).all()
