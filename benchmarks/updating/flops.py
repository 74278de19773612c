"""What a step asks for and what was computed: tokens through the layers, and floating point operations.

Asked, of every answer by itself, causal, nothing twice, a product of m x k and k x n being 2mkn: a forward pass costs
2 x parameters of the layers' matrices per token, 4 x layers x heads x head_dim per pair of a query and a key that it
may see, and 2 x vocabulary x hidden_size per sampled token; a backward pass twice that. Log-probs are a forward pass,
an update a forward and a backward pass.

Computed, by PyTorch's counter of what was multiplied: padding, rows of logits that nobody needs and what a kernel
computes again count too, a causal call with half of its pairs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .shapes import Step

aten = torch.ops.aten


def asked_tokens(step: Step) -> int:
    """Of one pass: every answer with its prompt."""
    return sum(step.lengths)


def asked_flops(step: Step, model: dict[str, Any]) -> int:
    """Of log-probs and update; model: Qwen3Config's fields."""
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    query, key = (model[name] * model["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    matrices = layers * (2 * hidden * query + 2 * hidden * key + 3 * hidden * model["intermediate_size"])
    pairs = sum(length * (length + 1) // 2 for length in step.lengths)
    head = 2 * model["vocab_size"] * hidden * sum(step.targets)
    return 4 * (2 * matrices * asked_tokens(step) + 4 * layers * query * pairs + head)


@contextmanager
def counted(embedding: nn.Module) -> Iterator[dict[str, int]]:
    """Fills {"tokens", "flops"} with what is computed inside; tokens: those that `embedding` looks up."""
    found = {"tokens": 0, "flops": 0}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found["tokens"] += inputs[0].numel()

    hook = embedding.register_forward_pre_hook(count)
    try:
        with FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
            yield found
        found["flops"] = counter.get_total_flops()
    finally:
        hook.remove()


def _attention(query: tuple, key: tuple, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Forward, on a CPU: two products over the pairs. rest: value, dropout, whether causal."""
    return 2 * _product(query, key, causal=len(rest) > 2 and rest[2])


def _attention_backward(
    grad: tuple, query: tuple, key: tuple, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    """Five products, the first of which is that of the forward pass again. rest: value, out, sums, dropout, causal."""
    return 5 * _product(query, key, causal=rest[4])


def _added_product(total: tuple, left: tuple, right: tuple, out_shape: Any = None, **options: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _product(query: tuple, key: tuple, causal: bool) -> int:
    batch, heads, queries, dim = query
    pairs = queries * (queries + 1) // 2 if causal else queries * key[2]
    return 2 * batch * heads * pairs * dim


# What PyTorch's counter leaves out: attention on a CPU, and products that are added in place.
_MISSING = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.addmm_: _added_product,
}
