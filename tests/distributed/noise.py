"""How far float32 is off on this machine, and the bars that follow from it.

No fixed bar fits every CPU: another instruction set, BLAS or number of threads sums in another order. So the noise is
measured where the tests run: Hugging Face's model in float32 against itself in float64, with the same weights and
answers; for what training steps leave behind, PyTorch's loop likewise. A bar is MULTIPLE times the noise, and the
actor's float32 is compared with the same float64 numbers. `test_traps` and `test_optimizer_steps` hold the bars far
below the errors that they are there to find; `benchmarks/noise.py` shows what is measured.

Errors are relative: max |d| / max |exact|; what is made of several gradients has bars of its own, in `test_comparison`.
What has no counterpart in Hugging Face, such as the mismatch metrics or a whole run's metrics on two layouts, keeps a
plain bar, ten times or more above its error with any instruction set.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from tests.distributed.cases import in_order, merged
from tests.distributed.torch_loop import Loop
from tests.tiny import Answers, Oracle, relative_error

Errors = dict[str, float]

UNIT = 2.0**-24  # float32's unit roundoff
MULTIPLE = 4
# One sample of noise can be small by luck: the errors of a norm cancel. It counts as no less than n roundings that do
# not know of one another, sqrt(n) units. A logit, and all that is made of logits, sums the products of 64 hidden
# values; a gradient also those of 160 values in the MLP, and all 361 tokens. A step hands its gradient's error on.
FORWARD = math.sqrt(64) * UNIT
BACKWARD = math.sqrt(64 + 160 + 361) * UNIT
FLOORS = {"gradient": BACKWARD, "weights": BACKWARD}

STATISTICS = ("logits", "log_probs", "entropy", "collision")


def bars(noise: Mapping[str, float]) -> Errors:
    """What an error of each quantity may be at most."""
    return {name: MULTIPLE * max(error, FLOORS.get(name, FORWARD)) for name, error in noise.items()}


def above(errors: Mapping[str, float], bars: Mapping[str, float]) -> list[str]:
    """The errors that are not within their bars, NaN among them."""
    return [f"{name} {error:.3e} > {bars[name]:.3e}" for name, error in errors.items() if not error <= bars[name]]


def noise(single: Oracle, exact: Oracle) -> Errors:
    """Hugging Face's float32 against its float64."""
    return _errors(partial(getattr, single), single.gradients, [single.grad_norm], exact)


def errors(results: list[dict], answers: Answers, exact: Oracle) -> Errors:
    """The actor's numbers, from every rank's `gradients_and_updates`, against Hugging Face's float64."""
    norms = [result["grad_norm"] for result in results]
    return _errors(lambda name: in_order(results, name, answers), merged(results, "gradients"), norms, exact)


def gradient_error(gradients: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """The largest error of any parameter's gradient, in units of that gradient's own largest entry."""
    assert gradients.keys() == exact.keys()
    return max(relative_error(gradients[name], value) for name, value in exact.items())


def accumulation_bar(copies: int) -> float:
    """A float32 sum of `copies` equal gradients against their multiple: each addition rounds by one unit at most."""
    return copies * UNIT


def _errors(
    statistics: Callable[[str], Tensor], gradients: Mapping[str, Tensor], norms: list[float], exact: Oracle
) -> Errors:
    return {
        **{name: relative_error(statistics(name), getattr(exact, name)) for name in STATISTICS},
        "gradient": gradient_error(gradients, exact.gradients),
        "grad_norm": max(abs(norm / exact.grad_norm - 1) for norm in norms),
    }


def distance(value: Tensor, exact: Tensor) -> float:
    """|d| / |exact|, of the whole tensor."""
    return float((value.double() - exact).norm() / exact.norm())


def loop_errors(weights: Mapping[str, Tensor], metrics: list[dict], answers: Answers, exact: Loop) -> Errors:
    """Weights and the last steps' metrics against the loop in float64.

    Of weights the largest `distance` of any tensor: AdamW divides by |gradient| + eps, and so enlarges the error of the
    few whose gradient is next to 0. A metric's error is relative to its largest value of all steps, that of the loss,
    whose terms cancel, to the sum of their sizes.
    """
    terms = float((answers.loss_weights * answers.advantages).abs().sum())
    steps = exact.metrics[-len(metrics) :]
    found = {"weights": max(distance(value, exact.weights[name]) for name, value in weights.items())}
    for name in steps[0]:
        size = terms if name == "actor/loss" else max(abs(step[name]) for step in steps)
        found[name] = max(abs(step[name] - want[name]) for step, want in zip(metrics, steps, strict=True)) / (size or 1)
    return found
