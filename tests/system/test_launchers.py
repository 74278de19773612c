"""One program, four ways to start it, the same numbers."""

import subprocess

import pytest

from tests.system.runs import environment, free_port, make_run, metrics, program, run, torchrun

TP2 = "parallel.tensor_model_parallel_size=2"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The metrics of one process."""
    directory = tmp_path_factory.mktemp("single")
    done = run(program("sft", *make_run(directory)), directory)
    assert done.returncode == 0, done.stderr
    return metrics(directory / "run")


def assert_same_run(rows, expected):
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, want in zip(rows, expected, strict=True):
        assert row == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_plain_python_is_one_rank(single):
    assert [row["step"] for row in single] == [1, 2]
    assert single[1]["actor/loss"] < single[0]["actor/loss"]
    assert single[0]["actor/grad_norm"] > 0


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launcher_starts_two_ranks_with_the_same_numbers(tmp_path, single, launcher):
    words = ["sft", *make_run(tmp_path), TP2]
    commands = {
        "torchrun": torchrun(2, *words),
        "deepspeed": ["deepspeed", "--num_gpus=2", f"--master_port={free_port()}", "--module", "rest_megatron", *words],
    }
    done = run(commands[launcher], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(metrics(tmp_path / "run"), single)
    assert done.stdout.count("step 2/2") == 1


def test_slurm_tasks_find_their_rank_without_a_launcher(tmp_path, single):
    words = program("sft", *make_run(tmp_path), TP2)
    job = {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    tasks = [
        subprocess.Popen(
            words,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(2)
    ]
    output = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], output
    assert_same_run(metrics(tmp_path / "run"), single)


def test_a_warm_start_exports_a_model_that_reinforcement_learning_starts_from(tmp_path):
    words = make_run(tmp_path)
    done = run(program("sft", *words), tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(
        program(
            "train",
            *words,
            f"model.path={tmp_path / 'run' / 'hf'}",
            "model.random_init=false",
            f"run.dir={tmp_path / 'rest'}",
            f"data.eval={tmp_path / 'rows.jsonl'}",
        ),
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "rest")
    assert [row["progress"] for row in rows] == [0.5, 1.0]
    assert rows[0]["mismatch/max"] < 1e-4
    assert rows[0]["actor/ratio"] == pytest.approx(1.0, abs=1e-6)
    for name in (
        "report.html",
        "report.png",
        "config.yaml",
        "eval.jsonl",
        "rollouts/step-2.jsonl",
        "hf/model.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
    ):
        assert (tmp_path / "rest" / name).stat().st_size > 0
    assert "exact answers" in done.stdout
