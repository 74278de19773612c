"""The benchmark of the loss kernels: it runs, and it tells right from wrong and present from missing."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.contestants import all_contestants
from benchmarks.floors import Rates, floor_seconds
from benchmarks.kernels import run_contestant
from benchmarks.measure import CpuMeter
from benchmarks.registry import Registry
from benchmarks.table import format_table, is_wrong, make_rows
from benchmarks.worker import Result, gradient_error, measure_contestant, run_apart
from benchmarks.workload import Case, make_batch, policy_loss
from tests.paths import ROOT

RATES = Rates("cpu", "a machine", copy=1e9, gemm=1e12)
CASES = {
    "statistics": Case("statistics", 16, 128, None, 0.0, "bf16", "cpu"),
    "logits": Case("logits", 16, 128, None, 0.01, "bf16", "cpu"),
    "hidden": Case("hidden", 16, 128, 64, 0.01, "bf16", "cpu"),
}


def make_contestant(function, level="logits", **fields):
    registry = Registry()
    registry.contestant("another", level, "something", **fields)(function)
    return registry.contestants[f"{level}/another"]


def test_the_command_prints_a_table_and_writes_json_and_a_picture(tmp_path):
    numbers, picture = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--device", "cpu", "--shape", "16", "128", "--hidden", "64", "--repeat", "1"]
    options += ["--only", "ours, in place", "eager", "flash", "--json", str(numbers), "--plot", str(picture)]
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("ours, in place", "eager vocab-parallel"):
        assert done.stdout.count(f"\n  {name} ") == 2
    assert "flash-attn CE: needs CUDA" in done.stdout
    written = json.loads(numbers.read_text(), parse_constant=pytest.fail)
    assert written["hardware"] and "kernels.py" in written["command"]
    assert torch.__version__.startswith(written["versions"]["torch"])
    ran = [row for row in written["rows"] if not row["reason"]]
    assert len(ran) == 4 and not any(row["wrong"] for row in ran)
    assert all(row["seconds"] > 0 and row["x_floor"] > 0 and row["extra_bytes"] >= 0 for row in ran)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", [k for k, c in all_contestants().contestants.items() if k.endswith("/ours")])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_our_gradients_pass_the_check(key, dtype):
    contestant = all_contestants().contestants[key]
    case = replace(CASES[contestant.level], dtype=dtype)
    error = gradient_error(contestant, contestant.load(), case, None)
    assert not is_wrong(Result(case, contestant.name, "", 1.0, error=error))


def log_probs(batch, temperature):
    return torch.log_softmax(batch.logits.float() / temperature, -1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (lambda batch: policy_loss(batch, log_probs(batch, batch.temperature)), False),
        (lambda batch: policy_loss(batch, log_probs(batch, 1.0)), True),
        (lambda batch: policy_loss(batch, log_probs(batch, batch.temperature)) * 1.05, True),
        (lambda batch: policy_loss(batch, log_probs(batch, batch.temperature)) * math.nan, True),
        (lambda batch: policy_loss(replace(batch, clip_ratio=0.3), log_probs(batch, batch.temperature)), True),
    ],
    ids=["right", "no temperature", "scaled", "not finite", "another clip"],
)
def test_a_wrong_gradient_is_called_wrong(loss, wrong):
    case = replace(CASES["logits"], entropy_coef=0.0)
    error = gradient_error(make_contestant(loss), [], case, None)
    result = Result(case, "another", "", 1.0, seconds=1.0, extra_bytes=0, error=error)
    assert is_wrong(result) == wrong
    assert ("WRONG" in format_table(make_rows([result], RATES), RATES)) == wrong


def test_a_missing_package_is_reported_as_not_installed():
    contestant = make_contestant(policy_loss, modules=("no_such_package.losses",))
    results = run_contestant(contestant, list(CASES.values()), repeat=1)
    assert [result.case for result in results] == [CASES["logits"]]
    table = format_table(make_rows(results, RATES), RATES)
    assert "another: not installed: no module named 'no_such_package'" in table


def test_a_package_that_does_not_import_is_not_called_missing():
    contestant = make_contestant(policy_loss, modules=("json.no_such_module",))
    (result,) = measure_contestant(contestant, [CASES["logits"]], repeat=1)
    assert result.reason == "import failed: ModuleNotFoundError: No module named 'json.no_such_module'"


def test_what_cannot_run_says_why():
    for fields, reason in (({"needs_cuda": True}, "needs CUDA"), ({"entropy": False}, "no entropy gradient")):
        (result,) = run_contestant(make_contestant(policy_loss, **fields), [CASES["logits"]], repeat=1)
        assert result.reason == reason and result.seconds is None


def test_a_process_that_dies_or_raises_is_reported():
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_apart(os._exit, 3)
    with pytest.raises(RuntimeError, match="ValueError: math domain error|ValueError: expected a nonnegative"):
        run_apart(math.sqrt, -1.0)


def test_contestants_are_selected_by_name_and_never_shadow_each_other():
    registry = all_contestants()
    assert {c.name for c in registry.select(["MEGA"])} == {"megatron", "megatron, fused"}
    with pytest.raises(ValueError, match="no contestant's name contains nobody"):
        registry.select(["nobody"])
    with pytest.raises(ValueError, match="logits/megatron"):
        registry.contestant("megatron", "logits", "again")(policy_loss)


def test_floors_count_reads_and_writes():
    one_pass = 2 * 16 * 128 / RATES.copy
    assert floor_seconds(CASES["statistics"], 1.0, RATES) == pytest.approx(one_pass)
    assert floor_seconds(CASES["logits"], 1.0, RATES) == pytest.approx(3 * one_pass)
    assert floor_seconds(CASES["logits"], 0.25, RATES) == pytest.approx(1.5 * one_pass)
    assert floor_seconds(CASES["hidden"], 0.25, RATES) == pytest.approx(1.5 * 16 * 128 * 64 / RATES.gemm)


def test_ratios_are_over_the_same_case_only():
    case, other = CASES["logits"], CASES["hidden"]
    seconds = {("ours", case): 2.0, ("another", case): 3.0, ("another", other): 5.0}
    rows = make_rows([Result(c, name, "", 1.0, seconds=s) for (name, c), s in seconds.items()], RATES)
    assert [row.per_ours for row in rows] == [1.0, 1.5, None]


def test_extra_memory_is_that_of_one_run():
    meter = CpuMeter()
    needed = meter.extra_bytes(lambda: torch.ones(2**26, dtype=torch.uint8), lambda: None)
    assert needed is None or 63 * 2**20 < needed < 72 * 2**20
    kept = torch.ones(2**26, dtype=torch.uint8)
    needed = meter.extra_bytes(lambda: kept.add_(1), lambda: None)
    assert needed is None or needed < 8 * 2**20


def test_a_batch_has_both_clips_and_rows_without_weight():
    batch = make_batch(replace(CASES["logits"], tokens=64), fraction=0.5)
    last = batch.per_sequence(batch.loss_weights)[:, -1]
    assert (last == 0).all() and 0 < (batch.loss_weights != 0).sum() < 56
    assert (batch.per_sequence(batch.advantages) == batch.per_sequence(batch.advantages)[:, :1]).all()
    drift = torch.log_softmax(batch.logits.float() / batch.temperature, -1)
    ratio = (drift.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1) - batch.old_log_probs).exp()
    assert (ratio < 1 - batch.clip_ratio).any() and (ratio > 1 + batch.clip_ratio).any()
