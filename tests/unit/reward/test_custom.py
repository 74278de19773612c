"""`rest_megatron.reward.custom`: a user's own reward function."""

import json
import sys

import numpy as np
import pytest

from rest_megatron.config import load
from rest_megatron.errors import ConfigError, DataError
from rest_megatron.reward.custom import FunctionReward
from rest_megatron.reward.presets import build_reward

SOURCE = """
from dataclasses import dataclass

@dataclass
class Overlap:
    shared: int

def overlap(response: str, ground_truth: str, *, progress: float, step: int) -> float:
    return Overlap(len(set(response) & set(ground_truth))).shared + progress + step

def fails(response, ground_truth, **settings):
    return {}[response]

def no_progress(response, ground_truth, *, step):
    return 0.0

CONSTANT = 3
"""


def build(name: str):
    return build_reward(load([], [f"reward.function={name}"]))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file of reward functions that can also be imported as `rewards_of_mine`."""
    (tmp_path / "rewards_of_mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "rewards_of_mine.py"
    sys.modules.pop("rewards_of_mine", None)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_function_is_found_by_file_or_by_module(module, as_file):
    reward = build(f"{module if as_file else 'rewards_of_mine'}:overlap")
    result = reward.score(b"abc", reward.read("bcd"), progress=0.5, step=10)
    assert (result.total, result.format, result.correctness) == (12.5, 0.0, 12.5)
    assert (result.parts, result.reason) == ({}, "ok")


def test_a_file_is_found_from_the_working_directory(module, monkeypatch):
    monkeypatch.chdir(module.parent)
    assert build("./rewards_of_mine.py:overlap").score(b"a", "a", progress=0.0, step=0).total == 1.0


@pytest.mark.parametrize(
    "name, reason",
    [
        ("overlap", "names no function"),
        (":overlap", "names no function"),
        ("{file}:missing", "missing is missing in"),
        ("{file}:CONSTANT", "CONSTANT is a int, not a function"),
        ("{file}:no_progress", "cannot be called as function.response: str.*unexpected keyword argument 'progress'"),
        ("{folder}/absent.py:f", "FileNotFoundError"),
        ("{folder}/broken.py:f", "SyntaxError"),
        ("{folder}/raises.py:f", "ZeroDivisionError.* at .*raises.py:2"),
        ("{folder}/exits.py:f", "SystemExit"),
        ("no_such_package.rewards:f", "No module named 'no_such_package'"),
        ("math:isfinite", "cannot be called"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_job(module, name, reason):
    folder = module.parent
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("\n1 / 0\n")
    (folder / "exits.py").write_text("raise SystemExit(0)\n")
    name = name.format(file=module, folder=folder)
    with pytest.raises(ConfigError, match=reason) as caught:
        build(name)
    assert f"reward.function={name} (override: " in str(caught.value)


def returning(result):
    return FunctionReward(lambda response, truth, *, progress, step: result, "reward.function=mine.py:f")


@pytest.mark.parametrize(
    "result, total, parts, reason",
    [
        (1, 1.0, {}, "ok"),
        (True, 1.0, {}, "ok"),
        (-0.25, -0.25, {}, "ok"),
        (np.float32(0.5), 0.5, {}, "ok"),
        ({"score": 2}, 2.0, {}, "ok"),
        ({"score": 2, "length": 7, "right": False, "reason": "late"}, 2.0, {"length": 7.0, "right": 0.0}, "late"),
    ],
)
def test_numbers_and_dicts_are_rewards(result, total, parts, reason):
    score = returning(result).score(b"", "x", progress=0.0, step=0)
    assert (score.total, score.parts, score.reason) == (total, parts, reason)
    json.dumps(score.parts)


@pytest.mark.parametrize(
    "result, reason",
    [
        (None, "NoneType where a number is needed"),
        ("1", "str where a number is needed"),
        (1j, "complex where a number is needed"),
        (float("nan"), "nan, which is not a finite number"),
        (-float("inf"), "-inf, which is not a finite number"),
        (10**400, "inf, which is not a finite number"),
        ({}, 'a dict without "score"'),
        ({"score": None}, "'score': NoneType"),
        ({"score": 1, "length": [1]}, "'length': list"),
        ({"score": 1, "length": float("nan")}, "'length': nan"),
        ({"score": 1, "reason": 3}, "a reason that is int"),
    ],
)
def test_anything_else_ends_the_run(result, reason):
    with pytest.raises(DataError, match=reason) as caught:
        returning(result).score(b"an answer", "x", progress=0.0, step=0)
    assert "reward.function=mine.py:f returned" in str(caught.value)
    assert "'an answer' of 9 characters" in str(caught.value)


def test_an_exception_names_function_response_and_place(module):
    name = f"{module}:fails"
    with pytest.raises(DataError) as caught:
        build(name).score(b"\x1b[31mred\xff" + b"x" * 1000, "truth", progress=0.0, step=0)
    message = str(caught.value)
    line = SOURCE.splitlines().index("    return {}[response]") + 1
    assert f"reward.function={name} raised KeyError(" in message
    assert f"at {module}:{line}" in message
    assert "of 1009 characters" in message
    assert "\\x1b[31mred\ufffd" in message and "\x1b" not in message
    assert len(message) < 1000
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_exits_ends_the_run_with_an_error():
    reward = FunctionReward(lambda *_, **__: sys.exit(3), "mine")
    with pytest.raises(DataError, match=r"mine raised SystemExit\(3\) at .*, on the response 'answer'"):
        reward.score(b"answer", "truth", progress=0.0, step=1)


def test_any_ground_truth_but_a_blank_one_is_read():
    assert returning(0).read("anything at all") == "anything at all"
    with pytest.raises(ValueError, match="blank"):
        returning(0).read(" \n")


@pytest.mark.parametrize("name", ["mean", "correctness", "judge", "judged", "overlong"])
def test_a_part_may_not_take_the_name_of_a_metric_of_ours(name):
    reward = FunctionReward(lambda *_, **__: {"score": 1.0, name: 0.5}, "mine")
    with pytest.raises(DataError, match=f"a part called '{name}'"):
        reward.score(b"answer", "truth", progress=0.0, step=1)
