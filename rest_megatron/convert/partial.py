"""A directory that is written file by file, resumed after a kill, and named when it is complete."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rest_megatron.checkpoint.manifest import file_entry
from rest_megatron.convert.output_file import OutputFile
from rest_megatron.errors import CheckpointError
from rest_megatron.utils.files import UNFINISHED, rename, replace_durably, sync, unwritable
from rest_megatron.utils.lock import LOCK, locked

JOURNAL = ".journal.json"
FIX = "Remove it if nothing needs it, or name another output"


class Partial:
    """`output`.partial, and its journal of the files that are complete.

    Made by `partial_output`. Raises CheckpointError when it is not one of the same conversion.

    Args:
        output: the directory to make.
        directory: the partial one.
        conversion: plain JSON that says what is made of what; only an attempt at the same is resumed.
    """

    def __init__(self, output: Path, directory: Path, conversion: dict[str, Any]) -> None:
        self.output = output
        self.directory = directory
        self.conversion = conversion
        self.files: dict[str, dict[str, Any]] = {}
        self.reused = 0
        """Files that an earlier attempt had completed."""
        if (self.directory / JOURNAL).exists():
            self._read_journal()
        else:
            self._write_journal()

    def add(self, name: str, write: Callable[[OutputFile], Any]) -> Any:
        """Write the file `name` by `write`, unless it is there already; what `write` returned, plain JSON."""
        path = self.directory / name
        done = self.files.get(name)
        if done is not None and path.is_file() and file_entry(path) == done["entry"]:
            self.reused += 1
            return done["result"]
        unfinished = path.with_name(path.name + UNFINISHED)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb", buffering=0) as file:
                out = OutputFile(file)
                result = write(out)
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch.save closes its file whatever happened, which raises a RuntimeError over the one that tells.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise unwritable(path, reason) from error
        rename(unfinished, path)
        self.files[name] = {"entry": out.entry, "result": result}
        self._write_journal()
        return result

    def complete(self) -> None:
        """Give the directory its name. Every file in it is on the disk when it has it."""
        for path in sorted(self.directory.rglob("*")):
            if path.name.endswith(UNFINISHED):
                path.unlink()
            elif path.relative_to(self.directory).as_posix() not in self.files:
                sync(path)
        sync(self.directory)
        rename(self.directory, self.output)
        (self.output / JOURNAL).unlink()
        (self.output / LOCK).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove it: what it holds is wrong."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_journal(self) -> None:
        path = self.directory / JOURNAL
        try:
            journal = json.loads(path.read_text(encoding="utf-8"))
            if journal["conversion"] != self.conversion:
                raise CheckpointError(f"{self.directory} was left by a conversion of something else. {FIX}")
            self.files = journal["files"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise _foreign(self.directory, f"{error!r}") from error

    def _write_journal(self) -> None:
        text = json.dumps({"conversion": self.conversion, "files": self.files})
        replace_durably(self.directory / JOURNAL, text.encode())


@contextmanager
def partial_output(output: Path, conversion: dict[str, Any]) -> Iterator[Partial]:
    """The partial directory of `output`, held against every other process that would make the same.

    Raises CheckpointError when `output` exists, or the partial directory is not one of the same conversion; ConfigError
    when another process holds it, or it cannot be written.
    """
    if os.path.lexists(output):
        raise CheckpointError(f"--output {output} exists. Nothing is overwritten: remove it, or name another")
    directory = output.with_name(output.name + ".partial")
    try:
        names = set(os.listdir(directory))
    except OSError:
        names = set()  # Not there, or `locked` says what it is.
    # Nothing is put beside the files of someone else, not even a lock.
    if JOURNAL not in names and names - {JOURNAL + UNFINISHED, LOCK}:
        raise _foreign(directory, f"it has no {JOURNAL}")
    with locked(directory, "output"):
        yield Partial(output, directory, conversion)


def _foreign(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{directory} exists, but is not an unfinished conversion ({reason}). {FIX}")
