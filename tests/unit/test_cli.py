"""The command line: commands, arguments, exit codes, who speaks when a job fails."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import yaml

import rest_megatron
from rest_megatron import cli
from rest_megatron.config import describe, load
from rest_megatron.distributed import failure
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import CheckpointError, ConfigError, DataError
from tests.paths import ROOT

MODEL = {
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
}
GROUND_TRUTH = "<think> x </think>\n<response> hi </response>"
ROW = {"prompt": [{"role": "user", "content": "hello"}], "reward_model": {"ground_truth": GROUND_TRUTH}}


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
    """A model directory without a tokenizer, a prompt file, and the overrides that name them."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    (model / "model.safetensors").write_bytes(b"")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    overrides = [f"model.path={model}", f"data.train={rows}", f"sft.data={rows}", f"run.dir={tmp_path / 'new' / 'run'}"]
    return SimpleNamespace(model=model, rows=rows, overrides=overrides)


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
        monkeypatch.setitem(sys.modules, f"rest_megatron.{name}", program(name))
        monkeypatch.setattr(rest_megatron, name, sys.modules[f"rest_megatron.{name}"], raising=False)
    return state


@pytest.mark.parametrize(
    "words, command", [(["train"], "train"), (["sft"], "sft"), ([], "train"), (["--local_rank=0", "sft"], "sft")]
)
def test_a_command_runs_its_program_with_the_configuration(files, programs, words, command):
    assert cli.main([*words, "-c", os.devnull, "optim.lr=1e-3", *files.overrides], {}) == 0
    assert programs.calls == [(command, load([], ["optim.lr=1e-3", *files.overrides]))]


@pytest.mark.parametrize(
    "option", [["--local_rank=3"], ["--local-rank", "3"], ["--local_rank", "3"], ["--local-rank=3"]]
)
@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_the_local_rank_of_deepspeeds_launcher_is_ignored_anywhere(tmp_path, option, place):
    path = tmp_path / "run.yaml"
    path.write_text("run: {seed: 3}\n")
    argv = ["sft", "train.steps=5", "-c", str(path), "optim.lr=1"]
    place = place if place != 3 else 4
    arguments = cli.parse([*argv[:place], *option, *argv[place:]])
    assert (arguments.command, arguments.config) == ("sft", [str(path)])
    assert arguments.overrides == ["train.steps=5", "optim.lr=1"]


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
        ([], "a command is missing"),
        (["trian"], "'trian' is no command; commands: train, sft, profile, rollout,"),
        (["optim.lr=1"], "a command is missing"),
        (["train", "--wandb-key=abc"], "unknown option --wandb-key"),
        (["train", "--conf", "x"], "unknown option --conf"),
        (["train", "-c"], "expected one argument"),
        (["train", "seed"], "'seed' is not an override"),
        (["train", "run.sed=1"], "Did you mean run.seed?"),
        (["train", "-c", "/nowhere/x.yaml"], "does not exist"),
        (["train", "--world-size", "4"], "--world-size is for check"),
        (["check", "--world-size", "0"], "must be at least 1"),
        (["check", "--world-size", "x"], "invalid int value"),
        (["train", "train.mini_batch_size=3"], "does not divide"),
        (["train"], "model.path= is not set"),
        (["--help", "weigths"], "did you mean weights?"),
    ],
)
def test_usage_and_configuration_errors_end_with_2_and_say_why(argv, fragment, capsys):
    assert cli.main(argv, {}) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("config error: ") and fragment in captured.err
    assert captured.out == "" and "abc" not in captured.err


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["train", "--help"], ["sft", "-h"]])
def test_help_shows_commands_and_every_key(argv, capsys):
    assert cli.main(argv, {}) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in cli.COMMANDS) and describe() in out


@pytest.mark.parametrize("argv", [["--help", "weights"], ["train", "--help", "weights"]])
def test_help_filters_by_section(argv, capsys):
    assert cli.main(argv, {}) == 0
    out = capsys.readouterr().out
    assert describe("weights") in out and "optim.lr " not in out


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
    for argv in (["print-config"], ["--help"]):
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


@pytest.fixture
def tokenizer(files):
    """A byte-level tokenizer with a chat template in the model directory; ids 0..257."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(files.model)


def test_check_reports_the_machine_and_ends_with_ok(files, tokenizer, capsys):
    files.rows.write_text(json.dumps(ROW | {"response": GROUND_TRUTH}) + "\n")
    tensor = "parallel.tensor_model_parallel_size=2"
    words = ["check", "--world-size", "4", tensor, "model.random_init=true"]
    assert cli.main([*words, *files.overrides], {}) == 0
    out = capsys.readouterr().out
    table = {line[:20].strip(): line[20:].strip() for line in out.splitlines()}
    assert out.endswith("\nok\n")
    assert table["configuration"] == "valid for 4 ranks: TP 2 x PP 1 x DP 2"
    assert table["tokenizer"] == "token ids 0..257 of a vocabulary of 400"
    assert table["data.train"].startswith("1 prompts") and table["sft.data"].startswith("1 demonstrations")
    assert table["torch"] == sys.modules["torch"].__version__ and table["python"].startswith(sys.version.split()[0])
    assert {
        "megatron-core",
        "deepspeed",
        "transformers",
        "triton",
        "Transformer Engine",
        "Apex",
        "CUDA",
    } <= table.keys()
    assert not (files.model.parent / "new").exists()


@pytest.mark.parametrize(
    "breakage, code, fragment",
    [
        (lambda f: (f.model / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 256})), 2, "token id 257"),
        (lambda f: (f.model / "tokenizer.json").write_text("{"), 4, "the tokenizer in model.path"),
        (lambda f: f.rows.write_text("{}\n"), 3, "rows.jsonl"),
        (lambda f: f.rows.write_text(json.dumps(ROW | {"reward_model": {"ground_truth": "x"}})), 3, "ground truth"),
        (lambda f: (f.model.parent / "new").write_text(""), 2, "run.dir="),
        (lambda f: f.rows.unlink(), 2, "data.train="),
    ],
)
def test_check_finds_what_would_stop_the_job(files, tokenizer, capsys, breakage, code, fragment):
    breakage(files)
    overrides = [text for text in files.overrides if not text.startswith("sft")]
    assert cli.main(["check", "model.random_init=true", *overrides], {}) == code
    captured = capsys.readouterr()
    assert fragment in captured.err and not captured.out.endswith("ok\n")


def test_check_reads_the_headers_of_the_weights(files, tokenizer, capsys):
    assert cli.main(["check", *files.overrides], {}) == 4
    assert "model.safetensors cannot be read" in capsys.readouterr().err


def test_check_and_a_run_refuse_the_directory_of_an_earlier_run(files, tokenizer, programs, capsys):
    run_dir = files.model.parent / "new" / "run"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("")
    assert cli.main(["train", *files.overrides], {}) == 0
    (run_dir / "metrics.jsonl").write_text("{}")
    for words in (["train"], ["check", "model.random_init=true", "sft.data=''"]):
        assert cli.main([*words[:1], *files.overrides, *words[1:]], {}) == 2
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


def test_reading_a_configuration_imports_no_heavy_library():
    code = (
        "import sys; from rest_megatron.cli import main; main(['print-config'], {});"
        "sys.exit(bool({'torch', 'transformers', 'deepspeed', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_launch_is_known_before_arguments_are(capsys):
    assert cli.main(["nonsense"], {"RANK": "1"}) == 2
    assert "WORLD_SIZE" in capsys.readouterr().err
    assert isinstance(cli.detect({}), Launch)
