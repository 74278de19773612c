"""The benchmark of checkpoints: it runs, and times both."""

import json
import subprocess
import sys

from tests.paths import ROOT


def test_the_command_times_saving_and_loading_of_both_and_writes_json(tmp_path):
    numbers = tmp_path / "out.json"
    options = ["--hidden", "16", "--vocab", "64", "--rounds", "1", "--directory", tmp_path, "--json", numbers]
    command = [sys.executable, ROOT / "benchmarks/checkpoint.py", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    (row,) = report["rows"]
    for what in ("save", "load"):
        assert row["ratio"][what] == row["ours"][what] / row["deepspeed"][what] > 0
    assert row["bytes"] == 12 * row["parameters"] > 0 and f"ratio {row['ratio']['load']:.2f}" in done.stdout
    assert report["versions"]["deepspeed"] and "benchmarks/checkpoint.py" in report["command"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
