"""Random inputs, the float64 reference on them, and the bars the backends are held to."""

import torch
from torch import Tensor

from rest_kernels import reference
from tests.kernels.target import Target

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16

# Bars are multiples of float32's unit roundoff: n additions, in whatever order a CPU makes them, are off by about
# sqrt(n) units. Rows have up to 4096 columns, those with more are summed in blocks. Met so far, compiled or not, with
# and without vector instructions: log-probs off by up to 3 units, collisions 6, gradients 18 and entropies 40.
UNIT = 2.0**-24
LOG_PROB, COLLISION, GRADIENT, ENTROPY = 32 * UNIT, 32 * UNIT, 64 * UNIT, 128 * UNIT


def make_logits(num_tokens: int, vocab: int, dtype=F32, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal logits [T, V] and labels [T]."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_tokens, vocab, dtype=F64, generator=generator) * scale).to(dtype)
    return logits, torch.randint(0, vocab, (num_tokens,), generator=generator)


def upstream(num_tokens: int, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Random gradients of log-prob and entropy, each [T] in float64: gradients of ones hide mistakes of scale."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num_tokens, dtype=F64, generator=generator).unbind(0)


def exact_values(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(log_probs, entropy, collision) in float64."""
    exact = logits.detach().double()
    return (
        reference.log_probs(exact, labels, temperature),
        reference.entropy(exact, temperature),
        reference.collision(exact, temperature),
    )


def exact_gradient(logits: Tensor, labels: Tensor, grads: tuple[Tensor, Tensor], temperature: float = 1.0) -> Tensor:
    """The gradient of g . log_probs + h . entropy in float64."""
    exact = logits.detach().double().requires_grad_()
    log_probs, entropy = reference.log_probs(exact, labels, temperature), reference.entropy(exact, temperature)
    return torch.autograd.grad((log_probs, entropy), exact, [grad.view_as(log_probs) for grad in grads])[0]


def gradient(target: Target, logits: Tensor, labels: Tensor, grads: tuple[Tensor, Tensor], **options) -> Tensor:
    """The target's gradient of g . log_probs + h . entropy, on the CPU."""
    leaf = logits.detach().requires_grad_()
    result = target.logprob_entropy(leaf, labels, entropy_requires_grad=True, **options)
    g, h = (grad.to(result.log_probs.dtype).view_as(result.log_probs) for grad in grads)
    return torch.autograd.grad((result.log_probs, result.entropy), leaf, (g, h))[0].cpu()


def make_ppo(num_tokens: int = 64, vocab: int = 211, dtype=F32, seed: int = 0) -> tuple[Tensor, Tensor, dict]:
    """Logits in `dtype`, labels and PPO vectors (float64 beside float64 logits, else float32).

    The ratios at temperature 0.7 lie on both sides of every clip.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors_dtype = F64 if dtype == F64 else F32

    def normal(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    logits = (normal(num_tokens, vocab) * 3).to(dtype)
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    policy = reference.log_probs(logits.double(), labels, 0.7)
    vectors = {
        "old_log_probs": policy + normal(num_tokens) * 0.8,
        "advantages": normal(num_tokens),
        "loss_weights": normal(num_tokens).abs() / max(num_tokens, 1),
        "ref_log_probs": policy + normal(num_tokens) * 0.3,
    }
    return logits, labels, {name: vector.to(vectors_dtype) for name, vector in vectors.items()}


def exact_ppo(logits: Tensor, labels: Tensor, vectors: dict, scale: float = 1.0, **settings) -> tuple[Tensor, Tensor]:
    """(loss, gradient of scale * loss) in float64, of the same rounded inputs."""
    exact = logits.detach().double().requires_grad_()
    loss = reference.ppo_loss(exact, labels, **{key: value.double() for key, value in vectors.items()}, **settings)
    return loss.detach(), torch.autograd.grad(loss * scale, exact)[0]


def ppo_gradient(
    target: Target, logits: Tensor, labels: Tensor, vectors: dict, scale: float = 1.0, **settings
) -> tuple[Tensor, Tensor]:
    """The target's (loss, gradient of scale * loss), on the CPU."""
    leaf = logits.detach().requires_grad_()
    loss = target.ppo_loss(leaf, labels, **vectors, **settings).loss
    return loss.detach(), torch.autograd.grad(loss * scale, leaf)[0].cpu()


def assert_values(result, exact: tuple[Tensor, Tensor, Tensor]) -> None:
    """Log-prob within LOG_PROB of 1 + |log p|, entropy within ENTROPY, collision within COLLISION if there is one."""
    log_probs, entropy, collision = exact
    assert ((result.log_probs - log_probs).abs() <= LOG_PROB * (1 + log_probs.abs())).all()
    assert ((result.entropy - entropy).abs() <= ENTROPY).all()
    if result.collision is not None:
        assert ((result.collision - collision).abs() <= COLLISION).all()


def assert_gradient(grad: Tensor, exact: Tensor, unit: float = 0.0) -> None:
    """Each element within `unit` (one rounding) of itself, plus GRADIENT of the largest of its row."""
    assert grad.shape == exact.shape
    bar = unit * exact.abs() + GRADIENT * exact.abs().amax(-1, keepdim=True)
    assert ((grad - exact).abs() <= bar).all()


def assert_ppo_gradient(grad: Tensor, exact: Tensor, unit: float = 0.0) -> None:
    """Each element within `unit` (one rounding) of itself, plus GRADIENT of the largest of all.

    A float32 log-prob of -20 is rounded by up to 1e-6, and so is the ratio that a row's gradient is multiplied by.
    """
    assert grad.shape == exact.shape
    assert ((grad - exact).abs() <= unit * exact.abs() + GRADIENT * exact.abs().amax()).all()
