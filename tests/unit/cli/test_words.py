"""What the words of a command line mean: command, options, files and overrides, and the errors."""

import shlex
from pathlib import Path

import pytest

from rest_megatron.cli import parse
from rest_megatron.commands.catalogue import COMMANDS, Convert, Diff, Heatmap, Inspect, Prepare, Score, Verify, Weigh
from rest_megatron.errors import ConfigError
from tests.paths import ROOT


def failure(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(argv)
    return str(error.value)


@pytest.mark.parametrize(
    "line, options",
    [
        ("score a b", Score(input=Path("a"), output=Path("b"))),
        ("score a b --step 5", Score(input=Path("a"), output=Path("b"), step=5)),
        ("score --progress=0.5 a b", Score(input=Path("a"), output=Path("b"), progress=0.5)),
        ("weigh a b --tokenizer t", Weigh(input=Path("a"), output=Path("b"), tokenizer=Path("t"))),
        ("heatmap --tokenizer t a", Heatmap(input=Path("a"), tokenizer=Path("t"))),
        (
            "heatmap a --tokenizer t --row 2 --output c",
            Heatmap(input=Path("a"), tokenizer=Path("t"), row=2, output=Path("c")),
        ),
        ("prepare a b --source xlam", Prepare(input=Path("a"), output=Path("b"), source="xlam")),
        ("convert a b", Convert(input=Path("a"), output=Path("b"))),
        (
            "convert a b --format megatron --model m --dtype float32 --vocab-multiple 8 --trust-pickle",
            Convert(
                input=Path("a"),
                output=Path("b"),
                format="megatron",
                model=Path("m"),
                dtype="float32",
                vocab_multiple=8,
                trust_pickle=True,
            ),
        ),
        ("convert --output b --input a", Convert(input=Path("a"), output=Path("b"))),
        ("convert --output b a", Convert(input=Path("a"), output=Path("b"))),
        ("convert b --input a", Convert(input=Path("a"), output=Path("b"))),
        ("--input a convert b", Convert(input=Path("a"), output=Path("b"))),
        ("inspect a --trust-pickle", Inspect(input=Path("a"), trust_pickle=True)),
        ("verify a --model m", Verify(input=Path("a"), model=Path("m"))),
        ("diff a b", Diff(input=Path("a"), against=Path("b"))),
    ],
)
def test_files_are_given_in_order_or_by_name(line, options):
    assert parse(line.split()).options == options


@pytest.mark.parametrize(
    "words, name",
    [
        (["/tmp/a=b.jsonl"], "/tmp/a=b.jsonl"),
        (["./a=b"], "./a=b"),
        (["--input", "a=b"], "a=b"),
        (["--input=optim.lr=1"], "optim.lr=1"),
        (["--", "a=b"], "a=b"),
        (["--", "-x"], "-x"),
        (["--", "--help"], "--help"),
        (["--input=-x"], "-x"),
        (["-"], "-"),
        (["two words"], "two words"),
        (["--input", "two words"], "two words"),
        (["données/réponses.jsonl"], "données/réponses.jsonl"),
        (["help"], "help"),
    ],
)
def test_any_file_can_be_named(words, name):
    assert parse(["inspect", *words]).options == Inspect(input=Path(name))


def test_overrides_and_files_stand_anywhere_after_the_command():
    request = parse(
        shlex.split("score train.steps=9 a -c x.yaml reward.preset=poster b --step 3 -c y.yaml 'run.dir=a b'")
    )
    assert request.options == Score(input=Path("a"), output=Path("b"), step=3)
    assert request.config_files == ["x.yaml", "y.yaml"]
    assert request.overrides == ["train.steps=9", "reward.preset=poster", "run.dir=a b"]


@pytest.mark.parametrize(
    "option", [["--local_rank=3"], ["--local-rank", "3"], ["--local_rank", "3"], ["--local-rank=3"]]
)
@pytest.mark.parametrize("place", [0, 1, 2, 4, 5])
def test_the_local_rank_of_deepspeeds_launcher_is_ignored_anywhere(option, place):
    argv = ["sft", "train.steps=5", "-c", "run.yaml", "optim.lr=1"]
    request = parse([*argv[:place], *option, *argv[place:]])
    assert (request.command.name, request.config_files) == ("sft", ["run.yaml"])
    assert request.overrides == ["train.steps=5", "optim.lr=1"]


@pytest.mark.parametrize(
    "line", ["-c a.yaml", "-c a.yaml optim.lr=1", "optim.lr=1 -c a.yaml", "--local_rank 0 -c a.yaml"]
)
def test_a_configuration_without_a_command_is_trained_on(line):
    request = parse(line.split())
    assert (request.command.name, request.config_files) == ("train", ["a.yaml"])
    assert request.overrides == (["optim.lr=1"] if "lr" in line else [])


@pytest.mark.parametrize(
    "line, problem",
    [
        ("", "a command is missing: one of train, sft,"),
        ("optim.lr=1", "a command is missing"),
        ("trian", "'trian' is not a command; did you mean train? commands: train, sft, profile, rollout,"),
        ("--foo", "unknown option --foo"),
        ("train --conf x", "train: unknown option --conf; did you mean --config?"),
        ("--conf x -c y", "'x' is not a command"),
        ("train --config", "train: -c/--config needs a value"),
        ("train --world-size 4", "train: unknown option --world-size: it is for check"),
        ("check --world-size 0", "check: --world-size: '0' is not a whole number, 1 or more"),
        ("check --world-size x", "check: --world-size: 'x' is not a whole number, 1 or more"),
        ("score a", "score: needs OUTPUT"),
        ("weigh", "weigh: needs INPUT, OUTPUT and --tokenizer"),
        ("inspect a b", "inspect: 'b' is one word too many"),
        ("inspect a --input b", "inspect: 'a' is one word too many"),
        ("score a b --output c", "score: 'b' is one word too many"),
        ("score --output b --output c a", "score: --output: given twice"),
        ("score --input= --output b", "score: --input: is empty"),
        ("score '' b", "score: INPUT: is empty"),
        ("score a --output", "score: --output needs a value (one that begins with a dash: --output=-value)"),
        ("score a --output -b", "score: --output needs a value"),
        ("score a -b", "score: unknown option -b"),
        ("score a b --step -1", "score: --step: '-1' is not a whole number, 0 or more"),
        ("score a b --step 1e3", "score: --step: '1e3' is not a whole number"),
        ("score a b --step 1 --progress 0.5", "score: --step and --progress say the same; give one"),
        ("score a b --progress 1.5", "score: --progress: '1.5' is not a number from 0 to 1"),
        ("score a b --progress nan", "score: --progress: 'nan' is not a number from 0 to 1"),
        ("prepare a b --source xlm", "prepare: --source: 'xlm' is not one of toolace, xlam, hammer, sharegpt,"),
        ("prepare a b", "prepare: needs --source"),
        ("convert a b --trust_pickle", "convert: unknown option --trust_pickle; did you mean --trust-pickle?"),
        ("convert a b --trust-pickle=yes", "convert: --trust-pickle takes no value"),
        ("convert a b -c c.yaml", "convert: unknown option -c: this command reads no configuration"),
        ("convert a b optim.lr=1", "convert: reads no configuration, so optim.lr= means nothing here"),
        ("--print-completion fish", "--print-completion needs one of bash, zsh"),
        ("--version=3", "--version takes no value"),
    ],
)
def test_a_usage_error_is_short_and_shows_the_usage_of_that_command_alone(line, problem):
    text = failure(*shlex.split(line))
    first, usage, *others = text.splitlines()
    assert first.startswith(f"config error: {problem}")
    command = line.split()[0] if line.split()[:1] and line.split()[0] in COMMANDS else "COMMAND"
    assert usage.startswith(f"usage: rest_megatron {command}") and len(others) <= 2
    assert others[-1].startswith("rest_megatron ") and "--help" in others[-1]


@pytest.mark.parametrize("line", ["train --wandb-key=hunter2", "score a b --judge-key=hunter2"])
def test_the_value_of_an_unknown_option_is_not_shown(line):
    assert "hunter2" not in failure(*line.split())


@pytest.mark.parametrize("line", ["inspect {}", "inspect --input {}", "convert a {}"])
def test_a_name_that_no_file_can_have_is_refused(line):
    assert f"'{'x' * 80}...' cannot be used: File name too long" in failure(*line.format("x" * 300).split())


@pytest.mark.parametrize(
    "old, new",
    [
        (["convert", "input=a", "output=b"], "--input a --output b"),
        (
            ["convert", "input=runs/mine", "output=my model", "trust_pickle=true", "vocab_multiple=128"],
            "--input runs/mine --output 'my model' --trust-pickle --vocab-multiple 128",
        ),
        (["score", "input=a", "output=b", "step=5", "train.steps=9"], "--input a --output b --step 5"),
        (["diff", "a", "against=b", "trust_pickle=false"], "--against b"),
    ],
)
def test_options_without_dashes_are_refused_with_what_to_type(old, new):
    first = failure(*old).splitlines()[0]
    assert first.startswith(f"config error: {old[0]}: options begin with --: instead of `")
    assert first.endswith(f"write `{new}`")
    files = [word for word in old[1:] if "=" not in word]
    assert parse([old[0], *files, *shlex.split(new)]).command.name == old[0]


def test_an_old_switch_that_says_no_is_to_be_left_out():
    assert "inspect: options begin with --: leave `trust_pickle=false` out" in failure(
        "inspect", "a", "trust_pickle=false"
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_example_of_a_command_means_that_command(command):
    words = shlex.split(command.example)
    request = parse(words[words.index("rest_megatron") + 1 :])
    assert request.command is command
    assert all((ROOT / file).is_file() for file in request.config_files)
    assert ROOT.joinpath(getattr(request.options, "tokenizer", ".")).is_dir()
