"""The program: what a command is given, exit codes, who speaks when a job fails."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import yaml

from rest_megatron import cli
from rest_megatron.config import load
from rest_megatron.distributed import failure
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import CheckpointError, ConfigError, DataError
from tests.paths import ROOT
from tests.unit.run_files import write_run_files


def rank(number: int, world_size: int = 8, local_size: int = 4) -> dict[str, str]:
    return {
        "RANK": str(number),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(number % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


@pytest.fixture
def files(tmp_path):
    return write_run_files(tmp_path)


@pytest.fixture
def programs(monkeypatch):
    """Stand-ins for the training programs; `error` is raised by both, `calls` records what ran."""
    state = SimpleNamespace(calls=[], error=None)

    def program(name):
        def run(config, launch):
            state.calls.append((name, config))
            if state.error is not None:
                raise state.error

        return SimpleNamespace(main=run)

    for name in ("train", "sft"):
        monkeypatch.setitem(sys.modules, f"rest_megatron.commands.{name}", program(name))
    return state


@pytest.mark.parametrize(
    "words, command", [(["train"], "train"), (["sft"], "sft"), ([], "train"), (["--local_rank=0", "sft"], "sft")]
)
def test_a_command_runs_its_program_with_the_configuration(files, programs, words, command):
    assert cli.main([*words, "-c", os.devnull, "optim.lr=1e-3", *files.overrides], {}) == 0
    assert programs.calls == [(command, load([], ["optim.lr=1e-3", *files.overrides]))]


def test_files_and_overrides_may_be_mixed(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"run: {{seed: {seed}}}\noptim: {{lr: {seed}}}\n")
    argv = ["print-config", "optim.lr=7", "-c", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert cli.main(argv, {}) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["run"]["seed"], shown["optim"]["lr"]) == (2, 7.0)


@pytest.mark.parametrize(
    "argv, fragment",
    [
        (["train", "--wandb-key=abc"], "unknown option --wandb-key"),
        (["train", "seed"], "'seed' is not an override"),
        (["train", "run.sed=1"], "Did you mean run.seed?"),
        (["train", "-c", "/nowhere/x.yaml"], "does not exist"),
        (["train", "train.mini_batch_size=3"], "does not divide"),
        (["train"], "model.path is not set"),
    ],
)
def test_usage_and_configuration_errors_end_with_2_and_say_why(argv, fragment, capsys):
    assert cli.main(argv, {}) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("config error: ") and fragment in captured.err
    assert captured.out == "" and "abc" not in captured.err


@pytest.mark.parametrize(
    "error, code", [(ConfigError("a\n b"), 2), (DataError("a\n b"), 3), (CheckpointError("a\n b"), 4)]
)
def test_an_error_of_the_program_ends_with_its_code(files, programs, capsys, error, code):
    programs.error = error
    assert cli.main(["train", *files.overrides], {}) == code
    assert capsys.readouterr().err == f"{error.kind}: a\n b\n"


def test_an_error_nobody_foresaw_keeps_its_traceback(files, programs):
    programs.error = ZeroDivisionError("bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", *files.overrides], {})


WHOLE, LINE, QUIET = "data error: a\n b\n", "rank {}: data error: a\n", ""


@pytest.mark.parametrize("number, shown", [(0, WHOLE), (1, QUIET), (3, QUIET), (4, LINE), (5, QUIET)])
def test_an_error_in_shared_input_is_told_once_and_by_one_line_per_other_node(files, programs, capsys, number, shown):
    programs.error = DataError("a\n b")
    assert cli.main(["train", *files.overrides], rank(number)) == 3
    assert capsys.readouterr().err == shown.format(number)


@pytest.mark.parametrize(
    "texts, shown",
    [
        (["a\n b", "a\n b", "a\n b"], [WHOLE, QUIET, QUIET]),
        (["a\n b", "a\n c", "a\n b"], [WHOLE, LINE, QUIET]),
        ([None, "a\n b", "a\n b"], [None, LINE, LINE]),
    ],
)
def test_a_running_job_reports_each_failure_once(monkeypatch, texts, shown):
    distributed = pytest.importorskip("torch.distributed")
    store = distributed.HashStore()
    monkeypatch.setattr(failure, "_store", lambda launch: store)
    monkeypatch.setattr(failure.agree, "__defaults__", (timedelta(seconds=5 if texts[0] else 0.2),))

    def fail(number):
        stream = io.StringIO()
        if texts[number] is None:
            return None
        failure.report(DataError(texts[number]), Launch(number, 3, number, 3, "localhost", 1, "torchrun"), stream)
        return stream.getvalue()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fail, range(3))) == [text and text.format(i) for i, text in enumerate(shown)]


@pytest.mark.parametrize("number", [0, 1])
def test_output_comes_from_rank_0_alone(number, capsys):
    for argv in (["print-config"], ["--help"], ["convert", "--help"], ["--version"]):
        assert cli.main(argv, rank(number)) == 0
        assert bool(capsys.readouterr().out) == (number == 0)


def test_the_layout_is_checked_before_a_program_starts(files, programs, capsys):
    overrides = [*files.overrides, "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
    assert cli.main(["train", *overrides], rank(0, world_size=6, local_size=6)) == 2
    assert "world size (6) != TP (2) * PP (2) * DP" in capsys.readouterr().err
    assert programs.calls == []


def test_rank_0_does_not_wait_for_ranks_that_live_on():
    distributed = pytest.importorskip("torch.distributed")
    assert failure.agree(distributed.HashStore(), "a", 0, 2, timedelta(seconds=0.1)) is False


def test_a_run_refuses_the_directory_of_an_earlier_run(files, programs, capsys):
    run_dir = files.model.parent / "new" / "run"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("")
    assert cli.main(["train", *files.overrides], {}) == 0
    (run_dir / "metrics.jsonl").write_text("{}")
    assert cli.main(["train", *files.overrides], {}) == 2
    assert "metrics.jsonl of an earlier run" in capsys.readouterr().err
    assert len(programs.calls) == 1


def start(*argv: str, **environ: str) -> subprocess.CompletedProcess:
    names = ("PATH", "HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in names if name in os.environ} | environ
    command = [sys.executable, "-m", "rest_megatron", *argv]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_module_runs_and_shows_no_secret(tmp_path):
    (tmp_path / "ds.json").write_text('{"password": "hunter2", "wandb": {"api_key": "hunter2"}}')
    path = tmp_path / "run.yaml"
    path.write_text("deepspeed: ds.json\n")
    done = start("print-config", "-c", str(path), "run.seed=3", WANDB_API_KEY="hunter2" * 6)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["run"]["seed"] == 3
    assert yaml.safe_load(done.stdout)["deepspeed"] == {"password": "***", "wandb": {"api_key": "***"}}
    assert "hunter2" not in done.stdout


def test_the_module_ends_with_the_exit_code_of_the_error():
    done = start("train", "optim.lr=-1", "deepspeed.password=hunter2")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("config error: optim.lr=-1 must be > 0") and "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["print-config"],
        ["--help"],
        ["weigh", "--help"],
        ["--version"],
        ["--print-completion", "bash"],
        ["convert", "a"],
    ],
)
def test_what_needs_no_model_imports_no_heavy_library(argv):
    heavy = {"torch", "transformers", "deepspeed", "matplotlib", "wandb", "pyarrow", "numpy"}
    code = (
        f"import sys; from rest_megatron.cli import main; main({argv}, {{}}); "
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_launch_is_known_before_arguments_are(capsys):
    assert cli.main(["nonsense"], {"RANK": "1"}) == 2
    assert "WORLD_SIZE" in capsys.readouterr().err
