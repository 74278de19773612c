"""How many threads a process of the tests computes with."""

import os

import torch


def limit_threads() -> None:
    """OMP_NUM_THREADS, else one: many processes share the cores. torch alone would take as many as there are cores."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
