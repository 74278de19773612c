"""A file that is written once, front to back, and hashed on the way."""

import hashlib
from typing import BinaryIO


class OutputFile:
    """What is written goes to `file`, and into the SHA-256. It has what `torch.save` asks of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self._digest = hashlib.sha256()

    def write(self, content: bytes | bytearray | memoryview) -> int:
        """Append; returns how many bytes they were."""
        view = memoryview(content).cast("B")
        self._digest.update(view)
        # A raw file may take less than it is given.
        written = 0
        while written < len(view):
            written += self.file.write(view[written:])
        self.bytes += written
        return written

    def flush(self) -> None:
        """Hand on what is buffered."""
        self.file.flush()

    @property
    def entry(self) -> dict[str, int | str]:
        """{"bytes": ..., "sha256": hex} of what was written so far."""
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}
