"""Everything a run imports, loaded once by the server that the processes of `forks` are forked from."""

import io
import os
from importlib import import_module

# Before numpy and torch count the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from matplotlib.figure import Figure

from rest_megatron.utils.libraries import quiet_libraries

quiet_libraries()
torch.set_num_threads(1)
# By name, for their effect alone: a run that has to import them takes five seconds in place of one.
COMMANDS = ("train", "sft", "rollout")
for name in ("pytest", "matplotlib.pyplot", "rest_megatron.cli", *(f"rest_megatron.commands.{x}" for x in COMMANDS)):
    import_module(name)


def draw_nothing() -> None:
    """Let all pictures be empty: a report's takes longer than the small runs here. They are drawn in tests/unit."""
    empty = io.BytesIO()
    Figure().savefig(empty, format="png")
    Figure.savefig = lambda figure, file, **_: file.write(empty.getvalue())


draw_nothing()
