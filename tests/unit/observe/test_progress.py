"""The progress line."""

import io

import pytest

from rest_megatron.config import load
from rest_megatron.config.schema import AlarmsConfig
from rest_megatron.observe.alarms import Alarms
from rest_megatron.observe.progress import ALARMS, ProgressLine, format_line, open_progress
from tests.unit.observe.shown import Terminal

METRICS = {
    "reward/mean": 2.3456,
    "reward/format": 0.98,
    "reward/exact": 0.5,
    "entropy/format": 0.054,
    "entropy/tool_name": 0.028,
    "entropy/parameters": 0.103,
    "entropy/cot": 1.29,
    "rollout/length": 33.4,
    "rollout/weight_version": 12.0,
    "mismatch/mean": 0.00000123,
    "rollout/tokens_per_second": 377.2,
    "actor/grad_norm": 1.3023,
    "time/step": 2.2,
}


def test_a_line_holds_what_one_watches():
    assert format_line(7, 100, METRICS, 192.0) == (
        "step   7/100  2.2 s  ETA 3m12s  reward 2.346  format 0.98  exact 0.50  len 33  mismatch 1.2e-06  v 12  "
        "gnorm 1.3  tok/s 377  H format 0.054  name 0.028  params 0.103  cot 1.290"
    )


def test_a_line_leaves_out_what_a_step_does_not_have():
    assert format_line(1, 9, {"actor/loss": 0.5}, None) == "step 1/9  loss 0.5000"
    unseen = {"entropy/cot": float("nan"), "actor/grad_norm": float("inf")}
    assert format_line(1, 9, unseen, None) == "step 1/9  gnorm inf"


def test_a_line_begins_with_the_alarms_that_last():
    assert format_line(7, 9, {"alarm/short_answers": 1.0, "alarm/format_hacking": 0.0, "actor/loss": 0.5}, None) == (
        "step 7/9  SHORT ANSWERS  loss 0.5000"
    )
    everything = {name: 1.0 for _, name in ALARMS} | METRICS
    line = format_line(7, 9, everything, 3.0)
    assert line.startswith("step 7/9  SHORT ANSWERS  FORMAT HACKING  MISMATCH  CONTROL TOKENS  2.2 s  ETA 3s  reward")


def test_alarms_on_the_line_are_those_there_are():
    assert {name for _, name in ALARMS} == Alarms(AlarmsConfig()).metrics.keys()


def test_each_step_has_its_own_line_outside_a_terminal():
    stream = io.StringIO()
    progress = ProgressLine(stream)
    progress.step(1, 3, {"time/step": 10.0})
    progress.step(2, 3, {"time/step": 20.0})
    progress.write("done \x1b[2J")
    progress.close()
    assert stream.getvalue() == "step 1/3  10.0 s  ETA 20s\nstep 2/3  20.0 s  ETA 15s\ndone [2J\n"


def test_a_terminal_keeps_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "16")
    stream = Terminal()
    progress = ProgressLine(stream)
    progress.step(1, 3, {"actor/loss": 0.5})
    progress.step(2, 3, {"actor/loss": 0.25})
    progress.write("done")
    progress.close()
    assert stream.getvalue() == "\r\x1b[2Kstep 1/3  loss \r\x1b[2Kstep 2/3  loss \ndone\n"


@pytest.mark.parametrize(
    "number, quiet, shown", [(0, "false", "step 1/2\nend\n"), (0, "true", "end\n"), (1, "false", "")]
)
def test_only_rank_0_speaks_and_quiet_leaves_out_steps(capsys, number, quiet, shown):
    with open_progress(number, load([], [f"log.quiet={quiet}"])) as progress:
        progress.step(1, 2, {})
        progress.write("end")
    assert capsys.readouterr().out == shown
