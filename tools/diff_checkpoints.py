"""The `diff` command as a script, for batch jobs: `python tools/diff_checkpoints.py A B`."""

import sys

from rest_megatron.cli import main

sys.exit(main(["diff", *sys.argv[1:]]))
