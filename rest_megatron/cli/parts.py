"""What argparse lacks for this program: usage errors as ConfigError, plain help, and values that are given once."""

import argparse
from typing import Any, NoReturn

from rest_megatron.errors import ConfigError

PROGRAM = "rest_megatron"
WIDTH, MARGIN = 110, 28


class Parser(argparse.ArgumentParser):
    """Raises a usage error as ConfigError, with the usage below it: it is reported like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        message = message.removeprefix("argument ")
        name, _, problem = message.partition(": ")
        if problem.startswith("ignored explicit argument"):
            message = f"{name} takes no value"
        elif problem == "expected one argument":
            message = f"{name} needs a value (one that begins with a dash: {name.rpartition('/')[2]}=-value)"
        command = self.prog.removeprefix(PROGRAM).strip()
        subject, more = (f"{command}: ", "every option") if command else ("", "every command")
        raise ConfigError(f"{subject}{message}\n{self.format_usage()}{self.prog} --help shows {more}")


class Layout(argparse.RawDescriptionHelpFormatter):
    """Help as wide as its texts need, with each option's value named once: -c, --config FILE."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=MARGIN, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Value(argparse.Action):
    """An option with a value, given once, or with `repeated` any number of times."""

    def __init__(
        self, *args: Any, repeated: bool = False, complete: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.repeated = repeated
        if complete:
            self.complete = complete  # shtab reads it

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the value, or raise ArgumentError where it would be the second."""
        known = getattr(namespace, self.dest, None)
        if known is not None and not self.repeated:
            raise argparse.ArgumentError(self, "given twice; give it once")
        setattr(namespace, self.dest, [*(known or []), values] if self.repeated else values)
