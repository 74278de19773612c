"""What goes wrong without a message when a guard is lost.

Megatron-core and DeepSpeed together have settings and omissions that train wrong silently. For each that can occur
here, the guard is taken away (`trap_cases.GUARDS`) and the numbers must be FAR times outside the bars of `noise`:
a bar that became loose would fail here.

| trap                                                        | here                                                |
|-------------------------------------------------------------|-----------------------------------------------------|
| no boundary mode, several micro-batches                     | GUARDS                                              |
| boundary mode with overlapped communication                 | GUARDS, and refused by `engine_config`              |
| ZeRO-2 or ZeRO-3 in boundary mode                           | refused by `engine_config`                          |
| q/k norm or sequence-parallel norm gradients not summed     | GUARDS                                              |
| tied embedding not summed, or counted twice in the norm     | GUARDS                                              |
| `perform_initialization=False` leaves parameters unmarked   | GUARDS                                              |
| norm over tensor-parallel ranks only                        | GUARDS                                              |
| interleaved stages without overlapped point-to-point        | GUARDS; `megatron.overlap_p2p_comm` is refused      |
| the schedule divides the loss (by tokens and micro-batches) | GUARDS; the logged loss is a copy of its own        |
| bf16 accumulation, bf16 reduction                           | GUARDS                                              |
| bf16 weights that DeepSpeed takes for float32; NaN          | GUARDS                                              |
| an infinite loss whose gradient the clip hides              | GUARDS                                              |
| offloaded bf16: a skipped step poisons all later ones       | GUARDS                                              |
| model-parallel rank that is the tensor-parallel rank        | tested below                                        |
| a loss whose forward pass changes the logits                | tested below                                        |
| non-contiguous chunks in `dist.scatter`                     | cannot occur: nothing is scattered                  |
| padded vocabulary columns                                   | cannot occur: no padding, TP must divide vocab_size |
| missing file of a sharded checkpoint                        | refused: tests/unit/test_hf_loading.py              |
| flipped bit in safetensors                                  | not seen: safetensors carry no checksum             |
"""

import math

import pytest
import torch

from rest_megatron.config.deepspeed import engine_config
from rest_megatron.config.megatron import check_megatron_fields
from rest_megatron.errors import ConfigError
from tests.distributed.cases import Layout, gradients_and_updates, make_config, merged
from tests.distributed.noise import accumulation_bar, errors
from tests.distributed.trap_cases import (
    CLIPPED_INFINITY,
    GUARDS,
    not_a_number,
    ranks_of_deepspeed,
    unchanged_by_the_losses,
    without,
)
from tests.tiny import relative_error

OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
FAR = 1000
COPIES = 11
TP, PP, DP = Layout(tp=2), Layout(pp=2), Layout(dp=2)
SP = Layout(tp=2, sp=True)


def wrong(pool, model, exact, answers, guard, layout, steps) -> dict[str, float]:
    """How far the numbers are off without the guard."""
    args = (guard, gradients_and_updates, model, layout, answers, "float32", steps)
    results = pool.run(without, layout.world_size, *args)
    replicas = max(result["replicas"] for result in results)
    return {**errors(results, answers, exact), "replicas": replicas}


# Copies of a weight must be equal to the bit. Apart, they are so by about the learning rate of 1e-3.
REPLICAS = 1e-3
# guard, tied, layout, and what must be off; the forward stays right.
WRONG = [
    ("q/k norm gradients are summed over TP", False, TP, {"gradient", "replicas"}),
    ("norm gradients are summed over TP under SP", False, SP, {"gradient", "replicas"}),
    ("tied embedding gradients are summed over the pipeline's ends", True, PP, {"gradient"}),
    ("the tied copy is not counted in the norm", True, PP, {"grad_norm"}),
    ("sharded parameters are marked", False, TP, {"grad_norm"}),
    ("the norm covers every pipeline stage", False, PP, {"grad_norm"}),
    ("boundary mode", False, Layout(), {"gradient", "grad_norm"}),
    ("communication is not overlapped", False, DP, {"gradient", "grad_norm"}),
    ("interleaved stages overlap p2p", False, Layout(pp=2, vpp=2), {"gradient", "grad_norm"}),
    ("the schedule does not divide the loss", False, Layout(), {"gradient", "grad_norm"}),
    ("the loss is scaled by the data-parallel size", False, DP, {"gradient", "grad_norm"}),
]


@pytest.mark.parametrize("guard, tied, layout, off", WRONG, ids=[f"{g}-{layout}" for g, _, layout, _ in WRONG])
def test_without_the_guard_the_step_is_wrong(pool, tiny_model, exact, bars, within, answers, guard, tied, layout, off):
    steps = 3 if "replicas" in off else 1
    found = wrong(pool, tiny_model(tied=tied), exact("qwen3", tied), answers, guard, layout, steps)
    for name in off:
        assert found[name] >= (REPLICAS if name == "replicas" else FAR * bars(tied=tied)[name]), found
    within({"logits": found["logits"]}, bars(tied=tied))  # the forward does not show it


@pytest.mark.parametrize(
    "guard, layout",
    [
        ("bf16 gradients accumulate in float32", Layout(max_tokens=32)),
        ("bf16 gradients are reduced in float32", Layout(dp=2, max_tokens=32)),
    ],
)
def test_without_the_guard_bf16_sums_are_rounded(pool, tiny_model, answers, guard, layout):
    def gradients(copies):
        args = (tiny_model(dtype=torch.bfloat16), layout, answers.select([0] * copies), "bfloat16", 1)
        return merged(pool.run(without, layout.world_size, guard, gradients_and_updates, *args), "gradients")

    one, many = gradients(1), gradients(COPIES)
    found = max(relative_error(many[name], COPIES * one[name].double()) for name in one)
    assert found >= FAR * accumulation_bar(COPIES)


NAN_LAYOUTS = [Layout(), DP, Layout(tp=2, pp=2), Layout(dp=2, deepspeed=OFFLOAD)]
NAN_PLACES = ["old_log_probs", "advantages", "loss_weights", "gradient", CLIPPED_INFINITY]


# Each precision on two of them, bfloat16 with an offloaded optimizer, too, and on all with --slow.
NAN_CASES = [
    pytest.param(layout, dtype, id=f"{layout}-{dtype}", marks=[] if number % 2 != place else pytest.mark.slow)
    for number, layout in enumerate(NAN_LAYOUTS)
    for place, dtype in enumerate(("bfloat16", "float32"))
]


@pytest.mark.parametrize("layout, dtype", NAN_CASES)
def test_a_nan_on_one_rank_changes_no_weight_and_the_next_step_is_good(pool, tiny_model, answers, layout, dtype):
    path = tiny_model(tied=True, dtype=getattr(torch, dtype))
    for history in pool.run(not_a_number, layout.world_size, path, layout, answers, dtype, NAN_PLACES):
        assert [step["place"] for step in history[1::2]] == NAN_PLACES
        for before, bad, after in zip(history[::2], history[1::2], history[2::2], strict=False):
            assert bad["metrics"]["actor/grad_norm"] == float("inf")
            assert math.isfinite(bad["metrics"]["actor/loss"]) is (bad["place"] == "gradient")
            assert torch.equal(bad["weights"], before["weights"])
            assert after["weights"].isfinite().all() and not torch.equal(after["weights"], before["weights"])
            assert 0 < after["metrics"]["actor/grad_norm"] < math.inf
        rates = [step["metrics"]["actor/lr"] for step in history]
        waiting = [1e-4, 2e-4, 2e-4, 3e-4, 3e-4, 4e-4, 4e-4, 5e-4, 5e-4, 6e-4, 6e-4]
        assert rates == pytest.approx(waiting), "the schedule waits for a skipped step"


def nan_history(pool, model, answers, guard, layout, dtype, place):
    args = (guard, not_a_number, model, layout, answers, dtype, [place])
    return pool.run(without, layout.world_size, *args)[0]


def test_without_bf16_in_deepspeed_a_nan_reaches_every_weight(pool, tiny_model, answers):
    path = tiny_model(tied=True, dtype=torch.bfloat16)
    _, bad, _ = nan_history(pool, path, answers, "DeepSpeed knows of bf16", DP, "bfloat16", "advantages")
    assert bad["weights"].isnan().all()


def test_without_the_spoilt_gradient_an_infinite_loss_trains_on(pool, tiny_model, answers):
    """The clip holds the token's ratio: its gradient is 0, and the other tokens make a step."""
    guard = "an infinite loss spoils a gradient"
    before, bad, _ = nan_history(pool, tiny_model(tied=True), answers, guard, DP, "float32", CLIPPED_INFINITY)
    assert math.isinf(bad["metrics"]["actor/loss"])
    assert not torch.equal(bad["weights"], before["weights"])


def test_without_discarding_gradients_an_offloaded_bf16_run_never_steps_again(pool, tiny_model, answers):
    path, layout = tiny_model(tied=True, dtype=torch.bfloat16), Layout(dp=2, deepspeed=OFFLOAD)
    guard = "a skipped step's gradients are discarded"
    _, _, after = nan_history(pool, path, answers, guard, layout, "bfloat16", "advantages")
    assert after["metrics"]["actor/grad_norm"] == math.inf


def test_every_guard_has_a_test():
    tested = {guard for guard, *_ in WRONG}
    others = {
        "bf16 gradients accumulate in float32",
        "bf16 gradients are reduced in float32",
        "DeepSpeed knows of bf16",
        "an infinite loss spoils a gradient",
        "a skipped step's gradients are discarded",
    }
    assert tested | others == set(GUARDS)


@pytest.mark.parametrize("zero", [{"overlap_comm": True}, {"stage": 0}, {"stage": 2}, {"stage": 3}], ids=str)
def test_deepspeed_settings_that_train_wrong_are_refused(zero):
    config = make_config("model", Layout(deepspeed={"zero_optimization": zero}))
    with pytest.raises(ConfigError, match=f"deepspeed.zero_optimization.{next(iter(zero))}"):
        engine_config(config, data_parallel_size=2)


@pytest.mark.parametrize(
    "field", ["overlap_p2p_comm", "batch_p2p_comm", "calculate_per_token_loss", "perform_initialization"]
)
def test_megatron_fields_that_train_wrong_are_refused(field):
    with pytest.raises(ConfigError, match=f"megatron.{field}"):
        check_megatron_fields(make_config("model", Layout(megatron={field: True})))


def test_deepspeed_sees_one_number_per_model_parallel_rank(pool, tiny_model):
    layout = Layout(tp=2, pp=2)
    numbers = pool.run(ranks_of_deepspeed, layout.world_size, tiny_model(), layout)
    assert sorted(numbers) == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("layout", [Layout(), TP], ids=str)
def test_no_loss_changes_the_logits(pool, tiny_model, answers, layout):
    for unchanged in pool.run(unchanged_by_the_losses, layout.world_size, tiny_model(), layout, answers):
        assert len(unchanged) >= 9 and all(unchanged)
