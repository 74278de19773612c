"""A run that an older version began, stopped in a step, is resumed and goes on as that version would have.

`tests/fixtures/run-0.1.0` is the run and, in `expected`, what the older version left of it on an x86 CPU with AVX-512.
With AVX2 and without vector instructions its weights differ by 4e-7 of the distance that the last two steps moved them,
and no metric by more than float32's last place or 8e-9. The bars are some twenty times that; a first moment that was
rounded to bfloat16 would be a hundred times beyond them.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rest_megatron.checkpoint.manifest import read_manifest
from tests.paths import ROOT
from tests.system.runs import metrics, program, run

OLDER = ROOT / "tests" / "fixtures" / "run-0.1.0"
EXPECTED = OLDER / "expected"
STOPPED, LAST = "step-00000002", "step-00000004"
RELATIVE, ABSOLUTE = 64 * torch.finfo(torch.float32).eps, 1e-7


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """The run.dir of the older run, resumed to its end."""
    directory = shutil.copytree(OLDER, tmp_path_factory.mktemp("older") / "run-0.1.0")
    result = run(program("train", "--config", "config.yaml"), directory)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory / "run"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def differences(found, expected, place: str = "") -> list[str]:
    """Where JSON is not as expected up to rounding. What an older version did not have yet is no difference."""
    if isinstance(expected, dict):
        pairs = [(name, found.get(name, "missing"), value) for name, value in expected.items()]
    elif isinstance(expected, list) and len(found) == len(expected):
        pairs = list(zip(range(len(found)), found, expected, strict=True))
    else:
        near = pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE) if isinstance(expected, float) else expected
        return [] if found == near else [f"{place}: {found}, not {expected}"]
    return [line for name, ours, theirs in pairs for line in differences(ours, theirs, f"{place}/{name}")]


def test_what_is_not_computed_is_the_same_bit_for_bit(resumed):
    earlier = (OLDER / "run" / "metrics.jsonl").read_bytes()
    assert (resumed / "metrics.jsonl").read_bytes().startswith(earlier)
    kept = rows(OLDER / "run" / "checkpoints" / STOPPED / "experience.jsonl")
    dumped = rows(resumed / "rollouts" / "step-3.jsonl")
    assert len(kept) == 8 and [row | more for row, more in zip(dumped, kept, strict=True)] == dumped
    last, expected = read_manifest(resumed / "checkpoints" / LAST), read_manifest(EXPECTED)
    assert last.files["rng/rank-00000.safetensors"] == expected.files["rng/rank-00000.safetensors"]
    assert last.state["actor"] == expected.state["actor"]
    assert last.tensors == expected.tensors


def test_later_answers_are_those_that_would_have_followed(resumed):
    for step in (3, 4):
        ours, theirs = rows(resumed / "rollouts" / f"step-{step}.jsonl"), rows(EXPECTED / f"step-{step}.jsonl")
        assert [row["ids"] for row in ours] == [row["ids"] for row in theirs]
        assert differences(ours, theirs) == []


def test_metrics_and_state_are_those_that_would_have_followed(resumed):
    assert differences(metrics(resumed), metrics(EXPECTED)) == []
    assert differences(rows(resumed / "eval.jsonl"), rows(EXPECTED / "eval.jsonl")) == []
    assert differences(read_manifest(resumed / "checkpoints" / LAST).state, read_manifest(EXPECTED).state) == []


def test_weights_are_those_that_would_have_followed(resumed):
    ours, theirs = load_file(resumed / "hf" / "model.safetensors"), load_file(EXPECTED / "model.safetensors")
    (shard,) = (OLDER / "run" / "checkpoints" / STOPPED / "state").iterdir()
    begin = load_file(shard)
    assert ours.keys() == theirs.keys()
    apart = math.hypot(*(float((ours[name] - theirs[name]).double().norm()) for name in theirs))
    moved = math.hypot(*(float((theirs[name] - begin[f"master/{name}"]).double().norm()) for name in theirs))
    assert apart <= RELATIVE * moved
