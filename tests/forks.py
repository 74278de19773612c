"""Processes that start in a moment: forked from a server that has imported everything already (`warm`).

A test process has one such server, which its first use starts.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm"])
