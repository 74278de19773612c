"""Whether two runs have the same results to the last bit, as the same arm and seed must on one machine.

`python examples/compare/same.py runs/compare/quick/grpo/seed-0 runs/again/quick/grpo/seed-0`
"""

import argparse
import json
import sys
from pathlib import Path

from summary import SUMMARY, differences


def main() -> None:
    """Compare two summaries; ends with 1 and the keys that differ unless they are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, help="directories of two runs")
    one, other = (json.loads((run / SUMMARY).read_text(encoding="utf-8")) for run in parser.parse_args().runs)
    if found := differences(one, other):
        sys.exit(f"not the same: {', '.join(found)}")


if __name__ == "__main__":
    main()
