"""Checks that constraints.txt resolves, with PyPI's torch (the CUDA build) and with PyTorch's CPU build.

Every Python this project is tested with is checked, on manylinux x86_64, whatever this machine is, and from metadata
alone. That is why uv resolves: pip's dry run takes wheels only when it is asked about another Python, and DeepSpeed is
published as source; without an index that serves metadata apart it downloads CUDA's libraries to read theirs.
"""

import argparse
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TextIO

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parents[1]
PYPI = "https://pypi.org/simple"
PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_28"
# How uv is configured to see each build of torch.
BUILDS = {
    "CUDA": ("--no-config",),
    "CPU": ("--config-file", str(Path(__file__).with_name("torch_cpu.toml"))),
}
SHOWN = ("torch", "triton")
PROBE_SECONDS = 10


@dataclass(frozen=True)
class Environment:
    """A virtual environment of the Makefile: what is installed there, and the file that pins it."""

    name: str
    requirements: str
    constraints: str
    extras: tuple[str, ...] = ()

    def resolve(self, uv: str, project: Path, build: str, python: str, index: str) -> subprocess.CompletedProcess[str]:
        """Run the program `uv`; where it exits with 0, its output has one line `name==version` for each package."""
        command = [uv, "pip", "compile", str(project / self.requirements), *BUILDS[build]]
        command += ["--constraint", str(project / self.constraints)]
        command += [word for extra in self.extras for word in ("--extra", extra)]
        command += ["--python-version", python, "--python-platform", PLATFORM, "--default-index", index]
        command += ["--python", sys.executable, "--no-python-downloads", "--system-certs"]
        command += ["--no-header", "--no-annotate", "--no-progress", "--color", "never"]
        return subprocess.run(command, env=_without_sources(), capture_output=True, text=True, check=False)


ENVIRONMENTS = (
    Environment(".venv", "pyproject.toml", "constraints.txt", ("dev", "eval", "bench")),
    Environment(".venv-vllm", "tests/vllm/requirements.txt", "tests/vllm/constraints.txt"),
)


def main(arguments: list[str], stream: TextIO) -> int:
    """Write one line per environment, build and Python; return 1 if one of them does not resolve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, default=ROOT, help="directory of pyproject.toml and constraints.txt")
    parser.add_argument("--index", default=PYPI, help=f"package index with the CUDA build of torch (default: {PYPI})")
    options = parser.parse_args(arguments)
    if reason := unreachable(options.index):
        stream.write(f"constraints NOT CHECKED: {options.index} cannot be reached ({reason})\n")
        return 0
    failed = False
    cases = list(product(ENVIRONMENTS, BUILDS, PYTHONS))
    uv = find_uv_bin()  # not in the threads: Python 3.11 fills the variables it reads without a lock
    with ThreadPoolExecutor(len(cases)) as pool:  # they wait for the index
        results = pool.map(lambda case: case[0].resolve(uv, options.project, *case[1:], options.index), cases)
    for (environment, build, python), done in zip(cases, results, strict=True):
        failed = failed or done.returncode != 0
        finding = ", ".join(_summary(done.stdout)) if done.returncode == 0 else f"DOES NOT RESOLVE\n{done.stderr}"
        stream.write(f"{environment.name}, torch for {build}, Python {python}: {finding}\n")
    return int(failed)


def unreachable(index: str) -> str | None:
    """Why `index` does not answer, None if it does."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=PROBE_SECONDS):
            return None
    except OSError as error:
        return str(error)


def _without_sources() -> dict[str, str]:
    """This process's variables but uv's own: a local CPU build of torch would hide what the CUDA build requires."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UV_") or name == "UV_CACHE_DIR"}


def _summary(resolved: str) -> Iterator[str]:
    versions = dict(line.split("==") for line in resolved.splitlines() if "==" in line)
    yield f"{len(versions)} packages"
    yield from (f"{name} {versions[name]}" for name in SHOWN if name in versions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
