"""From the words of a command line to what is to be done: a command with its options, or a text to show."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import shtab

from rest_megatron import __version__
from rest_megatron.cli.parser import SHELLS, command_parser, completion_parser, finding_parser, program_parser
from rest_megatron.cli.parts import PROGRAM, Parser
from rest_megatron.cli.values import reader
from rest_megatron.commands.catalogue import COMMANDS
from rest_megatron.commands.command import Command, declared_options
from rest_megatron.config import describe
from rest_megatron.config.keys import nearest, sections

# A file whose name looks like one is written ./a=b, or given by the name of its option, or after --.
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")
EVERY_SECTION = "all"


@dataclass(frozen=True)
class Request:
    """A command to run."""

    command: Command
    options: Any
    """An instance of command.options."""
    config_files: Sequence[str] = ()
    overrides: Sequence[str] = ()


def parse(argv: Sequence[str]) -> Request | str:
    """What the words ask for: a command, or a text to show.

    Where the first word is an override, or there are files of configuration alone, the command is `train`. Raises
    ConfigError, with the usage of the command, for words that mean nothing.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    before, after = argv[:end], argv[end + 1 :]
    found, left = finding_parser().parse_known_args(before)
    words = [word for word in left if not _is_option(word)]
    named = bool(words) and "=" not in words[0]
    text = _text(found, words[0] if named else "")
    if text:
        return text
    if left and not words:
        program_parser().error(_unknown(left[0], ["--config", "--help", "--version", "--print-completion"]))
    if not named and "config" not in found:
        program_parser().error(f"a command is missing: one of {', '.join(COMMANDS)}")
    return _request(_command(words[0] if named else "train"), before, after, named)


def _text(found: argparse.Namespace, command: str) -> str:
    """The text that --version, --print-completion or --help asks for; "" without them. command: "" where none is named.

    A name after --help is a section's before it is a command's.
    """
    if "version" in found:
        return f"{PROGRAM} {__version__}\n"
    if "print_completion" in found:
        if found.print_completion not in SHELLS:
            program_parser().error(f"--print-completion needs one of {', '.join(SHELLS)}")
        return f"{shtab.complete(completion_parser(), found.print_completion)}\n"
    if "help" not in found:
        return ""
    topic = found.help
    if topic and (topic in sections() or topic not in COMMANDS):
        return describe("" if topic == EVERY_SECTION else topic)
    name = topic or command
    return (command_parser(_command(name)) if name else program_parser()).format_help()


def _command(name: str) -> Command:
    if name not in COMMANDS:
        guess = nearest(name, COMMANDS)
        hint = f"did you mean {guess}? " if guess else ""
        program_parser().error(f"{name!r} is not a command; {hint}commands: {', '.join(COMMANDS)}")
    return COMMANDS[name]


def _request(command: Command, before: Sequence[str], after: Sequence[str], named: bool) -> Request:
    """before, after: the words on either side of --; those after it name files."""
    parser = command_parser(command)
    found, left = parser.parse_known_args(before)
    declared = declared_options(command)
    unknown = next(filter(_is_option, left), "")
    if unknown:
        parser.error(_unknown(unknown, [one.flag for one in declared] + ["--config"] * command.reads_config))
    words = left[1:] if named else left
    takes_files = any(one.option.positional for one in declared)
    overrides = [word for word in words if OVERRIDE.match(word)] if takes_files else [*words, *after]
    files = [word for word in words if not OVERRIDE.match(word)] + list(after) if takes_files else []
    _refuse_old_words(parser, command, overrides)
    if overrides and not command.reads_config:
        name = overrides[0].partition("=")[0]
        parser.error(f"reads no configuration, so {name}= means nothing here; a file of that name is ./{name}=...")
    values = {name: value for name, value in vars(found).items() if name not in ("config", "local_rank")}
    values |= _positional(parser, command, files, values)
    missing = [
        one.metavar if one.option.positional else one.flag
        for one in declared
        if one.required and one.name not in values
    ]
    if missing:
        parser.error(f"needs {' and '.join(filter(None, (', '.join(missing[:-1]), missing[-1])))}")
    try:
        options = command.options(**values)
    except ValueError as error:
        parser.error(str(error))
    return Request(command, options, getattr(found, "config", ()), overrides)


def _positional(parser: Parser, command: Command, words: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    """The values of words without a name: of the command's files that are not given by name, in their order."""
    free = [one for one in declared_options(command) if one.option.positional and one.name not in given]
    if len(words) > len(free):
        parser.error(f"{words[len(free)]!r} is one word too many")
    values = {}
    for one, word in zip(free, words, strict=False):
        try:
            values[one.name] = reader(one)(word)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{one.metavar}: {error}")
    return values


def _refuse_old_words(parser: Parser, command: Command, words: Sequence[str]) -> None:
    """Say what to type instead of `input=DIR`, which is how options were written once."""
    flags = {one.name: one for one in declared_options(command)}
    old = [word for word in words if word.partition("=")[0] in flags]
    if not old:
        return
    new = []
    for word in old:
        name, _, value = word.partition("=")
        if flags[name].kind is not bool:
            new += [flags[name].flag, value]
        elif value == "true":
            new.append(flags[name].flag)
    fix = f"instead of `{shlex.join(old)}` write `{shlex.join(new)}`" if new else f"leave `{shlex.join(old)}` out"
    parser.error(f"options begin with --: {fix}")


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _unknown(word: str, known: Sequence[str]) -> str:
    """The message for an option that the command does not have. What follows its name is not shown: it may be a key."""
    name = word.partition("=")[0]
    others = [c.name for c in COMMANDS.values() if name in (one.flag for one in declared_options(c))]
    guess = nearest(name, known)
    if name in ("-c", "--config"):
        return f"unknown option {name}: this command reads no configuration"
    if others:
        return f"unknown option {name}: it is for {', '.join(others)}"
    return f"unknown option {name}{f'; did you mean {guess}?' if guess else ''}"
