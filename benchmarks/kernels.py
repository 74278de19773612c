"""Time, extra memory and gradient error of the loss kernels beside their floors and their peers.

    python benchmarks/kernels.py

measures this machine's ceilings, runs every contestant that is installed, each in a process of its own, and prints a
table per case. Needs no arguments and no package but this project's; benchmarks/README.md says how to read it.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contestants import all_contestants
from benchmarks.floors import Rates, measure_rates
from benchmarks.origin import origin
from benchmarks.registry import Contestant
from benchmarks.table import Row, format_table, is_wrong, make_rows
from benchmarks.worker import Result, measure_by_key, run_apart
from benchmarks.workload import DTYPES, Case

ENTROPY_COEFS = (0.01, 0.0)
# (T, V) and (T, H, V). On the GPU: the vocabulary of Qwen3, 151936, on 8, 4, 2 and 1 ranks.
LOGITS_SHAPES = {
    "cpu": [(2048, 32768)],
    "cuda": [(t, v) for t in (8192, 32768) for v in (18992, 37984, 75968, 151936)],
}
HIDDEN_SHAPES = {"cpu": [(2048, 256, 32768)], "cuda": [(8192, 5120, 18992), (32000, 4096, 131072)]}
REPEAT = {"cpu": 3, "cuda": 20}
PACKAGES = ("torch", "triton", "numpy")


def make_cases(args: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for, by level, shape and entropy coefficient."""
    logits, hidden = LOGITS_SHAPES[args.device], HIDDEN_SHAPES[args.device]
    if args.shape:
        logits = [tuple(args.shape)]
        hidden = [(args.shape[0], args.hidden or HIDDEN_SHAPES[args.device][0][1], args.shape[1])]
    elif args.hidden:
        hidden = [(t, args.hidden, v) for t, _, v in hidden]
    tail = (args.dtype, args.device)
    cases = [Case("statistics", t, v, None, 0.0, *tail) for t, v in logits]
    cases += [Case("logits", t, v, None, coef, *tail) for t, v in logits for coef in ENTROPY_COEFS]
    return cases + [Case("hidden", t, v, h, coef, *tail) for t, h, v in hidden for coef in ENTROPY_COEFS]


def run_contestant(contestant: Contestant, cases: list[Case], repeat: int) -> list[Result]:
    """Its results on the cases of its level, measured in another process where it can run at all."""
    results, runnable = [], []
    for case in cases:
        if case.level != contestant.level:
            continue
        reason = contestant.reason_to_skip(case.device, case.entropy_coef)
        if reason is None:
            runnable.append(case)
        else:
            results.append(skipped(contestant, case, reason))
    if not runnable:
        return results
    try:
        contestant.check_installed()
        return results + run_apart(measure_by_key, contestant.key, runnable, repeat)
    except Exception as error:
        return results + [skipped(contestant, case, str(error)) for case in runnable]


def skipped(contestant: Contestant, case: Case, reason: str) -> Result:
    """A result that says why there is none."""
    return Result(case, contestant.name, contestant.does, contestant.fraction, contestant.version(), reason)


def parse_arguments(argv: list[str] | None, names: list[str]) -> argparse.Namespace:
    """Read the command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=f"contestants: {'; '.join(names)}",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default here: %(default)s")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of logits, hidden states and weights")
    parser.add_argument(
        "--shape", nargs=2, type=positive, metavar=tuple("TV"), help="tokens and columns: this shape only"
    )
    parser.add_argument("--hidden", type=positive, metavar="H", help="width of the hidden states")
    parser.add_argument("--repeat", type=positive, help="timed runs; default 3 on the CPU, 20 on CUDA")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants whose names contain one of these")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the table into FILE (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and device == "cpu":
        parser.error("--device cuda: no CUDA device here")
    args.repeat = args.repeat or REPEAT[args.device]
    return args


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def to_json(rows: list[Row], rates: Rates, argv: list[str]) -> dict:
    """Everything that was measured, and what is needed to repeat it."""
    return origin(rates.hardware, PACKAGES, argv) | {
        "rates": {"copy_bytes_per_s": rates.copy, "gemm_flop_per_s": rates.gemm},
        "rows": [row_to_json(row) for row in rows],
    }


def row_to_json(row: Row) -> dict:
    """A row's fields. JSON has no infinity, so an error that is not finite is null, and "wrong" is true."""
    fields = asdict(row.result) | {"wrong": is_wrong(row.result)}
    if row.result.error == math.inf:
        fields["error"] = None
    return fields | {"floor_seconds": row.floor, "x_floor": row.per_floor, "x_ours": row.per_ours}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    registry = all_contestants()
    args = parse_arguments(argv, sorted({c.name for c in registry.contestants.values()}))
    try:
        contestants = registry.select(args.only)
    except ValueError as error:
        sys.exit(f"--only: {error}")
    cases = make_cases(args)
    sys.stderr.write("measuring the device's rates\n")
    rates = run_apart(measure_rates, args.device, args.dtype, args.repeat)
    results = []
    for contestant in contestants:
        sys.stderr.write(f"running {contestant.key}\n")
        results += run_contestant(contestant, cases, args.repeat)
    order = {case: number for number, case in enumerate(cases)}
    rows = make_rows(sorted(results, key=lambda result: order[result.case]), rates)
    sys.stdout.write(f"{format_table(rows, rates)}\n")
    if args.json:
        Path(args.json).write_text(json.dumps(to_json(rows, rates, sys.argv), indent=1))
    if args.plot:
        from benchmarks.plot import save_plot

        save_plot(rows, args.plot, rates.hardware)


if __name__ == "__main__":
    main()
