"""Where figures come from: what every benchmark writes beside its own, so that they can be measured again."""

import datetime
import platform
import shlex
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def origin(hardware: str, packages: Iterable[str], argv: list[str]) -> dict:
    """Date, command, hardware and versions, as JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *argv]),
        "hardware": hardware,
        "versions": {"python": platform.python_version()} | {name: _installed(name) for name in packages},
    }


def _installed(name: str) -> str | None:
    """The installed version; None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
