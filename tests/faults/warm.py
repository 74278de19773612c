"""Everything a run imports, loaded once by the server that the runs of these tests are forked from."""

import os

# Before numpy and torch count the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: F401
import torch

from rest_megatron.utils.libraries import quiet_libraries

quiet_libraries()

import matplotlib.pyplot  # noqa: F401, E402

torch.set_num_threads(1)
