"""One program, five ways to start it, the same numbers."""

import contextlib
import os
import subprocess

import pytest

from rest_megatron.distributed.launch import free_port
from tests.system.runs import environment, make_run, metrics, program, run, torchrun

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


@pytest.fixture
def two_hosts():
    """[(command that runs another on the host, its address)] of two hosts: network namespaces, joined by a cable."""
    names = [f"rest-{os.getpid()}-{i}" for i in range(2)]
    cables = [f"rest{os.getpid() % 100_000}-{i}" for i in range(2)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    enter = [["ip", "netns", "exec", name] for name in names]
    commands = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", cables[0], "netns", names[0], "type", "veth", "peer", cables[1], "netns", names[1]],
        *([*e, "ip", "address", "add", f"{a}/24", "dev", c] for e, a, c in zip(enter, addresses, cables, strict=True)),
        *([*e, "ip", "link", "set", d, "up"] for e, c in zip(enter, cables, strict=True) for d in (c, "lo")),
    ]
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("needs the command `ip`")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
        yield [([*e, "env", f"GLOO_SOCKET_IFNAME={c}"], a) for e, c, a in zip(enter, cables, addresses, strict=True)]
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
def test_deepspeed_trains_on_the_two_hosts_of_a_hostfile(tmp_path, single, two_hosts):
    (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for _, address in two_hosts))
    words = ["deepspeed", f"--hostfile={tmp_path / 'hosts'}", "--no_ssh", f"--master_addr={two_hosts[0][1]}"]
    words += [f"--master_port={free_port()}"]
    program = ["--module", "rest_megatron", "sft", *make_run(tmp_path), TP2]
    launchers = [
        subprocess.Popen(
            [*enter, *words, f"--node_rank={rank}", *program],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        for rank, (enter, _) in enumerate(two_hosts)
    ]
    try:
        output = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()
    assert [launcher.returncode for launcher in launchers] == [0, 0], output
    assert_same_run(metrics(tmp_path / "run"), single)
    assert [text.count("\nstep 2/2") for text in output] == [1, 0]


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
