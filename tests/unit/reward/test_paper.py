"""`rest_megatron.reward.paper`: the reward of preset `paper`."""

import itertools
import json
import random

import pytest

from rest_megatron.config import load
from rest_megatron.reward.paper import parse_ground_truth, score
from rest_megatron.reward.presets import build_reward
from tests.paths import SHARED
from tests.unit.reward.written import THOUGHT, calls, line

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


RESPONSE = THOUGHT + "<response> Hi. </response>"
CALL = calls(line("f", x=1))
BOTH = CALL + "\n<response> Hi. </response>"


def scored(response: str, truth: str, progress: float = 0.0):
    return score(response.encode(), parse_ground_truth(truth), progress=progress)


@pytest.mark.parametrize("truth", [CALL, RESPONSE, BOTH, calls(line("f"), line("g", a=[1], b={"c": None}))])
@pytest.mark.parametrize("progress, form, correctness", [(0.0, 2.0, 2.0), (0.5, 1.5, 2.5), (1.0, 1.0, 3.0)])
def test_the_wanted_answer_scores_four_at_any_progress(truth, progress, form, correctness):
    result = scored(truth, truth, progress)
    assert (result.format, result.correctness, result.total) == (form, correctness, 4.0)
    parts = ("format", "name", "parameter_names", "parameter_values", "exact")
    assert result.parts == dict.fromkeys(parts, 1.0)
    assert result.reason == "ok"


@pytest.mark.parametrize("progress, worst", [(0.0, -2.0), (0.5, -2.5), (1.0, -3.0)])
@pytest.mark.parametrize("response", ["", "no idea", "<think> hm"])
@pytest.mark.parametrize("truth", [CALL, RESPONSE, BOTH])
def test_an_answer_without_an_action_scores_the_minimum(truth, response, progress, worst):
    result = scored(response, truth, progress)
    assert (result.format, result.correctness, result.total) == (0.0, worst, worst)


@pytest.mark.parametrize(
    "truth, response, form, accuracy, reason",
    [
        (RESPONSE, CALL, 0, 0, "unwanted_tool_call"),
        (RESPONSE, BOTH, 0, 0, "unwanted_tool_call"),
        (RESPONSE, calls("{broken"), 0, 0, "bad_json"),
        (RESPONSE, THOUGHT, 0, 0, "no_response"),
        (RESPONSE, THOUGHT + "<response></response>", 0, 0, "empty_response"),
        (RESPONSE, THOUGHT + "<response> Something else. </response>", 2, 1, "ok"),
        (CALL, RESPONSE, 0, 0, "no_tool_call"),
        (CALL, THOUGHT, 0, 0, "no_tool_call"),
        (BOTH, RESPONSE, 0, 0, "no_tool_call"),
        # broken format keeps half of S_acc
        (CALL, BOTH, 0, 1 / 2, "unwanted_response"),
        (BOTH, CALL, 0, 1 / 2, "no_response"),
        (CALL, CALL.removeprefix(THOUGHT), 0, 1 / 2, "no_think"),
        (CALL, "Sure. " + CALL, 0, 1 / 2, "text_outside"),
        (CALL, CALL.replace("\n", ""), 0, 1 / 2, "missing_newline"),
        (CALL, CALL + CALL.removeprefix(THOUGHT), 0, (0.5 + 2) / 5 / 2, "repeated_tool_call"),
        (RESPONSE, RESPONSE + " junk", 0, 1 / 2, "text_outside"),
        (RESPONSE, THOUGHT + "<response> <tool_call>{}</tool_call> </response>", 0, 1 / 2, "tag_in_response"),
        # by hand: (J_names + sum(J_parameters + equal values)) / (1 + max(1, P/K) * sum(1 + n))
        (CALL, calls(line("g", x=1)), 2, 0, "wrong_name"),
        (CALL, calls(line("F", x=1)), 2, 0, "wrong_name"),
        (CALL, calls(line("f", x=2)), 2, 2 / 3, "wrong_parameter_values"),
        (CALL, calls(line("f", x=True)), 2, 2 / 3, "wrong_parameter_values"),
        (CALL, calls(line("f", x=1.0)), 2, 2 / 3, "wrong_parameter_values"),
        (CALL, calls(line("f", y=1)), 2, 1 / 3, "wrong_parameter_names"),
        (CALL, calls(line("f", x=1, y=1)), 2, (1 + 0.5 + 1) / 3, "wrong_parameter_names"),
        (CALL, calls(line("f", x=1), line("f", x=1)), 2, (0.5 + 2) / 5, "extra_call"),
        (CALL, calls(line("f", x=1), line("g")), 2, (0.5 + 2) / 5, "extra_call"),
        (CALL, calls(line("f", x=1), "{broken"), 0, (0.5 + 2) / 5 / 2, "bad_json"),
        (calls(line("f", x=1), line("g")), CALL, 2, (0.5 + 2) / 4, "missing_call"),
        (calls(line("f"), line("g")), calls(line("g"), line("f")), 2, 1, "ok"),
        (calls(line("f"), line("f")), calls(line("f"), line("g")), 2, (1 / 3 + 1) / 3, "wrong_name"),
        # the best assignment pairs {x: 1, y: 3} with itself and {x: 5, y: 2} with {x: 1, y: 2}
        (calls(line("f", x=1, y=2), line("f", x=1, y=3)), calls(line("f", x=1, y=3), line("f", x=5, y=2)), 2, 6 / 7,
         "wrong_parameter_values"),
    ],
)  # fmt: skip
def test_scores_by_hand(truth, response, form, accuracy, reason):
    result = scored(response, truth)
    assert result.format == form
    assert result.correctness == pytest.approx(2 * (2 * accuracy - 1))
    assert result.total == result.format + result.correctness
    assert result.parts["format"] == (form > 0)
    assert result.reason == reason


def test_parts_are_taken_before_the_format_is_looked_at():
    truth = calls(line("f", x=1, y=2), line("g", z=3))
    result = scored("junk " + calls(line("f", x=1, y=0), line("h")), truth)
    assert result.format == 0
    assert result.parts == pytest.approx(
        {"format": 0, "name": 1 / 3, "parameter_names": 1 / 2, "parameter_values": 1 / 3, "exact": 0}
    )


@pytest.mark.parametrize(
    "thought",
    ["use <tool_call> and <response> tags", "a <tool_call>\n{}\n</tool_call> block", "<response> x </response>"],
)
def test_tags_quoted_in_the_thought_cost_nothing(thought):
    assert scored(CALL.replace(" t ", thought), CALL).total == 4.0


def test_guessing_again_never_pays():
    """K calls wanted, the first of them right: any further call, wrong or repeated, lowers the score."""
    truth = calls(*[line("f", x=i, y=0) for i in range(3)])
    made = [line("f", x=i, y=0) for i in range(3)]
    for extra in (line("f", x=0, y=0), line("f", x=9, y=9), line("g"), "{broken"):
        totals = [scored(calls(*made, *[extra] * n), truth).total for n in range(5)]
        assert totals == sorted(totals, reverse=True)
        assert len(set(totals)) == len(totals)


def test_the_order_of_calls_and_parameters_does_not_matter():
    rng = random.Random(0)
    for _ in range(100):
        wanted, made = ([random_call(rng) for _ in range(rng.randrange(1, 6))] for _ in range(2))
        expected = scored(calls(*map(dump, made)), calls(*map(dump, wanted))).total
        for _ in range(4):
            for group in (wanted, made):
                rng.shuffle(group)
                for _, parameters in group:
                    rng.shuffle(parameters)
            assert scored(calls(*map(dump, made)), calls(*map(dump, wanted))).total == pytest.approx(expected)


def random_call(rng: random.Random) -> tuple[str, list]:
    return rng.choice("fg"), [(key, rng.randrange(3)) for key in "xyz" if rng.random() < 0.6]


def dump(call: tuple[str, list]) -> str:
    return line(call[0], **dict(call[1]))


def test_accuracy_is_the_best_over_all_assignments():
    rng = random.Random(1)
    for _ in range(100):
        wanted, made = ([random_call(rng) for _ in range(rng.randrange(1, 5))] for _ in range(2))
        result = scored(calls(*map(dump, made)), calls(*map(dump, wanted)))
        assert result.correctness == pytest.approx(2 * (2 * exhaustive_accuracy(made, wanted) - 1))


def exhaustive_accuracy(made, wanted) -> float:
    """S_acc from its definition, trying every assignment."""
    names = sorted({name for name, _ in made + wanted})
    count = [([n for n, _ in made].count(name), [n for n, _ in wanted].count(name)) for name in names]
    jaccard = sum(min(pair) for pair in count) / sum(max(pair) for pair in count)
    slots = list(range(len(made))) + [None] * len(wanted)
    best = 0.0
    for choice in set(itertools.permutations(slots, len(wanted))):
        points = 0.0
        for target, index in zip(wanted, choice, strict=True):
            if index is not None and made[index][0] == target[0]:
                ours, theirs = dict(made[index][1]), dict(target[1])
                union = set(ours) | set(theirs)
                points += len(set(ours) & set(theirs)) / len(union) if union else 1.0
                points += sum(theirs[key] == ours.get(key) for key in theirs)
        best = max(best, points)
    possible = sum(1 + len(parameters) for _, parameters in wanted)
    return (jaccard + best) / (1 + max(1, len(made) / len(wanted)) * possible)


def test_of_equally_good_assignments_the_one_with_more_equal_values_counts_whatever_the_order():
    """Names 1 + 1/2 and one equal value, or names 1/2 + 0 and two: 2.5 either way."""
    wanted = [line("f", a=1, b=1), line("f", a=2, b=2, c=3, d=3)]
    made = [line("f", a=2, b=2), line("f", c=3, d=4)]
    for ours, theirs in itertools.product(itertools.permutations(made), itertools.permutations(wanted)):
        parts = scored(calls(*ours), calls(*theirs)).parts
        assert (parts["parameter_names"], parts["parameter_values"]) == (0.25, 2 / 6)


@pytest.mark.parametrize(
    "text, reason",
    [
        (THOUGHT, "neither a call"),
        ("", "neither a call"),
        (calls('{"name": f}'), "bad_json"),
        (calls('{"name": "f", "parameters": {"x": NaN}}'), "bad_number"),
        (calls('{"name": "f", "parameters": null}'), "bad_call"),
        (calls('{"name": "f", "parameters": {"x": 1, "x": 2}}'), "duplicate_key"),
        (THOUGHT + "<tool_call>\n</tool_call>", "empty_tool_call"),
        (CALL.removesuffix("</tool_call>"), "unclosed_tool_call"),
        (CALL + "\n" + CALL, "tag_in_think"),
        (CALL + CALL.removeprefix(THOUGHT), "repeated_tool_call"),
        ("x" * 70_000, "too_large"),
        (CALL.replace("f", "\ud800"), "surrogates"),
    ],
)
def test_a_ground_truth_that_wants_nothing_readable_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_ground_truth(text)


@pytest.mark.parametrize(
    "text",
    [
        CALL.removeprefix(THOUGHT),
        CALL.replace("\n", ""),
        CALL.replace(" t ", " <tool_call> or <response> "),
        calls('{"name": "f", "arguments": {"x": 1}, "id": "c1"}'),
        calls(line("f", x=1), "", "").replace("\n\n\n", "\n\n"),
    ],
)
def test_a_ground_truth_may_be_laid_out_freely(text):
    truth = parse_ground_truth(text)
    assert [(call.name, call.parameters) for call in truth.calls] == [("f", {"x": "1"})]
    assert not truth.response


@pytest.mark.parametrize("ramp, scale", [("linear", 0.25), ("none", 1.0)])
def test_without_a_ramp_the_scales_are_those_of_the_end(ramp, scale):
    reward = build_reward(load([], [f"reward.ramp={ramp}"]))
    wrong_value = calls(line("f", x=2)).encode()
    result = reward.score(wrong_value, reward.read(CALL), progress=0.25, step=7)
    assert result == score(wrong_value, parse_ground_truth(CALL), progress=scale)


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes"])
def test_a_thought_that_the_prompt_opened_counts(answer_format):
    reward = build_reward(load([], [f"data.answer_format={answer_format}"]))
    answer = CALL.removeprefix("<think>").replace("parameters", "arguments").encode()
    truth = reward.read(CALL)
    assert reward.score(answer, truth, progress=0.0, step=0, think_open=True).total == 4.0
    assert reward.score(answer, truth, progress=0.0, step=0).format == 0.0


def test_answers_follow_the_grammar_and_ground_truths_are_always_toolrl():
    reward = build_reward(load([], ["data.answer_format=hermes"]))
    truth = reward.read(calls(line("f", x=1), line("g")))
    blocks = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in (line("f", x=1), line("g")))
    assert reward.score((THOUGHT + blocks).encode(), truth, progress=0.0, step=0).total == 4.0


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_its_range_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        scored(CALL, CALL, progress)


@needs_shared
@pytest.mark.parametrize("name", ["rlla_train_sample.parquet", "test.parquet"])
def test_real_ground_truths_score_full_marks_against_themselves(name):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    rows = pyarrow.read_table(SHARED / name).to_pylist()
    for row in rows:
        truth = row["reward_model"]["ground_truth"]
        result = scored(truth, truth, 0.3)
        assert (result.total, result.reason) == (4.0, "ok")


@needs_shared
def test_real_and_mutated_answers_stay_in_bounds_and_only_the_wanted_action_is_perfect():
    """The golden responses of the published reward: every kind of damage, 434 cases."""
    for text in (SHARED / "golden" / "reward.jsonl").read_text().splitlines():
        case = json.loads(text)
        try:
            truth = parse_ground_truth(case["ground_truth"])
        except ValueError:
            continue
        result = score(case["response"].encode(), truth, progress=0.5)
        assert -2.5 <= result.total <= 4.0
        assert all(0.0 <= part <= 1.0 for part in result.parts.values())
        assert (result.total == 4.0) == (result.reason == "ok")
        if case["kind"] in {
            "placeholder_exact",
            "thought_mentions_tags",
            "reordered_calls",
            "reordered_params",
            "key_order",
        }:
            assert result.total == 4.0
        if case["kind"] in {
            "no_think",
            "two_thinks",
            "same_block_twice",
            "json_array",
            "duplicated_call",
            "prefix_text",
        }:
            assert result.correctness < 2.5
