"""`rest_megatron.reward.reference`: the published reward, against its own outputs and against cases by hand."""

import json
import time

import pytest

from rest_megatron.config import load
from rest_megatron.reward.presets import build_reward
from rest_megatron.reward.reference import correctness_range, format_range, read_reference, reference_score
from tests.paths import SHARED
from tests.unit.reward.written import THOUGHT, calls, line

GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/data/golden")
VARIANTS = {
    "CORRECTMAX1": "correct_max_1",
    "MAX1STEP30MAX3": "max_1_step_30_max_3",
    "COARSEREWARD": "coarse",
    "REFINEDREWARD": "refined",
    "INTERMEDIATEREWARD": "intermediate",
}


ONE = calls(line("f", x=1))
SAYS = THOUGHT + "<response> Hi. </response>"
BOTH = ONE + "\n<response> Hi. </response>"


def scored(response: str, truth: str, step: int = 0, *, ramp: bool = False, variant: str = "none", **options):
    return reference_score(response.encode(), read_reference(truth), step=step, ramp=ramp, variant=variant, **options)


def golden(name: str) -> list[dict]:
    return [json.loads(text) for text in (GOLDEN / name).read_text().splitlines()]


@needs_golden
@pytest.mark.parametrize("ramp, switch", [("linear", "1"), ("none", "0")])
def test_every_golden_case_that_the_published_code_scores(ramp, switch):
    reward = build_reward(load([], ["reward.preset=reference", f"reward.ramp={ramp}"]))
    compared = refused = 0
    for case in golden("reward.jsonl"):
        expected = case["scores"][switch]
        if any("error" in scores for scores in expected.values() if isinstance(scores, dict)):
            with pytest.raises(ValueError, match="cannot be read: bad_json"):
                reward.read(case["ground_truth"])
            refused += 1
            continue
        truth = reward.read(case["ground_truth"])
        for step, scores in expected.items():
            result = reward.score(case["response"].encode(), truth, progress=0.0, step=int(step))
            assert [result.total, result.format, result.correctness] == pytest.approx(scores, abs=1e-9), case["id"]
            compared += 1
    assert compared > 2000 and refused > 0


@needs_golden
@pytest.mark.parametrize("switch", VARIANTS)
def test_every_golden_case_of_a_variant(switch):
    overrides = ["reward.preset=reference", "reward.ramp=none", f"reward.reference_variant={VARIANTS[switch]}"]
    reward = build_reward(load([], overrides))
    for case in golden("reward_variants.jsonl"):
        truth = reward.read(case["ground_truth"])
        for step, scores in case["variants"][switch].items():
            result = reward.score(case["response"].encode(), truth, progress=0.0, step=int(step))
            assert [result.total, result.format, result.correctness] == pytest.approx(scores, abs=1e-9), case["id"]


@pytest.mark.parametrize(
    "step, wrong, right, worth",
    [(0, -2, 2, 2), (75, -1, 1.5, 2.5), (100, -1, 4 / 3, 2 + 2 / 3), (150, -1, 1, 3), (1000, -1, 1, 3)],
)
def test_the_ramp_runs_over_150_steps(step, wrong, right, worth):
    assert format_range(step, ramp=True, variant="none") == pytest.approx((wrong, right))
    assert correctness_range(step, ramp=True, variant="none") == pytest.approx((-worth, worth))
    assert scored(ONE, ONE, step, ramp=True).total == pytest.approx(right + worth)
    assert scored("", ONE, step, ramp=True).total == pytest.approx(wrong - worth)


@pytest.mark.parametrize(
    "defect, truth, response, form, correctness, reason",
    [
        ("format looks at tags alone", ONE, calls("[]"), 1, -3, "bad_call"),
        ("text anywhere", ONE, f"a {ONE} b", 1, 3, "ok"),
        ("two thoughts", ONE, THOUGHT + ONE, 1, 3, "ok"),
        ("no link between format and calls", ONE, ONE.removeprefix(THOUGHT), 0, 3, "wrong_format"),
        ("a response is not wanted", ONE, BOTH, 0, 3, "wrong_format"),
        ("a call may come with a response", SAYS, ONE + SAYS, 1, 0, "ok"),
        ("a call where none is wanted costs no correctness", SAYS, ONE, 0, 0, "wrong_format"),
        ("no action wanted: one thought is all", THOUGHT, ONE, 1, 0, "ok"),
        ("a tag in a value changes what is wanted", calls(line("f", x="<response>")), ONE, 0, 1, "wrong_format"),
        ("a thought that names the tag", ONE, ONE.replace(" t ", " <tool_call> "), 0, -3, "wrong_format"),
        ("one bad line", calls(line("f"), line("g")), calls(line("f"), line("g"), ""), 1, 3, "ok"),
        ("one bad line", calls(line("f"), line("g")), calls(line("f"), "", line("g")), 1, -3, "bad_json"),
        ("arguments", ONE, ONE.replace("parameters", "arguments"), 1, -3, "bad_call"),
        ("true is 1", ONE, calls(line("f", x=True)), 1, 3, "ok"),
        ("the last of equal keys counts", ONE, ONE.replace('"x"', '"x": 2, "x"'), 1, 3, "ok"),
        ("order of calls costs nothing", calls(line("f"), line("g")), calls(line("g"), line("f")), 1, 3, "ok"),
        # 1 for names at 1/2, all points of the call: -3 + 6 * (1/2 + 2) / 3
        ("a copy is cheap", ONE, calls(*[line("f", x=1)] * 2), 1, 2, "extra_call"),
        # greedy: the first wanted call takes {x: 5, y: 2} for its y, and 2/7 are lost: -3 + 6 * 4 / 7
        ("greedy", calls(line("f", x=1, y=2), line("f", x=1, y=3)), calls(line("f", x=1, y=3), line("f", x=5, y=2)), 1,
         -3 + 6 * 4 / 7, "wrong_parameter_values"),
        # a match worth 0 is not consumed, so the second wanted call still gets it: -3 + 6 * (1/2 + 2) / 5
        ("nothing in common", calls(line("f", y=1), line("f", x=1)), calls(line("f", x=1)), 1, 0, "missing_call"),
    ],
)  # fmt: skip
def test_a_published_defect_is_kept(defect, truth, response, form, correctness, reason):
    result = scored(response, truth)
    assert (result.format, result.reason) == (form, reason)
    assert result.correctness == pytest.approx(correctness)
    assert result.total == result.format + result.correctness


@pytest.mark.parametrize(
    "variant, response, correctness, reason",
    [
        ("none", calls(line("g"), line("f", x=1)), 3, "ok"),
        ("coarse", calls(line("g"), line("f", x=1)), -3, "not_equal"),
        ("refined", calls(line("g"), line("f", x=1)), -3 + 6 * 3 / 4, "wrong_name"),
        ("intermediate", calls(line("g"), line("f", x=1)), 3, "ok"),
        ("coarse", calls(line("f", x=1), line("g")), 3, "ok"),
        ("refined", calls(line("f", y=1), line("g")), -3 + 6 * 2 / 4, "wrong_parameter_names"),
        ("none", calls(line("f", x=1, y=1), line("g")), -3 + 6 * 3.5 / 4, "wrong_parameter_names"),
        ("refined", calls(line("f", x=1, y=1), line("g")), -3 + 6 * 3 / 4, "wrong_parameter_names"),
        ("intermediate", calls(line("f", x=2), line("g")), -3 + 6 * 2 / 3, "wrong_parameter_names"),
        ("correct_max_1", calls(line("f", x=1, y=1), line("g")), -1 + 2 * 3.5 / 4, "wrong_parameter_names"),
    ],
)  # fmt: skip
def test_variants_by_hand(variant, response, correctness, reason):
    result = scored(response, calls(line("f", x=1), line("g")), variant=variant)
    assert (result.correctness, result.reason) == (pytest.approx(correctness), reason)


def test_parts_say_what_was_right():
    truth = calls(line("f", x=1, y=2), line("g", z=3))
    result = scored("junk " + calls(line("f", x=1, y=0), line("h")), truth)
    assert result.parts == pytest.approx(
        {"format": 1, "name": 1 / 3, "parameter_names": 1 / 2, "parameter_values": 1 / 3, "exact": 0}
    )
    assert set(scored(SAYS, SAYS).parts.values()) == {1.0}
    assert set(scored("", SAYS).parts.values()) == {0.0}


@pytest.mark.parametrize(
    "text, reason",
    [
        (calls('{"name": f}'), "bad_json"),
        (calls(line("f"), "", line("g")), "bad_json"),
        (calls(), "bad_json"),
        (calls("[" * 10_000), "bad_json"),
        (calls("9" * 10_000), "bad_json"),
        (calls(*[line("f")] * 65), "too_many_calls"),
        ("x" * 70_000, "too_large"),
    ],
)
def test_a_ground_truth_that_would_end_the_published_run_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_reference(text)


@pytest.mark.parametrize(
    "text", ["1", '"f"', '{"name": "f"}', '{"parameters": {}}', '{"name": "f", "parameters": null}', '{"name": []}']
)
def test_a_ground_truth_of_other_json_scores_only_its_equal(text):
    assert scored(calls(text), calls(text)).correctness == 3
    assert scored(calls(line("f", x=1)), calls(text)).correctness == -3


def test_a_thought_that_the_prompt_opened_counts():
    answer = ONE.removeprefix("<think>")
    assert scored(answer, ONE).format == 0
    assert scored(answer, ONE, think_open=True).total == 4


def nested(depth: int, core: str) -> str:
    return '{"a": [' * depth + core + "]}" * depth


@pytest.mark.parametrize("variant", ["none", "refined", "intermediate"])
def test_deep_values_compare_as_in_python(variant):
    """Against Python's own ==, which the published code uses: lists, objects in any order, true and 1, NaN."""
    cores = ["1", "true", "1.0", "2", '"1"', "null", "NaN", "[]", "{}", "[1, 2]", "[2, 1]", "[[1], 2]", "[1, [2]]"]
    cores += ['{"a": 1, "b": [2]}', '{"b": [2.0], "a": true}', '{"a": 1}', '{"a": [1]}', "[NaN]", "[[]]", '["a", 1]']
    cores += "0 -0.0 1e16 10000000000000000 10000000000000001 1e-7 0.1 9007199254740992 9007199254740993 -1".split()
    cores += ["9007199254740992.0", "1e999", '"1.0"', '"a\\"1.0"', str(int(1e300)), "1e300", "1" * 400]
    for wanted in cores:
        for made in cores:
            truth, answer = (f'{{"name": "f", "parameters": {{"x": {nested(3, core)}}}}}' for core in (wanted, made))
            equal = json.loads(answer) == json.loads(truth)
            result = scored(calls(answer, line("g")), calls(truth, line("h")), variant=variant)
            assert result.parts["parameter_values" if variant != "intermediate" else "parameter_names"] == (
                pytest.approx(float(equal) if variant != "intermediate" else equal / 2)
            ), (wanted, made)


@pytest.mark.parametrize("variant", ["none", "refined", "intermediate", "coarse"])
def test_many_calls_with_deep_values_that_differ_inside_score_in_time(variant):
    def many(start: int) -> str:
        return calls(*[f'{{"name": "f", "parameters": {{"x": {"[" * 485}{start + i}{"]" * 485}}}}}' for i in range(64)])

    truth, answer = read_reference(many(100)), many(200).encode()
    assert len(answer) <= 64 * 1024
    times = []
    for _ in range(5):
        begin = time.process_time()
        reference_score(answer, truth, step=1, ramp=True, variant=variant)
        times.append(time.process_time() - begin)
    assert min(times) < 0.05
