"""The command line's side of `rollout` and of replays."""

import json
import sys
from types import SimpleNamespace

import pytest

import rest_megatron
from rest_megatron import cli
from rest_megatron.config import load
from tests.system.runs import make_run


@pytest.fixture
def calls(monkeypatch):
    """The configurations that `rollout` was run with; its program is a stand-in."""
    found = []
    program = SimpleNamespace(main=lambda config, launch: found.append(config))
    monkeypatch.setitem(sys.modules, "rest_megatron.commands.rollout", program)
    monkeypatch.setattr(rest_megatron, "generate", program, raising=False)
    return found


@pytest.fixture
def words(tmp_path):
    return make_run(tmp_path)


def test_rollout_runs_its_program_with_the_configuration(words, calls):
    assert cli.main(["rollout", *words], {}) == 0
    assert calls == [load([], words)]


@pytest.mark.parametrize(
    "override, said", [("data.train=none.jsonl", "data.train=none.jsonl"), ("model.path=none", "model.path=none")]
)
def test_rollout_needs_a_model_and_prompts(words, calls, capsys, override, said):
    assert cli.main(["rollout", *words, override], {}) == 2
    assert said in capsys.readouterr().err and calls == []


def test_rollout_refuses_the_directory_of_an_earlier_run(tmp_path, words, calls, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("{}")
    assert cli.main(["rollout", *words], {}) == 2
    assert "metrics.jsonl of an earlier run" in capsys.readouterr().err and calls == []


def test_check_reads_the_answers_that_are_to_be_trained_on(tmp_path, words, capsys):
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    words = ["check", *words, "train.debug=train_only", f"train.replay={dumps}"]
    assert cli.main(words, {}) == 3
    assert "holds no step-1.jsonl; train.steps=2 needs step-1.jsonl to step-2.jsonl" in capsys.readouterr().err
    for step in (1, 2):
        (dumps / f"step-{step}.jsonl").write_text(json.dumps({"prompt": 0}) + "\n")
    assert cli.main(words, {}) == 3
    assert "row 0 (line 1): field 'prompt_tokens' is missing" in capsys.readouterr().err
