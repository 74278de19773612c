"""Hidden states, an LM head and PPO vectors, and the float64 loss of their whole product."""

import torch

from rest_kernels import reference
from tests.kernels.oracle import F32, F64

SETTINGS = {"temperature": 0.7, "kl_coef": 0.1, "entropy_coef": 0.05, "clip_ratio_dual": 1.5}
TOKENS, HIDDEN, VOCAB = 24, 16, 211


def make(num_tokens=TOKENS, width=HIDDEN, vocab=VOCAB, dtype=F32, seed=0):
    """hidden, weight, labels and PPO vectors; every third token has weight 0, and one is ignored."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    hidden, weight = normal(num_tokens, width).to(dtype), (normal(vocab, width) * 0.5).to(dtype)
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    policy = reference.log_probs(hidden.double() @ weight.double().t(), labels, 0.7)
    vectors = {
        "old_log_probs": policy + normal(num_tokens) * 0.5,
        "advantages": normal(num_tokens),
        "loss_weights": normal(num_tokens).abs() / max(num_tokens, 1),
        "ref_log_probs": policy + normal(num_tokens) * 0.3,
    }
    vectors["loss_weights"][::3] = 0
    labels[4:5] = -100
    vectors_dtype = F64 if dtype == F64 else F32
    return hidden, weight, labels, {name: value.to(vectors_dtype) for name, value in vectors.items()}


def exact_ppo(hidden, weight, labels, vectors, settings, scale=1.0):
    """(loss, hidden's gradient, weight's gradient) in float64 on the tokens that count."""
    kept = (vectors["loss_weights"] != 0) & (labels != -100)
    leaves = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    vectors = {name: value[kept].double() for name, value in vectors.items()}
    loss = reference.ppo_loss(leaves[0][kept] @ leaves[1].t(), labels[kept], **vectors, **settings)
    return loss.detach(), *torch.autograd.grad(loss * scale, leaves)


def exact_stats(hidden, weight, labels, upstream):
    """Values and gradients of g . log_probs + h . entropy in float64, over the labelled tokens."""
    kept = labels != -100
    leaves = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    logits = leaves[0][kept] @ leaves[1].t()
    outputs = reference.log_probs(logits, labels[kept], 0.7), reference.entropy(logits, 0.7)
    grads = torch.autograd.grad(outputs, leaves, [grad[kept].double() for grad in upstream])
    return *(value.detach() for value in outputs), reference.collision(logits, 0.7).detach(), *grads
