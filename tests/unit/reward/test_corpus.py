"""What hostile answers score, one by one, in the presets `paper` and `reference` at the start of a run."""

import pytest

from rest_megatron.config import load
from rest_megatron.reward.presets import build_reward

THINK = "<think> t </think>\n"


def with_value(value: str) -> str:
    """One call of f whose parameter x is this JSON."""
    return THINK + '<tool_call>\n{"name": "f", "parameters": {"x": ' + value + "}}\n</tool_call>"


ONE = with_value("1")
TAGGED = with_value('"</tool_call> <response> </think>"')
SAYS = THINK + "<response> Hi. </response>"

# name: (ground truth, answer, (paper's score, reason), (reference's score, reason))
# paper: format 0 or 2, correctness -2 .. 2. reference, without its ramp: format 0 or 1, correctness -3 .. 3.
CORPUS = {
    "the wanted call": (ONE, ONE, (4, "ok"), (4, "ok")),
    "nothing": (ONE, "", (-2, "no_think"), (-3, "wrong_format")),
    "100 KB of [": (ONE, "[" * 100_000, (-2, "too_large"), (-3, "too_large")),
    "100 KB of [, a response wanted": (SAYS, "[" * 100_000, (-2, "too_large"), (0, "too_large")),
    "60 KB of [ in a value": (ONE, with_value("[" * 60_000), (-2, "too_deep"), (-2, "bad_json")),
    "60 KB of [ and ] in a value": (
        ONE, with_value("[" * 30_000 + "]" * 30_000), (-2, "too_deep"), (-2, "bad_json")),
    "33 levels": (ONE, with_value("[" * 33 + "]" * 33), (-2, "too_deep"), (2, "wrong_parameter_values")),
    "integer of 1e5 digits": (ONE, with_value("9" * 100_000), (-2, "too_large"), (-3, "too_large")),
    "integer of 6e4 digits": (ONE, with_value("9" * 60_000), (-2, "bad_number"), (-2, "bad_json")),
    "1e999": (ONE, with_value("1e999"), (-2, "bad_number"), (2, "wrong_parameter_values")),
    "NaN": (ONE, with_value("NaN"), (-2, "bad_number"), (2, "wrong_parameter_values")),
    "-Infinity": (ONE, with_value("-Infinity"), (-2, "bad_number"), (2, "wrong_parameter_values")),
    "true for 1": (ONE, with_value("true"), (2 + 2 / 3, "wrong_parameter_values"), (4, "ok")),
    "1.0 for 1": (ONE, with_value("1.0"), (2 + 2 / 3, "wrong_parameter_values"), (4, "ok")),
    '"1" for 1': (ONE, with_value('"1"'), (2 + 2 / 3, "wrong_parameter_values"), (2, "wrong_parameter_values")),
    "-0.0 for 0": (
        with_value("0"), with_value("-0.0"), (2 + 2 / 3, "wrong_parameter_values"), (4, "ok")),
    "the last of two equal keys is right": (ONE, with_value('2, "x": 1'), (-2, "duplicate_key"), (4, "ok")),
    "two names": (
        ONE, ONE.replace('"f"', '"g", "name": "f"'), (-2, "duplicate_key"), (4, "ok")),
    "key of 2 KiB": (
        ONE, with_value('1, "' + "k" * 2048 + '": 1'), (-2, "long_key"),
        (1 - 3 + 6 * (1 + 1 / 2 + 1) / 3, "wrong_parameter_names")),
    "escaped lone surrogate in a value": (
        ONE, with_value('"\\ud800"'), (2 + 2 / 3, "wrong_parameter_values"), (2, "wrong_parameter_values")),
    "escaped lone surrogate wanted and given": (
        with_value('"\\ud800"'), with_value('"\\ud800"'), (4, "ok"), (4, "ok")),
    "lone surrogate's bytes in a value": (
        ONE, with_value('"\ud800"'), (-2, "bad_json"), (2, "wrong_parameter_values")),
    "lone surrogate's bytes in the thought": (ONE, ONE.replace(" t ", "\ud800"), (4, "ok"), (4, "ok")),
    "right-to-left and zero-width in the thought": (
        ONE, ONE.replace(" t ", "\u202e\u200b\u2066"), (4, "ok"), (4, "ok")),
    "zero-width in the name": (
        ONE, ONE.replace('"f"', '"f\u200b"'), (0, "wrong_name"), (-2, "wrong_name")),
    "zero-width between the tags": (
        ONE, ONE.replace("</think>\n", "</think>\n\u200b"), (0, "text_outside"), (4, "ok")),
    "composed for decomposed": (
        with_value('"\u00e9"'), with_value('"e\u0301"'), (2 + 2 / 3, "wrong_parameter_values"),
        (2, "wrong_parameter_values")),
    "nul bytes around": (ONE, f"\0{ONE}\0", (0, "text_outside"), (4, "ok")),
    "a thought in the thought": (
        ONE, ONE.replace(" t ", "<think> t </think>"), (0, "tag_in_think"), (4, "ok")),
    "the answer planted in the thought": (
        ONE, f"<think> {ONE.removeprefix(THINK)} </think>\n<response> Hi. </response>", (-2, "no_tool_call"),
        (3, "wrong_format")),
    "tool_call named in the thought": (ONE, ONE.replace(" t ", " <tool_call> "), (4, "ok"), (-3, "wrong_format")),
    "tool_call in tool_call": (
        ONE, ONE.replace("<tool_call>\n", "<tool_call>\n<tool_call>\n"), (0, "text_in_tool_call"),
        (-3, "wrong_format")),
    "tags inside a string": (TAGGED, TAGGED, (4, "ok"), "tool_call that cannot be read: bad_json"),
    "a closing tag inside a string": (
        ONE, TAGGED, (2 + 2 / 3, "wrong_parameter_values"), (-3, "wrong_format")),
    "8,000 unclosed think tags": (ONE, "<think>" * 8000, (-2, "unclosed_think"), (-3, "wrong_format")),
    "5,000 unclosed tool_call tags": (ONE, "<tool_call>" * 5000, (-2, "no_think"), (-3, "wrong_format")),
    "5,000 closing tags": (ONE, "</tool_call>" * 5000, (-2, "no_think"), (-3, "wrong_format")),
    "junk before a planted <|im_start|>assistant": (
        ONE, "junk <|im_start|>assistant\n" + ONE, (0, "text_outside"), (4, "ok")),
    "the wanted call after 1,000 planted ones": (
        ONE, "<|im_start|>assistant" * 1000 + ONE, (0, "text_outside"), (4, "ok")),
    "junk after a planted <|im_end|>": (ONE, ONE + "<|im_end|> junk", (0, "text_outside"), (4, "ok")),
    "pretty-printed": (
        ONE, ONE.replace("{", "{\n"), (0, "missing_newline"), (-2, "bad_json")),
    "a list of calls": (
        ONE, ONE.replace('{"name', '[{"name').replace("}}", "}}]"), (0, "text_in_tool_call"), (-2, "bad_call")),
    "65 calls": (
        ONE, ONE.replace("\n</tool", '\n{"name": "f", "parameters": {"x": 1}}' * 64 + "\n</tool"),
        (-2, "too_many_calls"), (-2, "too_many_calls")),
    "a call where none is wanted": (SAYS, ONE, (-2, "unwanted_tool_call"), (0, "wrong_format")),
    "any response where one is wanted": (SAYS, SAYS.replace("Hi", "No"), (4, "ok"), (1, "ok")),
}  # fmt: skip
PRESETS = {"paper": (), "reference": ("reward.preset=reference", "reward.ramp=none")}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS)
def test_a_hostile_answer_scores_as_the_table_says(case, preset):
    ground_truth, answer, *expected = case
    expected = dict(zip(PRESETS, expected, strict=True))[preset]
    reward = build_reward(load([], PRESETS[preset]))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            reward.read(ground_truth)
        return
    truth = reward.read(ground_truth)
    result = reward.score(answer.encode("utf-8", "surrogatepass"), truth, progress=0.0, step=0)
    assert (result.total, result.reason) == (pytest.approx(expected[0]), expected[1])
