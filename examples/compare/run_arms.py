"""Train every arm with every seed from one supervised checkpoint; finished runs are kept.

`python examples/compare/run_arms.py --out runs/compare --seeds 5 --jobs 2`. A seed sets prompt order and sampling, so
runs of one seed are paired. Then `python examples/compare/summarize.py --out runs/compare`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arms import ARMS, directory

EXAMPLES = Path(__file__).resolve().parents[1]


def main() -> None:
    """Read the command line, warm up once, train all arms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparison")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    warm_up(out)
    # Seed after seed, so that an interrupted comparison has whole pairs.
    runs = [(name, seed) for seed in range(arguments.seeds) for name in ARMS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(train, out, name, seed) for name, seed in runs]:
            future.result()


def warm_up(out: Path) -> None:
    """The quickstart's task and its supervised start, on one process."""
    if not (out / "data").exists():
        call(sys.executable, str(EXAMPLES / "quickstart/make_task.py"), "--out", str(out / "data"), log=None)
    if not (out / "sft/hf").exists():
        shutil.rmtree(out / "sft", ignore_errors=True)
        overrides = [f"run.dir={out}/sft", f"sft.data={out}/data/sft.jsonl", "parallel.tensor_model_parallel_size=1"]
        rest_megatron("sft", [EXAMPLES / "quickstart/sft.yaml"], overrides, out / "sft.log")


def train(out: Path, name: str, seed: int) -> None:
    """One run; skipped when its final weights exist."""
    run = out / directory(name, seed)
    if (run / "hf").exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    overrides = [
        f"run.dir={run}",
        f"run.seed={seed}",
        f"model.path={out}/sft/hf",
        f"data.train={out}/data/train.jsonl",
        f"data.eval={out}/data/heldout.jsonl",
    ]
    files = [EXAMPLES / "compare/task.yaml", *(EXAMPLES / file for file in ARMS[name])]
    rest_megatron("train", files, overrides, run.with_suffix(".log"))


def rest_megatron(command: str, files: list[Path], overrides: list[str], log: Path) -> None:
    """One process of the program, its output in `log`."""
    configs = [word for file in files for word in ("-c", str(file))]
    call(sys.executable, "-m", "rest_megatron", command, *configs, *overrides, log=log)


def call(*words: str, log: Path | None) -> None:
    """Run a command on one thread; a failure ends the comparison and names its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log or os.devnull, "w", encoding="utf-8") as stream:
        done = subprocess.run(words, env=environment, cwd=EXAMPLES.parent, stdout=stream, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}; see {log}")


if __name__ == "__main__":
    main()
