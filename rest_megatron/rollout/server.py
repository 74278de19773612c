"""Being written by helper A: only what session.py imports."""

from contextlib import contextmanager


class Server:
    """A's."""


@contextmanager
def open_server(config, run_dir, parallel):
    """A's."""
    yield None
