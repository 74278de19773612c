"""Writing a file that appears, or changes, only once it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rest_megatron.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a file to write beside `path`, whose place it takes at the end; an error leaves nothing behind.

    Raises DataError when it cannot be written.
    """
    target = Path(os.path.realpath(path))  # Path.resolve raises where links run in a circle
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if os.path.lexists(target) and not target.is_file():
            raise DataError(f"{path} is not a file; name one that may be replaced")
        yield part
        os.replace(part, target)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where it could not be made, it cannot be removed: the error above says why
            part.unlink()
