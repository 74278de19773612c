"""One step's log-probs and update beside a plain Hugging Face loop and TRL, on the same tokens and weights.

    python benchmarks/update.py
    python benchmarks/update.py --trl-python /path/to/venv/bin/python --json out.json --plot out.png

Every arm runs in a process of its own, one thread, float32 on a CPU, and takes one step a round, in turns; the first
step of each is not counted, and the learning rate is so small that all are the same step. benchmarks/README.md says how
to read the table and how to install TRL, whose GRPOTrainer runs from its own code. verl is not here: since it dropped
its dp actor (0.9), its updates run inside an engine of FSDP workers, which was not tried on a CPU.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.floors import hardware_name
from benchmarks.kernels import positive
from benchmarks.origin import origin
from benchmarks.updating.arms import ARMS, Arm
from benchmarks.updating.flops import asked_flops, asked_tokens
from benchmarks.updating.process import NotInstalled, Process
from benchmarks.updating.report import compare, format_case, make_row, save_plot
from benchmarks.updating.shapes import SHAPES, Shape, get_shape, make_step

PACKAGES = ("torch", "transformers", "megatron-core", "deepspeed")
SHOWN = tuple(name for name in SHAPES if name != "tiny")


def make_model(directory: Path, fields: dict[str, Any]) -> None:
    """Save random weights, the same for every arm."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(**fields)).save_pretrained(directory)


def run_case(name: str, shape: Shape, arms: list[Arm], args: argparse.Namespace) -> dict[str, Any]:
    """All arms on one shape."""
    step, fields = make_step(shape, zeros=False), shape.model_fields()
    asked = {"groups": shape.groups, "group_size": shape.group_size, "at_once": shape.at_once}
    asked |= {"tokens": asked_tokens(step), "targets": sum(step.targets), "flops": asked_flops(step, fields)}
    case: dict[str, Any] = {"shape": name, "asked": asked, "rows": [], "missing": {}}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        make_model(Path(directory), fields)
        job = {"shape": name, "groups": shape.groups, "at_once": shape.at_once, "model": directory}
        # First, so that it is over when the others are timed.
        references = {True: reference(job)} if any(arm.zeros for arm in arms) else {}
        started = start(arms, args, job, case["missing"], stack)
        rounds: dict[str, list[dict[str, Any]]] = {process.arm.name: [] for process, _ in started}
        for number in range(args.rounds):
            sys.stderr.write(f"{name}: round {number + 1} of {args.rounds}\n")
            for process, _ in started:
                rounds[process.arm.name].append(process.step())
        case["rows"] = [make_row(process.arm, first, rounds[process.arm.name]) for process, first in started]
    for row in case["rows"]:
        if row["arm"] == "hf":
            references[False] = row["grad_norm"]
    compare(case["rows"], references)
    return case


def reference(job: dict[str, Any]) -> float:
    """The norm of Hugging Face's gradient when a quarter of the groups has advantage 0."""
    process = Process(Arm("hf", "hf", zeros=True), sys.executable, job)
    try:
        return process.step()["grad_norm"]
    finally:
        process.close()


def start(
    arms: list[Arm], args: argparse.Namespace, job: dict[str, Any], missing: dict[str, str], stack: ExitStack
) -> list[tuple[Process, dict[str, Any]]]:
    """The processes of all arms that are installed, each with its first step's figures; `missing` gets the others."""
    started = []
    for arm in arms:
        sys.stderr.write(f"{job['shape']}: starting {arm.name}\n")
        process = Process(arm, args.trl_python if arm.who == "trl" else sys.executable, job)
        stack.callback(process.close)
        try:
            started.append((process, process.step()))
        except NotInstalled as error:
            missing[arm.name] = f"not installed: {error}"
    return started


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    arms = {arm.name: arm for arm in ARMS}
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=SHOWN, metavar="NAME", help=f"of {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=arms, default=list(arms), metavar="NAME", help=f"of {'; '.join(arms)}"
    )
    parser.add_argument("--groups", type=positive, help="of each shape, in place of its own number")
    parser.add_argument("--at-once", type=positive, help="answers in a padded micro-batch, in place of the shape's own")
    parser.add_argument("--rounds", type=positive, default=3, help="timed steps of each arm; default: %(default)s")
    parser.add_argument("--trl-python", default=sys.executable, help="the interpreter of an environment that has TRL")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the table into FILE (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    args.chosen = [arm for name, arm in arms.items() if name in args.arms]
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_arguments(argv)
    hardware = hardware_name("cpu")
    sys.stdout.write(f"{hardware}\n")
    cases = []
    for name in args.shapes:
        cases.append(run_case(name, get_shape(name, args.groups, args.at_once), args.chosen, args))
        sys.stdout.write(f"\n{format_case(cases[-1])}\n")
        sys.stdout.flush()
    if args.json:
        report = origin(hardware, PACKAGES, sys.argv) | {"cases": cases}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        save_plot(cases, args.plot, hardware)


if __name__ == "__main__":
    main()
