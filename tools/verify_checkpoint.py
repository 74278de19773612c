"""The `verify` command as a script, for batch jobs: `python tools/verify_checkpoint.py RUN`."""

import sys

from rest_megatron.cli import main

sys.exit(main(["verify", *sys.argv[1:]]))
