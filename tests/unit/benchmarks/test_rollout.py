"""The benchmark of the sampler: it runs, and compares the same work."""

import json
import subprocess
import sys

from tests.paths import ROOT


def test_the_command_compares_the_same_number_of_tokens_and_writes_json(tmp_path):
    numbers = tmp_path / "out.json"
    options = ["--vocab", "64", "--prompts", "3", "--new-tokens", "5", "--rounds", "1", "--json", numbers]
    command = [sys.executable, ROOT / "benchmarks/rollout.py", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    (row,) = report["rows"]
    assert row["ours"]["tokens"] == row["hugging_face"]["tokens"] == 15
    speeds = {name: row[name]["tokens"] / row[name]["seconds"] for name in ("ours", "hugging_face")}
    assert row["tokens_per_second"] == speeds and row["ratio"] == speeds["ours"] / speeds["hugging_face"]
    assert f"ratio {row['ratio']:.2f}" in done.stdout and report["hardware"] in done.stdout
    assert report["versions"]["torch"] and "benchmarks/rollout.py" in report["command"]
