"""How far the actor's float32 is from its bars, by instruction set, BLAS and number of threads.

    python benchmarks/noise.py

Runs the tests whose bars follow from float32's own error on the machine (`tests/distributed/noise.py`) once in each
setting, and prints how many passed, Hugging Face's float32 noise, and the largest share of its bar that an error of
ours takes: above 1 a test fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.floors import hardware_name
from benchmarks.origin import origin

ROOT = Path(__file__).resolve().parent.parent
TESTS = tuple(
    f"tests/distributed/test_{name}.py"
    for name in (
        *(
            "parity",
            "invariance",
            "traps",
            "supervised",
            "importance",
            "method",
            "comparison",
            "precision",
            "optimizer_steps",
        ),
        *("sampler", "draw", "sync"),
    )
)
PACKAGES = ("torch", "transformers", "megatron-core", "deepspeed", "triton")
# What decides in which order a CPU sums, beside its own best.
LIBRARIES = {
    "mkl avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl any": {"MKL_CBWR": "COMPATIBLE"},
    "onednn avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
# Threads of several processes on the same cores must not spin while they wait.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
COUNTS = ("tests", "failures", "errors", "skipped")


def settings() -> dict[str, dict[str, str]]:
    """Environment variables by name of the setting: capabilities with one and two threads, then the libraries'."""
    capabilities = dict.fromkeys(("default", "avx2", torch.backends.cpu.get_cpu_capability().lower()))
    found = {
        f"{capability}, {threads}": {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads), **SHARED_CORES}
        for capability in capabilities
        for threads in (1, 2)
    }
    return found | {name: {"OMP_NUM_THREADS": "1", **variables} for name, variables in LIBRARIES.items()}


def measure(variables: dict[str, str], tests: Sequence[str]) -> dict:
    """One run of pytest: its counts, the noise and the shares of the bars, the largest of each quantity."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        environment = {**os.environ, **variables}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode} and no report:\n{done.stdout}")
        root = ElementTree.parse(report).getroot()
    return {**read_report(root), "seconds": round(time.monotonic() - started)}


def read_report(root: ElementTree.Element) -> dict:
    """Counts of a JUnit report, and what `within` and `bars` of tests/distributed/conftest.py wrote into it."""
    noise, shares = defaultdict(float), defaultdict(float)
    for entry in root.iterfind(".//testsuite/properties/property"):
        noise[entry.attrib["name"]] = max(noise[entry.attrib["name"]], float(entry.attrib["value"]))
    for entry in root.iterfind(".//testcase/properties/property"):
        error, bar = map(float, entry.attrib["value"].split(" of "))
        shares[entry.attrib["name"]] = max(shares[entry.attrib["name"]], error / bar)
    counts = {name: sum(int(suite.attrib[name]) for suite in root.iter("testsuite")) for name in COUNTS}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    broken = [
        f"{case.attrib['name']}: {fault.attrib['message'].splitlines()[0]}"
        for case in root.iter("testcase")
        for fault in (*case.iterfind("failure"), *case.iterfind("error"))
    ]
    return {
        "passed": passed,
        "failures": failed,
        "skipped": counts["skipped"],
        "noise": noise,
        "shares": shares,
        "broken": broken,
    }


def table(title: str, rows: dict[str, dict], part: str, form: Callable[[float], str]) -> str:
    """A line for each quantity, a column for each setting."""
    quantities = dict.fromkeys(name for row in rows.values() for name in row[part])
    lines = [f"{title:38s}" + "".join(f"{name:>13s}" for name in rows)]
    for quantity in quantities:
        cells = (form(row[part][quantity]) if quantity in row[part] else "" for row in rows.values())
        lines.append(f"{quantity:38s}" + "".join(f"{cell:>13s}" for cell in cells))
    return "\n".join(lines)


def page(report: dict) -> str:
    """The report as text."""
    rows = report["rows"]
    counts = {
        name: {"counts": {c: row[c] for c in ("passed", "failures", "skipped", "seconds")}}
        for name, row in rows.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    parts = [
        f"{report['hardware']}\n{report['date']}   {report['command']}\n{versions}\ntests: {' '.join(report['tests'])}",
        table("setting", counts, "counts", str),
        table("Hugging Face's float32, largest error", rows, "noise", "{:.1e}".format),
        table("ours: largest share of the bar", rows, "shares", "{:.2f}".format),
        *(f"{name}: {line}" for name, row in rows.items() for line in row["broken"]),
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Run the tests in every setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what to run; default: the tests with measured bars")
    parser.add_argument("--settings", nargs="+", choices=settings(), default=tuple(settings()), metavar="NAME")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    args = parser.parse_args(argv)
    rows = {name: measure(settings()[name], args.tests) for name in args.settings}
    # Not the number of threads: it is a setting.
    hardware = hardware_name("cpu").partition(",")[0]
    report = origin(hardware, PACKAGES, sys.argv) | {"tests": list(args.tests), "rows": rows}
    sys.stdout.write(page(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
