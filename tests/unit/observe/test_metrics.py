"""Metrics files."""

import json

import pytest

from rest_megatron.config import load
from rest_megatron.errors import ConfigError
from rest_megatron.observe import metrics as module
from rest_megatron.observe.metrics import MetricsLogger, NoMetrics, open_metrics, read_rows


def test_one_line_per_step_is_on_disk_at_once(tmp_path):
    with open_metrics(0, tmp_path, load()) as metrics:
        metrics.log(1, {"reward/mean": 0.5, "actor/lr": 1e-6})
        metrics.log(2, {"reward/mean": 1})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "reward/mean": 0.5, "actor/lr": 1e-6},
        {"step": 2, "reward/mean": 1.0},
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_become_null(tmp_path, value):
    with open_metrics(0, tmp_path, load()) as metrics:
        metrics.log(1, {"a": value, "b": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": 2.0}\n'


def test_tensors_and_numpy_numbers_are_numbers(tmp_path):
    torch = pytest.importorskip("torch")
    with open_metrics(0, tmp_path, load()) as metrics:
        metrics.log(1, {"a": torch.tensor(0.25), "b": torch.tensor(2.0).numpy()})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 0.25, "b": 2.0}]


def test_evaluations_have_their_own_file(tmp_path):
    with open_metrics(0, tmp_path, load()) as metrics:
        metrics.log_evaluation(0, {"reward/mean": 0.5})
        metrics.log_evaluation(9, {"reward/mean": 0.7})
    assert read_rows(tmp_path / "eval.jsonl") == [{"step": 0, "reward/mean": 0.5}, {"step": 9, "reward/mean": 0.7}]
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("evaluated", [None, 0])
def test_without_an_evaluation_there_is_no_file_of_them(tmp_path, evaluated):
    (tmp_path / "eval.jsonl").write_text(
        '{"step": 1, "reward/mean": 0.5}\n'
    )  # of an earlier run, or lost with its step
    with open_metrics(0, tmp_path, load(), after=evaluated, evaluated=evaluated) as metrics:
        metrics.log(1, {"a": 1.0})
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


def test_a_run_starts_its_files_anew(tmp_path):
    for value in (1.0, 2.0):
        with open_metrics(0, tmp_path / "deep" / "run", load()) as metrics:
            metrics.log(1, {"a": value})
    assert read_rows(tmp_path / "deep" / "run" / "metrics.jsonl") == [{"step": 1, "a": 2.0}]


def test_a_resumed_run_keeps_the_rows_of_the_steps_it_has_and_loses_those_it_does_again(tmp_path):
    with open_metrics(0, tmp_path, load()) as metrics:
        for step in range(1, 6):
            metrics.log(step, {"a": step / 3})
            metrics.log_evaluation(step, {"b": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "a"')  # cut off by a kill
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with open_metrics(0, tmp_path, load(), after=3, evaluated=2) as metrics:
        metrics.log(4, {"a": 9.0})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [*before[:3], '{"step": 4, "a": 9.0}']
    assert [row["step"] for row in read_rows(tmp_path / "eval.jsonl")] == [1, 2]


@pytest.mark.parametrize("number", [1, 7])
def test_other_ranks_write_nothing(tmp_path, number):
    with open_metrics(number, tmp_path / "run", load([], ["log.wandb=offline"])) as metrics:
        metrics.log(1, {"a": 1.0})
        metrics.log_evaluation(1, {"a": 1.0})
    assert isinstance(metrics, NoMetrics) and not (tmp_path / "run").exists()


def test_half_written_lines_and_missing_files_are_survived(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1, "a": 1.0}\n\xff\n[1]\n{"a": 2}\n{"step": 2, "a"')
    assert read_rows(path) == [{"step": 1, "a": 1.0}]


def test_files_are_closed_when_a_tracker_does_not_start(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(module, "open", lambda *a, **k: opened.append(open(*a, **k)) or opened[-1], raising=False)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        MetricsLogger(tmp_path, load([], ["log.wandb=offline"]).log, {})
    assert len(opened) == 1 and opened[0].closed
