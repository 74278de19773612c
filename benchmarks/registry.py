"""The list of contestants: what each one is called, what it does and which function runs it.

A contestant is a plain function under the `contestant` decorator. It gets a `Batch` and the modules it names, and
returns the scalar loss (level "logits" or "hidden"), the pair (log-probs, entropy) (level "statistics"), or None
where there is nothing to differentiate or to check.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

LEVELS = ("statistics", "logits", "hidden")


class NotInstalled(Exception):
    """A contestant's package is not there."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of one level.

    does: what it covers of the workload, and what not.
    modules: import names handed to `function` after the batch; the first one's package decides "not installed".
    distribution: the name of the installed package, for its version.
    entropy: whether the entropy has a gradient; without one the cases with entropy_coef != 0 are left out.
    fraction: share of the tokens that have a loss weight other than 0.
    megatron: needs Megatron-core's model-parallel groups.
    """

    name: str
    level: str
    does: str
    function: Callable[..., Any]
    modules: tuple[str, ...] = ()
    distribution: str | None = None
    entropy: bool = True
    fraction: float = 1.0
    needs_cuda: bool = False
    megatron: bool = False

    @property
    def key(self) -> str:
        """Level and name, which no two contestants share."""
        return f"{self.level}/{self.name}"

    def check_installed(self) -> None:
        """Raise NotInstalled where a package that it imports is not there."""
        for module in self.modules:
            package = module.partition(".")[0]
            if importlib.util.find_spec(package) is None:
                raise NotInstalled(f"not installed: no module named {package!r}")

    def load(self) -> list[ModuleType]:
        """Import its modules. Raises NotInstalled, or whatever an installed package raises."""
        self.check_installed()
        return [importlib.import_module(module) for module in self.modules]

    def version(self) -> str | None:
        """The installed version of its package; None without a package."""
        try:
            return importlib.metadata.version(self.distribution) if self.distribution else None
        except importlib.metadata.PackageNotFoundError:
            return None

    def reason_to_skip(self, device: str, entropy_coef: float) -> str | None:
        """Why it cannot run such a case, or None if it can."""
        if self.needs_cuda and device != "cuda":
            return "needs CUDA"
        if entropy_coef != 0 and not self.entropy:
            return "no entropy gradient"
        return None


class Registry:
    """Contestants in the order in which they were added."""

    def __init__(self) -> None:
        self.contestants: dict[str, Contestant] = {}

    def contestant(self, name: str, level: str, does: str, **fields: Any) -> Callable:
        """Decorator that adds a function; `fields` are those of `Contestant`."""

        def add(function: Callable) -> Callable:
            entry = Contestant(name, level, does, function, **fields)
            if level not in LEVELS:
                raise ValueError(f"contestant {name!r}: level {level!r} is not one of {', '.join(LEVELS)}")
            if entry.key in self.contestants:
                raise ValueError(f"contestant {entry.key!r} is there already; give it another name")
            self.contestants[entry.key] = entry
            return function

        return add

    def select(self, words: list[str] | None) -> list[Contestant]:
        """Those whose name contains one of the words, in any case; all of them without words."""
        if not words:
            return list(self.contestants.values())
        chosen = [c for c in self.contestants.values() if any(word.lower() in c.name.lower() for word in words)]
        if not chosen:
            names = ", ".join(sorted({c.name for c in self.contestants.values()}))
            raise ValueError(f"no contestant's name contains {' or '.join(words)}; the names are {names}")
        return chosen
