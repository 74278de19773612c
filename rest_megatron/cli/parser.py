"""The argparse parsers, of a command and of the whole program, made from the declarations."""

import argparse
import textwrap
from pathlib import Path

import shtab

from rest_megatron.cli.parts import PROGRAM, WIDTH, Layout, Parser, Value
from rest_megatron.cli.values import reader
from rest_megatron.commands.catalogue import COMMANDS
from rest_megatron.commands.command import Command, Declared, declared_options
from rest_megatron.config.keys import sections
from rest_megatron.config.load import PASS_THROUGH

SHELLS = ("bash", "zsh")
OVERRIDE = "section.key=value"
PROGRAM_USAGE = f"{PROGRAM} COMMAND [OPTION]... [{OVERRIDE}]..."
CONFIGURATION = textwrap.fill(
    f"{OVERRIDE}, anywhere after the command, wins over every file. {PROGRAM} --help SECTION describes the keys of "
    f"{', '.join([*sections(), *PASS_THROUGH])}.",
    WIDTH - 2,
)
LAUNCHERS = (
    "Start one process per device: torchrun -m, deepspeed --module, srun python -m, mpirun python -m, or\n"
    "python -m alone for one process."
)


def command_parser(command: Command) -> Parser:
    """The options of one command; `parse_known_args` leaves over the words that are none."""
    parser = _parser(f"{PROGRAM} {command.name}", _usage(command))
    parser.description = f"{command.summary[0].upper()}{command.summary[1:]}."
    _add_options(parser, command)
    example = f"example:\n  {command.example}"
    parser.epilog = f"{LAUNCHERS}\n\n{example}" if command.every_rank else example
    return parser


def program_parser() -> Parser:
    """The overview, and the options that need no command."""
    parser = _parser(PROGRAM, PROGRAM_USAGE)
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {command.name:<{width}}{command.summary}" for command in COMMANDS.values()]
    parser.description = "\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help explains one of them."])
    options = parser.add_argument_group("options")
    _add_common(options)
    options.add_argument("--version", action="store_true", help="show the version")
    options.add_argument(
        "--print-completion",
        choices=SHELLS,
        help=f'print a completion script, for example: eval "$({PROGRAM} --print-completion bash)"',
    )
    _add_config(parser)
    parser.epilog = LAUNCHERS
    return parser


def completion_parser() -> Parser:
    """The program with all commands below it, which is what a shell completes."""
    parser = program_parser()
    commands = parser.add_subparsers(dest="command")
    for command in COMMANDS.values():
        child = commands.add_parser(command.name, help=command.summary, add_help=False)
        _add_options(child, command)
        child.add_argument("words", nargs="*", action=Value, complete=shtab.FILE, help="files and overrides")
    return parser


def finding_parser() -> Parser:
    """Knows every option that has a value and checks none, so that the first word left over is the command."""
    parser = _parser(PROGRAM, PROGRAM_USAGE)
    parser.add_argument("-h", "--help", nargs="?", const="")
    parser.add_argument("-c", "--config", nargs="?", const="")
    parser.add_argument("--local_rank", "--local-rank", nargs="?")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--print-completion", nargs="?", const="")
    # A switch takes no word that could be the command.
    declared = [one for command in COMMANDS.values() for one in declared_options(command) if one.kind is not bool]
    for flag in sorted({one.flag for one in declared}):
        parser.add_argument(flag, nargs="?")
    return parser


def _parser(prog: str, usage: str) -> Parser:
    return Parser(
        prog=prog,
        usage=usage,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=Layout,
    )


def _add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    files = parser.add_argument_group("files, in this order or by name")
    options = parser.add_argument_group("options")
    for declared in declared_options(command):
        _add(files if declared.option.positional else options, declared)
    _add_common(options)
    if command.reads_config:
        _add_config(parser)


def _add(group: argparse._ArgumentGroup, declared: Declared) -> None:
    text = declared.option.help.replace("%", "%%")
    if declared.kind is bool:
        group.add_argument(declared.flag, action="store_true", help=text)
        return
    if not declared.required and declared.default is not None:
        text += f" (default: {declared.default})"
    group.add_argument(
        declared.flag,
        action=Value,
        type=reader(declared),
        choices=declared.option.choices or None,
        metavar=declared.metavar,
        complete=shtab.FILE if declared.kind is Path else None,
        help=f"{text}; required" if declared.required and not declared.option.positional else text,
    )


def _add_common(group: argparse._ArgumentGroup) -> None:
    # DeepSpeed's launcher passes it to every process; the environment says the same.
    group.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    group.add_argument(
        "-h",
        "--help",
        nargs="?",
        const="",
        metavar="SECTION",
        help="show this, or the configuration keys of a section; --help all: of every section",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("configuration", CONFIGURATION)
    group.add_argument(
        "-c",
        "--config",
        action=Value,
        repeated=True,
        complete=shtab.FILE,
        metavar="FILE",
        help="a YAML file; may be repeated, later files win over earlier ones",
    )


def _usage(command: Command) -> str:
    """Such as "rest_megatron inspect INPUT [--trust-pickle]", in lines of at most WIDTH characters."""
    words = [f"{PROGRAM} {command.name}"]
    for declared in declared_options(command):
        value = declared.flag if declared.kind is bool else f"{declared.flag} {declared.metavar}"
        shown = declared.metavar if declared.option.positional else value
        words.append(shown if declared.required else f"[{shown}]")
    words += ["[-c FILE]...", f"[{OVERRIDE}]..."] if command.reads_config else []
    # A space inside an option is no place for a line break.
    kept = " ".join(word.replace(" ", "\0") for word in words)
    lines = textwrap.wrap(kept, WIDTH - len("usage: "), break_on_hyphens=False, break_long_words=False)
    return "\n         ".join(lines).replace("\0", " ").replace("%", "%%")
