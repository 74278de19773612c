"""Weights & Biases and TensorBoard."""

import os
from pathlib import Path

import pytest

from rest_megatron.config import dump, load
from rest_megatron.errors import ConfigError
from rest_megatron.observe.metrics import open_metrics
from rest_megatron.observe.report import write_report

SECRET = "0123456789abcdef0123456789abcdef01234567"


def test_a_resumed_run_keeps_its_id_at_weights_and_biases_and_a_new_one_gets_another(tmp_path):
    def its_id(after):
        with open_metrics(0, tmp_path, load([], ["log.wandb=offline"]), after, after) as metrics:
            metrics.log(1, {"a": 1.0})
        return (tmp_path / "wandb-id.txt").read_text()

    first = its_id(None)
    assert its_id(1) == first and its_id(None) != first


def test_tensorboard_forgets_the_steps_that_a_run_does_again(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    config = load([], ["log.tensorboard=true"])
    for after, steps in ((None, (1, 2, 3)), (1, (2,))):
        with open_metrics(0, tmp_path, config, after, after) as metrics:
            for step in steps:
                metrics.log(step, {"a": float(10 * len(steps) + step)})
    found = reader(str(tmp_path / "tensorboard")).Reload().Scalars("a")
    assert [(event.step, event.value) for event in found] == [(1, 31.0), (2, 12.0)]


def test_wandb_online_without_credentials_is_refused(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(ConfigError, match="log.wandb=offline needs neither"):
        open_metrics(0, tmp_path, load([], ["log.wandb=online"]))


def test_trackers_see_every_value_and_no_file_holds_a_secret(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["train", f"deepspeed.password={SECRET}"])
    config = load([], ["log.wandb=offline", "log.tensorboard=true", f"deepspeed={{password: {SECRET}, steps: 3}}"])
    with open_metrics(0, tmp_path, config) as metrics:
        (tmp_path / "config.yaml").write_text(dump(config))
        metrics.log_evaluation(0, {"reward/mean": 0.25})
        metrics.log(1, {"reward/mean": 0.5})
    write_report(tmp_path)

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == {
        "eval/reward/mean": 0.25,
        "reward/mean": 0.5,
    }
    (recorded,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"eval/reward/mean" in recorded.read_bytes() and b"***" in recorded.read_bytes()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"metrics.jsonl", "eval.jsonl", "config.yaml", "report.html"} <= {path.name for path in written}
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in "".join(capfd.readouterr())
    assert os.environ["WANDB_API_KEY"] == SECRET and Path.cwd() not in written
