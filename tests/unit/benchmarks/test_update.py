"""The benchmark of a step's update: it runs, every arm takes the same step, and its counts are what they say."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.update import make_model
from benchmarks.updating.arms import Arm
from benchmarks.updating.flops import asked_flops, asked_tokens, counted
from benchmarks.updating.hugging_face import HuggingFace
from benchmarks.updating.process import NotInstalled, Process
from benchmarks.updating.report import compare, format_case, make_row
from benchmarks.updating.shapes import SHAPES, get_shape, make_step
from tests.paths import ROOT

TINY = get_shape("tiny")
ASKED = {"groups": 1, "group_size": 2, "tokens": 10, "targets": 4, "flops": 100}


def test_the_command_compares_the_same_step_and_writes_json_and_a_picture(tmp_path):
    numbers, picture = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--shapes", "tiny", "--groups", "1", "--rounds", "1", "--json", numbers, "--plot", picture]
    options += ["--arms", "hf", "ours, logits, plain"]
    command = [sys.executable, ROOT / "benchmarks/update.py", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    (case,) = report["cases"]
    theirs, ours = case["rows"]
    assert theirs["gradient_error"] == 0 and ours["gradient_error"] < 1e-5
    asked = asked_tokens(make_step(get_shape("tiny", 1), False))
    assert case["asked"]["tokens"] == asked and theirs["tokens"] >= 2 * asked >= ours["tokens"] > asked
    (ratio,) = ours["ratios"]["hf"]
    seconds = [sum(row["seconds"][part]["cpu"] for part in ("log_probs", "update")) for row in (theirs, ours)]
    assert ratio == pytest.approx(seconds[0] / seconds[1]) and f"{ratio:.2f}" in done.stdout
    assert 0 < ours["step_bytes"] < ours["total_bytes"]
    assert picture.read_bytes().startswith(b"\x89PNG") and "benchmarks/update.py" in report["command"]


def test_a_package_that_is_missing_is_told_from_an_arm_that_fails(tmp_path):
    package = tmp_path / "python"
    for line, error, message in (
        ("ModuleNotFoundError: No module named 'trl'", NotInstalled, "^No module named 'trl'$"),
        ("ValueError: too long", RuntimeError, "trl: its process ended with exit code 1:\nValueError: too long"),
    ):
        package.write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 1\n')
        package.chmod(0o755)
        process = Process(Arm("trl", "trl"), str(package), {})
        with pytest.raises(error, match=message):
            process.step()
        process.close()


def test_what_is_asked_is_what_unpadded_answers_cost(tmp_path):
    make_model(tmp_path, TINY.model_fields())
    step = make_step(replace(TINY, turns=(6,)), zeros=False)
    loop = HuggingFace(tmp_path, step, at_once=1)
    with counted(loop.embedding) as found:
        loop.log_probs()
    # Hugging Face makes the logits of an answer's last token, too.
    last = 2 * loop.model.config.vocab_size * loop.model.config.hidden_size * len(step.answers)
    assert found == {"tokens": asked_tokens(step), "flops": asked_flops(step, TINY.model_fields()) // 4 + last}


def test_padding_changes_no_log_prob(tmp_path):
    make_model(tmp_path, TINY.model_fields())
    step = make_step(TINY, zeros=False)
    one, many = (torch.cat(HuggingFace(tmp_path, step, n).log_probs()) for n in (1, 16))
    assert len(one) == sum(step.targets) and torch.allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_is_the_same_every_time_but_for_the_advantages_of_a_quarter_of_its_groups(name):
    shape = get_shape(name)
    step, again, zeros = make_step(shape, False), make_step(shape, False), make_step(shape, True)
    assert step.answers == again.answers == zeros.answers and len(step.answers) == shape.groups * shape.group_size
    assert torch.equal(step.advantages, again.advantages) and torch.equal(step.loss_weights, zeros.loss_weights)
    silent = sum(step.targets[: shape.groups // 4 * shape.group_size])
    assert not zeros.advantages[:silent].any() and torch.equal(zeros.advantages[silent:], step.advantages[silent:])
    prompts = {tuple(answer.prompt) for answer in step.answers}
    assert len(prompts) == shape.groups
    if shape.lengths is None:
        assert sum(map(len, prompts)) / shape.groups == pytest.approx(shape.prompt, rel=0.05)
        assert sum(step.targets) / len(step.targets) == pytest.approx(sum(shape.turns[::2]), rel=0.05)


def test_the_table_has_ratios_round_by_round_and_calls_another_gradient_wrong():
    def figures(cpu):
        passes = {part: {"cpu": cpu, "wall": cpu} for part in ("log_probs", "update")}
        return {**passes, "tokens": 30, "flops": 300, "loss": 0.0, "grad_norm": cpu}

    hf, ours = Arm("hf", "hf"), Arm("ours, logits, plain", "ours", "logits", shared=False)
    rows = [
        make_row(hf, figures(1.0), [figures(3.0), figures(4.0)]),
        make_row(ours, figures(1.1), [figures(1.0), figures(2.0)]),
    ]
    compare(rows, {False: 1.0})
    assert rows[1]["ratios"] == {"hf": [3.0, 2.0], "plain": [1.0, 1.0]}
    table = format_case({"shape": "a", "asked": ASKED, "rows": rows, "missing": {"trl": "not installed: no trl"}})
    assert "2.50 (2.00-3.00)" in table and "1.50 x" in table and "3.00 x" in table
    assert table.count("WRONG") == 1 and "  trl: not installed: no trl" in table
