"""Alarms on simulated runs."""

import json
import math
import random
import re
from collections.abc import Callable

import pytest

from rest_megatron.config.schema import AlarmsConfig
from rest_megatron.observe.alarms import Alarms

SETTINGS = AlarmsConfig(window=5)
Metrics = dict[str, float]


def metrics(length: float, form: float, accuracy: float) -> Metrics:
    """Parts of an answer: the name is easier than the values."""
    parts = {"name": accuracy + 0.1, "parameter_names": accuracy, "parameter_values": accuracy - 0.1}
    return {"rollout/length": length, "reward/format": form} | {f"reward/{name}": x for name, x in parts.items()}


def healthy(step: int, noise: random.Random) -> Metrics:
    """Format is learned first, correctness slowly; answers lose a third of their length."""
    rate = 1 - math.exp(-step / 10)
    accuracy = 0.1 + 0.8 * min(1.0, step / 100) + noise.gauss(0, 0.02)
    return metrics(300 - 100 * rate + noise.gauss(0, 15), 0.4 + 0.58 * rate, accuracy)


def collapsing(step: int, noise: random.Random) -> Metrics:
    """Answers shrink from step 30 to a twentieth of their length at step 60."""
    return metrics(200 * max(0.05, min(1.0, (60 - step) / 30)) + noise.gauss(0, 3), 0.5, 0.6)


def hacking(step: int, noise: random.Random) -> Metrics:
    """The format is learned by step 20, correctness never."""
    return metrics(200, min(0.99, step / 20), 0.25 + noise.gauss(0, 0.02))


def on(alarms: Alarms) -> set[str]:
    """The alarms that last; the others are there, too."""
    names = ("short_answers", "format_hacking", "mismatch", "control_tokens")
    assert alarms.metrics.keys() == {f"alarm/{name}" for name in names}
    return {name.removeprefix("alarm/") for name, value in alarms.metrics.items() if value}


def run(alarms: Alarms, simulate: Callable[[int, random.Random], Metrics], steps: range, seed: int = 0) -> list[str]:
    return [text for step in steps for text in alarms.update(step, simulate(step, random.Random(seed * 1000 + step)))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("window", [10, 20])
def test_a_healthy_run_raises_no_alarm(seed, window):
    alarms = Alarms(AlarmsConfig(window=window))
    assert run(alarms, healthy, range(1, 200), seed) == []
    assert on(alarms) == set()


@pytest.mark.parametrize("seed", range(5))
def test_answers_that_collapse_raise_one_alarm_with_its_numbers(seed):
    alarms = Alarms(SETTINGS)
    (message,) = run(alarms, collapsing, range(1, 100), seed)
    assert on(alarms) == {"short_answers"}
    # 200 x (60 - step) / 30 is 100 at step 45, and the mean over five steps lags two behind.
    step = int(message.split()[3].rstrip(":"))
    assert 46 <= step <= 49
    assert "answers grow short: over 5 steps" in message and re.search(r"below 0.5 x the (19[5-9]|20[0-5])", message)
    assert f"rollouts/step-{step}.jsonl" in message and "alarms.min_length_ratio" in message


@pytest.mark.parametrize("seed", range(20))
def test_format_without_correctness_raises_one_alarm_with_its_numbers(seed):
    alarms = Alarms(AlarmsConfig())
    (message,) = run(alarms, hacking, range(1, 60), seed)
    assert on(alarms) == {"format_hacking"}
    assert "format without correctness: over 10 steps format 0.9" in message and "accuracy 0.2" in message
    assert "alarms.format_high=0.9, alarms.correctness_low=0.5" in message


def steady(length: float, form: float, accuracy: float) -> Callable[[int, random.Random], Metrics]:
    return lambda step, noise: metrics(length, form, accuracy)


def test_the_mean_of_a_window_decides_and_the_border_is_exact():
    alarms = Alarms(AlarmsConfig(window=2, min_length_ratio=0.5))
    lengths = [100, 100, 50, 50, 49, 50, 51]
    spoken = [bool(alarms.update(i + 1, {"rollout/length": x})) for i, x in enumerate(lengths)]
    # means 100, 75, 50, 49.5 (begins), 49.5, 50.5 (ends)
    assert spoken == [False, False, False, False, True, False, True]


def test_both_alarms_end_when_the_run_recovers():
    alarms = Alarms(SETTINGS)
    assert run(alarms, steady(100, 0.5, 0.4), range(1, 11)) == []
    begun = run(alarms, steady(20, 0.95, 0.3), range(11, 31))
    assert len(begun) == 2 and all(text.startswith("alarm at step 1") for text in begun)
    ended = run(alarms, steady(90, 0.95, 0.6), range(31, 41))
    assert len(ended) == 2 and all(text.startswith("alarm ends at step 3") for text in ended)
    assert on(alarms) == set()


@pytest.mark.parametrize(
    "form, accuracy", [(0.9, 0.3), (0.99, 0.5)], ids=["format not above its bound", "accuracy not below its bound"]
)
def test_bounds_of_format_hacking(form, accuracy):
    assert run(Alarms(SETTINGS), steady(100, form, accuracy), range(1, 50)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_an_accuracy_that_still_rises_is_no_hacking(seed, sigma):
    def rising(step: int, noise: random.Random) -> Metrics:
        return metrics(100, 0.99, 0.1 + 0.005 * step + noise.gauss(0, sigma))

    assert run(Alarms(AlarmsConfig(window=10)), rising, range(1, 100), seed) == []


def test_a_creeping_accuracy_is_hacking_all_the_same():
    def creeping(step: int, noise: random.Random) -> Metrics:
        return metrics(100, 0.99, 0.2 + 0.0005 * step)

    # The first window ends at step 10; the next rise by 0.02 would come 40 steps later.
    (message,) = run(Alarms(AlarmsConfig(window=10)), creeping, range(1, 40))
    assert message.startswith("alarm at step 20: ")


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_hold_the_alarm_back(seed):
    def hacked(step: int, noise: random.Random) -> Metrics:
        return metrics(200, 0.99, 0.25 + noise.gauss(0, 0.015))

    (message,) = run(Alarms(AlarmsConfig(window=10)), hacked, range(1, 60), seed)
    assert int(message.split()[3].rstrip(":")) <= 30


@pytest.mark.parametrize(
    "settings, simulate",
    [(AlarmsConfig(window=5, min_length_ratio=0.0), collapsing), (AlarmsConfig(window=5, format_high=1.0), hacking)],
)
def test_an_alarm_can_be_switched_off(settings, simulate):
    assert run(Alarms(settings), simulate, range(1, 200)) == []


@pytest.mark.parametrize("name", ["reward/format", "reward/name", "reward/parameter_names", "reward/parameter_values"])
@pytest.mark.parametrize("missing", [None, math.nan])
def test_without_the_parts_of_the_reward_only_the_length_is_watched(name, missing):
    def other(step: int, noise: random.Random) -> Metrics:
        values = hacking(step, noise) | {"rollout/length": collapsing(step, noise)["rollout/length"]}
        del values[name]
        return values if missing is None else values | {name: missing}

    alarms = Alarms(SETTINGS)
    (message,) = run(alarms, other, range(1, 100))
    assert "answers grow short" in message
    assert on(alarms) == {"short_answers"}


@pytest.mark.parametrize("simulate", [collapsing, hacking])
def test_a_resumed_run_says_and_keeps_exactly_the_same(simulate):
    whole = Alarms(SETTINGS)
    said = run(whole, simulate, range(1, 100))
    for cut in range(1, 100, 7):
        first = Alarms(SETTINGS)
        before = run(first, simulate, range(1, cut))
        second = Alarms.from_dict(SETTINGS, json.loads(json.dumps(first.to_dict())))
        assert before + run(second, simulate, range(cut, 100)) == said
        assert second.to_dict() == whole.to_dict()


def test_a_state_that_was_taken_does_not_change():
    alarms = Alarms(SETTINGS)
    run(alarms, hacking, range(1, 10))
    state = alarms.to_dict()
    copy = json.loads(json.dumps(state))
    run(Alarms.from_dict(SETTINGS, state), hacking, range(10, 40))
    run(alarms, hacking, range(10, 40))
    assert state == copy


def mismatched(alarms: Alarms, means: list[float]) -> list[list[str]]:
    """What each step says, counted from 1."""
    return [alarms.update(step + 1, {"mismatch/mean": mean}) for step, mean in enumerate(means)]


def test_a_mismatch_is_reported_in_the_step_in_which_it_begins_and_ends():
    alarms = Alarms(AlarmsConfig(max_mismatch=0.05))
    spoken = mismatched(alarms, [0.05, 0.051, 0.3])
    assert [len(messages) for messages in spoken] == [0, 1, 0] and on(alarms) == {"mismatch"}
    (begins,) = spoken[1]
    assert begins.startswith("alarm at step 2: actor and engine disagree: mean |log-prob difference| 0.051, above 0.05")
    ((ends,),) = mismatched(alarms, [0.05])
    assert ends.startswith("alarm ends at step 1: ") and "0.05, at most 0.05" in ends and on(alarms) == set()


def test_the_mismatch_alarm_says_how_far_how_old_and_what_to_look_at():
    row = {"mismatch/mean": 1.25, "mismatch/max": 4.75, "rollout/weight_version": 7.0, "rollout/weight_lag": 0.0}
    (message,) = Alarms(AlarmsConfig()).update(9, row)
    for said in ("1.2", "4.8", "weight version 7", "alarms.max_mismatch", "model.dtype"):
        assert said in message
    for said in ("rollout.temperature", "rollout.probe_tolerance", "processed"):
        assert said in message


def test_answers_of_older_weights_differ_for_that_reason_and_are_no_alarm():
    alarms = Alarms(AlarmsConfig())
    assert alarms.update(1, {"mismatch/mean": 1.25, "rollout/weight_lag": 3.0}) == [] and on(alarms) == set()


def test_a_step_without_a_mismatch_leaves_its_alarm_and_an_infinite_one_begins_it():
    alarms = Alarms(AlarmsConfig())
    assert [len(messages) for messages in mismatched(alarms, [math.nan, math.inf, math.nan])] == [0, 1, 0]
    assert alarms.update(4, {}) == [] and on(alarms) == {"mismatch"}
    assert [len(messages) for messages in mismatched(Alarms(AlarmsConfig(max_mismatch=0)), [9.0])] == [0]


def test_a_resumed_run_remembers_that_a_mismatch_lasts():
    first = Alarms(AlarmsConfig())
    mismatched(first, [1.0])
    second = Alarms.from_dict(AlarmsConfig(), json.loads(json.dumps(first.to_dict())))
    assert [len(messages) for messages in mismatched(second, [1.0, 0.0])] == [0, 1]
