"""The `convert` command as a script, for batch jobs: `python tools/convert_checkpoint.py RUN OUT ...`."""

import sys

from rest_megatron.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
