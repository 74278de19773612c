"""The `inspect` command as a script, for batch jobs: `python tools/inspect_checkpoint.py RUN`."""

import sys

from rest_megatron.cli import main

sys.exit(main(["inspect", *sys.argv[1:]]))
