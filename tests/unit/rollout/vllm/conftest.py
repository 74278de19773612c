"""Where the servers of these tests have their sockets."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def temporary(monkeypatch) -> Path:
    """An empty directory that is the machine's temporary one. A socket's path is short; a test's need not be."""
    directory = Path(tempfile.mkdtemp())
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    yield directory
    shutil.rmtree(directory)
