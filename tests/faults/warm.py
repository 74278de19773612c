"""Everything a run imports, loaded once by the server that the runs of these tests are forked from."""

import os
from importlib import import_module

# Before numpy and torch count the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from rest_megatron.utils.libraries import quiet_libraries

quiet_libraries()
torch.set_num_threads(1)
# By name, for their effect alone: a run that has to import them takes five seconds in place of one.
COMMANDS = ("train", "sft", "rollout")
for name in ("pytest", "matplotlib.pyplot", "rest_megatron.cli", *(f"rest_megatron.commands.{x}" for x in COMMANDS)):
    import_module(name)
