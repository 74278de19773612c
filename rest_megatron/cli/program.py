"""The program: one command, run on the ranks that it is for, and its exit code.

Exit codes: 0 done, 1 a bug (with its traceback), 2 usage or configuration, 3 data, 4 weights or checkpoint, 5 rollout
engine, 75 stopped on request and saved, so that the same command resumes, 76 no progress for run.hang_timeout seconds,
77 too many updates in a row that are not finite, 143 stopped on request by a command that saves nothing. 128 + n: ended
by the second signal, n, without saving.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from rest_megatron.cli.words import Request, parse
from rest_megatron.commands.command import NoOptions
from rest_megatron.config import load
from rest_megatron.config.check import check_data_files, check_run, check_run_dir, check_settings
from rest_megatron.config.schema import Config
from rest_megatron.distributed.failure import report
from rest_megatron.distributed.launch import Launch, detect
from rest_megatron.errors import RestError
from rest_megatron.utils.libraries import quiet_libraries


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command and return its exit code. Errors that are not RestError escape with their traceback."""
    launch: Launch | None = None
    try:
        launch = detect(environ)
        request = parse(sys.argv[1:] if argv is None else argv)
        if isinstance(request, Request):
            _run(request, launch)
        elif launch.rank == 0:
            sys.stdout.write(request)
    except RestError as error:
        report(error, launch, sys.stderr)
        return error.exit_code
    return 0


def _run(request: Request, launch: Launch) -> None:
    command, inputs = request.command, []
    if command.reads_config:
        config = load(request.config_files, request.overrides)
        check_settings(config)
        inputs.append(config)
        if command.every_rank:
            _check_job(config, command.name, launch)
    if command.options is not NoOptions:
        inputs.append(request.options)
    if command.every_rank or launch.rank == 0:
        quiet_libraries()
        # Only here: most of them import torch, Megatron or transformers, which takes seconds.
        import_module(command.module).main(*inputs, launch if command.every_rank else sys.stdout)


def _check_job(config: Config, command: str, launch: Launch) -> None:
    check_run(config, launch.world_size)
    check_data_files(config, "sft" if command == "sft" else "train")
    check_run_dir(config, command)
