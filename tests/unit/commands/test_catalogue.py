"""The declarations of the commands."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from rest_megatron.commands.catalogue import COMMANDS, Score


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_each_command_has_a_module_and_a_summary_of_one_line(command):
    assert find_spec(command.module) is not None
    assert "\n" not in command.summary and not command.summary.endswith(".")


@pytest.mark.parametrize(
    "given, step, progress",
    [({}, 0, 0.0), ({"step": 50}, 50, 0.25), ({"step": 500}, 500, 1.0), ({"progress": 0.5}, 100, 0.5)],
)
def test_step_and_progress_follow_from_each_other(given, step, progress):
    assert Score(input=Path("a"), output=Path("b"), **given).resolved(200) == (step, progress)
