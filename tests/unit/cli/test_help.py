"""What the program tells of itself: overview, help of a command and of a section, version, completion."""

import shutil
import subprocess

import pytest

from rest_megatron import __version__
from rest_megatron.cli import parse
from rest_megatron.cli.parts import WIDTH
from rest_megatron.commands.catalogue import COMMANDS
from rest_megatron.commands.command import declared_options
from rest_megatron.config import describe
from rest_megatron.errors import ConfigError


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--help", "--local_rank=0"]])
def test_the_overview_has_a_line_for_each_command_and_names_every_section(argv):
    text = parse(argv)
    assert text.startswith("usage: rest_megatron COMMAND")
    lines = text.splitlines()
    for command in COMMANDS.values():
        assert f"  {command.name:<14}{command.summary}" in lines
    assert all(word in text for word in ("--version", "--config", "weights", "optim", "vllm", "torchrun"))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_help_of_a_command_shows_every_option_and_an_example_but_no_key(command, option):
    text = parse([command.name, option])
    assert text.startswith(f"usage: rest_megatron {command.name}")
    assert text.endswith(f"example:\n  {command.example}\n")
    assert all(f"\n  {one.flag}" in text for one in declared_options(command))
    assert ("--config" in text, "--help SECTION" in text) == (command.reads_config,) * 2
    assert "optim.lr  (" not in text and "local_rank" not in text
    assert max(map(len, text.replace(command.example, "").splitlines())) <= WIDTH + 2


def test_the_help_wins_over_what_is_missing_or_unknown():
    assert parse(["convert", "--ouput", "b", "--help"]) == parse(["--help", "convert"]) == parse(["convert", "-h"])


def test_defaults_and_what_must_be_given_are_said():
    assert "multiple of N (default: 1)" in " ".join(parse(["convert", "-h"]).split())
    assert "[--row N]" in parse(["heatmap", "-h"]) and "counted from 0 (default: 0)" in parse(["heatmap", "-h"])
    assert "tokenizer.json; required" in parse(["weigh", "-h"]) and "_MISSING" not in parse(["weigh", "-h"])


@pytest.mark.parametrize(
    "argv, section",
    [
        (["--help", "weights"], "weights"),
        (["-h", "weights"], "weights"),
        (["score", "--help", "weights"], "weights"),
        (["--help", "train"], "train"),  # a section before a command of its name
        (["--help", "vllm"], "vllm"),
        (["--help", "all"], ""),
    ],
)
def test_the_keys_of_a_section_or_of_all_are_described(argv, section):
    assert parse(argv) == describe(section)


def test_an_unknown_section_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="--help weigths: no such section or command; did you mean weights?"):
        parse(["--help", "weigths"])


@pytest.mark.parametrize("argv", [["--version"], ["train", "--version"], ["--version", "--local_rank", "0"]])
def test_the_version_is_that_of_the_package(argv):
    assert parse(argv) == f"rest_megatron {__version__}\n"


TRY = """
source "$1"; shift
COMP_WORDS=(rest_megatron "$@"); COMP_CWORD=$#
_shtab_rest_megatron rest_megatron "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "words, completed",
    [
        (["conv"], ["convert"]),
        (["print-"], ["print-config", "print-server"]),
        (["--v"], ["--version"]),
        (["convert", "--vo"], ["--vocab-multiple"]),
        (["convert", "--format", ""], ["hf", "megatron"]),
        (["prepare", "a", "b", "--source", "t"], ["toolace", "typed"]),
        (["train", "--con"], ["--config"]),
        (["train", "-c", "ru"], ["run.yaml"]),
        (["convert", "run"], ["run.yaml"]),
        (["convert", "run.yaml", "--model", "ru"], ["run.yaml"]),
        (["convert", "--loc"], [""]),
    ],
)
def test_bash_completes_commands_options_choices_and_files(tmp_path, words, completed):
    (tmp_path / "completion.bash").write_text(parse(["--print-completion", "bash"]))
    (tmp_path / "run.yaml").touch()
    done = subprocess.run(
        ["bash", "--norc", "-c", TRY, "bash", "./completion.bash", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout.split("\n")[:-1], done.stderr) == (completed, "")


def test_the_script_for_zsh_is_one():
    text = parse(["--print-completion", "zsh"])
    assert text.startswith("#compdef rest_megatron")
    assert all(command in text for command in COMMANDS)
    if shutil.which("zsh"):
        assert subprocess.run(["zsh", "-n"], input=text, text=True, timeout=30).returncode == 0
