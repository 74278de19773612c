"""The benchmark of float32's noise: it counts tests, and finds the largest noise and share of a bar by quantity."""

import json
import subprocess
import sys

from tests.paths import ROOT

TESTS = """
import os

import pytest

@pytest.fixture(scope="session")
def noise(record_testsuite_property):
    for error in ("1.0e-07", "3.0e-07"):
        record_testsuite_property("logits", error)

@pytest.mark.parametrize("error", ["1.0e-06", "4.0e-06", "2.0e-06"])
def test_error(noise, record_property, error):
    record_property("logits", f"{error} of 8.0e-06")

def test_broken():
    assert os.environ["OMP_NUM_THREADS"] == "0"

@pytest.mark.skip
def test_skipped():
    pass
"""


def test_the_command_runs_the_tests_in_a_setting_and_prints_the_largest_numbers(tmp_path):
    (tmp_path / "test_tiny.py").write_text(TESTS)
    options = ["--tests", tmp_path / "test_tiny.py", "--settings", "default, 2", "--json", tmp_path / "out.json"]
    command = [sys.executable, ROOT / "benchmarks/noise.py", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    row = report["rows"]["default, 2"]
    assert (row["passed"], row["failures"], row["skipped"]) == (3, 1, 1)
    assert row["noise"] == {"logits": 3e-7} and row["shares"] == {"logits": 0.5}
    assert "0.50" in done.stdout and "3.0e-07" in done.stdout
    assert "default, 2: test_broken: AssertionError: assert '2' == '0'" in done.stdout
