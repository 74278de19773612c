"""No full-precision copy of the logits exists at any moment, forward or backward."""

import pytest
import torch

from tests.kernels.meter import PeakMemory

MIB = 1 << 20
VOCAB = 32768


def test_the_meter_sees_a_full_precision_copy():
    logits = torch.zeros(64, 4096, dtype=torch.bfloat16)
    with PeakMemory() as memory:
        total = logits.float().sum()
        del total
    assert memory.peak == 64 * 4096 * 4 + 4
    assert memory.live == 0


def workload(target) -> tuple[int, int]:
    """(tokens, bytes the target may take beside the logits and their gradient).

    Triton takes vectors of tokens alone, 20 float32 at most. Torch takes a few float32 chunks, whatever the tokens.
    """
    if target.interpreted:
        return 8, 8 * 20 * 4 + 1024
    if target.backend == "triton":
        return 512, 512 * 20 * 4 + 1024
    return (512, 5 * MIB) if target.device == "cpu" else (8192, 400 * MIB)


@pytest.mark.parametrize("case", ["all rows", "some rows", "slice", "padding"])
@pytest.mark.parametrize("inplace", [False, True])
def test_extra_memory_does_not_grow_with_the_logits(target, case, inplace):
    num_tokens, allowed = workload(target)
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(4, num_tokens // 4, VOCAB, dtype=torch.bfloat16, device=target.device)
    weights = torch.ones(4, num_tokens // 4)
    if case == "some rows":
        weights[:, ::2] = 0
    labels = torch.randint(0, 30000, weights.shape, generator=generator)
    cut = slice(1, None) if case == "slice" else slice(None)
    logits = base.requires_grad_()[:, cut]
    vectors = {"old_log_probs": weights * 0 - 10, "advantages": weights * 0 + 1, "loss_weights": weights}
    labels, vectors = target.put(labels[:, cut]), {key: target.put(value[:, cut]) for key, value in vectors.items()}
    vocab_size = 30000 if case == "padding" else None
    with PeakMemory() as memory:
        loss = target.ppo_loss(
            logits, labels, **vectors, entropy_coef=0.01, vocab_size=vocab_size, inplace_backward=inplace
        ).loss
        forward = memory.peak
        (grad,) = torch.autograd.grad(loss, logits)
    # A copy of the logits in float32 would be far above what is allowed.
    assert 4 * logits.numel() >= 1.5 * allowed
    assert forward <= allowed
    assert memory.peak - (0 if inplace else grad.nbytes) <= allowed
    assert (grad[weights[:, cut] != 0] != 0).any() and (grad[weights[:, cut] == 0] == 0).all()


def test_values_without_gradient_take_no_more(target):
    num_tokens, allowed = workload(target)
    logits = torch.zeros(num_tokens, VOCAB, dtype=torch.bfloat16, device=target.device)
    with PeakMemory() as memory:
        target.logprob_entropy(logits, target.put(torch.zeros(num_tokens, dtype=torch.int64)), return_collision=True)
    assert 0 < memory.peak <= allowed
