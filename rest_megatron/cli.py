"""The command line.

Exit codes: 0 done, 1 a bug (with its traceback), 2 usage or configuration, 3 data, 4 weights or checkpoint, 5 rollout
engine, 75 stopped as asked and saved, so that the same command goes on, 76 no progress for run.hang_timeout seconds,
77 too many updates in a row that are not finite, 143 stopped as asked by a command that saves nothing. 128 + n: ended
by the second signal, n, without saving.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from rest_megatron.commands.arguments import FILE_COMMANDS, read_file_arguments
from rest_megatron.config import describe, dump, load
from rest_megatron.config.check import check_data_files, check_run, check_run_dir, check_settings
from rest_megatron.config.schema import Config
from rest_megatron.distributed.failure import report
from rest_megatron.distributed.launch import Launch, detect
from rest_megatron.errors import ConfigError, RestError
from rest_megatron.utils.libraries import quiet_libraries

USAGE = """\
usage: python -m rest_megatron COMMAND [-c FILE]... [section.key=value]...

  train          reinforcement learning with ResT token weights (the default command)
  sft            supervised warm start on demonstrations
  profile        entropy, exact score norm and its bound by region, and how much gradient variance the weights save
  rollout        answers to every prompt of data.train, with their scores, in run.dir/rollout.jsonl; no training
  score          input=a.jsonl output=b.jsonl [step=N]: rewards of rows {response, ground_truth}
  weigh          input=a.jsonl output=b.jsonl tokenizer=DIR [progress=P | step=N]: token weights of rows {ids, entropy}
  heatmap        input=a.jsonl tokenizer=DIR [row=N] [output=b.html]: the weights of one answer of a dump, or of weigh
  prepare        input=a.json output=b.parquet source=toolace|xlam|hammer|sharegpt|openai|typed: rows to train on
  convert        input=DIR output=DIR [format=hf|megatron] ...: checkpoints of ours, of Megatron-core and of
                 Hugging Face into each other; all words in the README
  inspect        input=DIR: what a checkpoint, or the newest of a run, is and holds
  verify         input=DIR: whether a checkpoint, or each of a run, is whole
  diff           input=DIR against=DIR: how the tensors of two checkpoints differ
  check          versions, configuration, model, tokenizer and data, without a GPU or a process group
  print-config   the resolved configuration as YAML, secrets hidden
  print-server   the shell command that starts a vLLM server at rollout.vllm_url

  -c, --config FILE    a YAML file; later files win over earlier ones, section.key=value over all
  --world-size N       with check: the number of ranks to check the layout for (default 1)
  -h, --help [SECTION] every configuration key, or those of one section

Start one process per device: torchrun -m, deepspeed --module, srun python -m, mpirun python -m, or python -m alone.
"""
COMMANDS = (
    "train",
    "sft",
    "profile",
    "rollout",
    "score",
    "weigh",
    "heatmap",
    "prepare",
    "convert",
    "inspect",
    "verify",
    "diff",
    "check",
    "print-config",
    "print-server",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Usage errors are reported like every other error, once per job."""
        raise ConfigError(f"{message}\n{USAGE}")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command and return its exit code. Errors that are not RestError escape with their traceback."""
    launch: Launch | None = None
    try:
        launch = detect(environ)
        arguments = parse(sys.argv[1:] if argv is None else argv)
        _run(arguments, launch)
    except RestError as error:
        report(error, launch, sys.stderr)
        return error.exit_code
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments: command, config, overrides, world_size, help (None when not asked). Raises ConfigError."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("-h", "--help", nargs="?", const="")
    parser.add_argument("--world-size", type=int)
    # DeepSpeed's launcher passes it to every process; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int)
    arguments, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        # The name alone: what follows it may be a key.
        parser.error(f"unknown option {unknown[0].partition('=')[0]}")
    words = arguments.words
    # Without a command, the first word is an override or missing.
    named = bool(words) and "=" not in words[0]
    arguments.command = words[0] if named else "train"
    words = words[1:] if named else words
    taken = FILE_COMMANDS.get(arguments.command, ())
    arguments.files = [word for word in words if word.partition("=")[0] in taken]
    arguments.overrides = [word for word in words if word.partition("=")[0] not in taken]
    if arguments.help is not None:
        return arguments
    if arguments.command not in COMMANDS:
        parser.error(f"{arguments.command!r} is no command; commands: {', '.join(COMMANDS)}")
    if not named and not arguments.config:
        parser.error(f"a command is missing: one of {', '.join(COMMANDS)}")
    if arguments.world_size is None:
        arguments.world_size = 1
    elif arguments.command != "check":
        parser.error("--world-size is for check; a running job learns it from its launcher")
    elif arguments.world_size < 1:
        parser.error(f"--world-size {arguments.world_size} must be at least 1")
    return arguments


def _run(arguments: argparse.Namespace, launch: Launch) -> None:
    if arguments.help is not None:
        _write(f"{USAGE}\n{describe(arguments.help)}", launch)
        return
    config = load(arguments.config, arguments.overrides)
    check_settings(config)
    if arguments.command in FILE_COMMANDS:
        files = read_file_arguments(arguments.command, arguments.files, config)
        if launch.rank == 0:
            quiet_libraries()
            import_module(f"rest_megatron.commands.{arguments.command}").main(config, files, sys.stdout)
    elif arguments.command == "print-config":
        _write(dump(config), launch)
    elif arguments.command == "print-server":
        if launch.rank == 0:
            import_module("rest_megatron.commands.print_server").main(config, sys.stdout)
    elif arguments.command == "check":
        from rest_megatron.commands import check

        if launch.rank == 0:
            check.main(config, arguments.world_size, sys.stdout)
    else:
        check_run(config, launch.world_size)
        check_data_files(config, "sft" if arguments.command == "sft" else "train")
        check_run_dir(config, arguments.command)
        _train(arguments.command, config, launch)


def _train(command: str, config: Config, launch: Launch) -> None:
    quiet_libraries()
    # Only here: these import torch, Megatron and DeepSpeed, which takes seconds.
    import_module(f"rest_megatron.commands.{command}").main(config, launch)


def _write(text: str, launch: Launch) -> None:
    if launch.rank == 0:
        sys.stdout.write(text)
