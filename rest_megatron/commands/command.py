"""What a command is declared by: `catalogue` holds the declarations, and everything else derives from them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True)
class Option:
    """What the command line needs of a field of a command's options beside its name, type and default.

    The type says how a value is read: Path, str (one of `choices`), int (at least `minimum`), float (from 0 to 1), or
    bool, a switch that takes no value.
    """

    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    minimum: int = 0
    positional: bool = False
    """Whether the value may be written without the option's name, in the order of the fields."""


@dataclass(frozen=True)
class NoOptions:
    """The options of a command that has none of its own."""


@dataclass(frozen=True)
class Command:
    """One command of the program; it is run by `main` of the module of its name in this package.

    `main` gets the configuration if the command reads one, its options if it has any, and last the `Launch` if it runs
    on every rank, else the stream for its output.
    """

    name: str
    summary: str
    """One line, without a full stop."""
    example: str
    """A line for the shell."""
    options: type = NoOptions
    """A frozen dataclass; each field is Annotated with an `Option`."""
    reads_config: bool = True
    every_rank: bool = False
    """Whether it trains or samples on all ranks of a job; otherwise rank 0 runs it alone."""

    @property
    def module(self) -> str:
        """The module that runs it."""
        return f"rest_megatron.commands.{self.name.replace('-', '_')}"


@dataclass(frozen=True)
class Declared:
    """A field of a command's options."""

    name: str
    kind: type
    """Of the value, when there is one."""
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        """How the usage names its value."""
        return "|".join(self.option.choices) or self.option.metavar or self.name.upper()

    @property
    def required(self) -> bool:
        """Whether the command cannot run without it."""
        return self.default is MISSING


def declared_options(command: Command) -> list[Declared]:
    """The options of a command: first those that need no name, then those that are required, then the others."""
    hints: Mapping[str, Any] = get_type_hints(command.options, include_extras=True)
    found = []
    for field in fields(command.options):
        hint, option = get_args(hints[field.name])
        kind = next(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
        found.append(Declared(field.name, kind, field.default, option))
    return sorted(found, key=lambda one: (not one.option.positional, not one.required))
