"""Which process of which job this is."""

import socket

import pytest

from rest_megatron.distributed.launch import Launch, detect, expand_hosts
from rest_megatron.errors import ConfigError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29501",
}
# What deepspeed.launcher.launch sets.
DEEPSPEED = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"} | {
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "node[007-008]",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29501",
}


@pytest.mark.parametrize(
    "environ, launch",
    [
        (TORCHRUN, Launch(5, 8, 1, 4, "node7", 29501, "torchrun")),
        (DEEPSPEED, Launch(5, 8, 1, 4, "node7", 29501, "deepspeed")),
        (SLURM, Launch(5, 8, 1, 4, "node007", 29500 + 567, "slurm")),
        (MPI, Launch(5, 8, 1, 4, "node7", 29501, "mpi")),
    ],
)
def test_each_launcher_is_recognised_by_its_variables(environ, launch):
    assert detect(environ) == launch
    assert detect(environ | {"PATH": "/bin", "HOME": "/"}) == launch


@pytest.mark.parametrize("environ", [TORCHRUN, DEEPSPEED, SLURM, MPI])
def test_a_missing_variable_is_named(environ):
    for name in environ.keys() - {"CROSS_RANK", "CROSS_SIZE", "SLURM_STEP_ID", "MASTER_PORT", "MASTER_ADDR"}:
        with pytest.raises(ConfigError) as caught:
            detect({key: value for key, value in environ.items() if key != name})
        assert name in str(caught.value) or "LOCAL_WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
def test_torchrun_without_a_rendezvous_address_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        detect({key: value for key, value in TORCHRUN.items() if key != name})


def test_rank_and_world_size_go_before_slurm():
    # torchrun inside srun: Slurm counts one task per node.
    assert detect(SLURM | TORCHRUN | {"SLURM_NTASKS": "2"}).launcher == "torchrun"


def test_alone_without_a_launcher():
    launch = detect({})
    assert launch == Launch(0, 1, 0, 1, "127.0.0.1", launch.master_port, "single")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", launch.master_port))


def test_an_allocation_without_a_step_is_one_process():
    environ = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert detect(environ).launcher == "single"


def test_the_shell_of_an_allocation_is_one_process():
    # salloc with use_interactive_step: a step of one task inside a job of eight.
    shell = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    shell |= {"SLURM_STEP_NODELIST": "node007", "SLURM_STEP_ID": "4294967290"}
    assert detect(shell).world_size == 1


@pytest.mark.parametrize("node, tasks", [(0, 4), (1, 4), (2, 3)])
def test_uneven_slurm_nodes(node, tasks):
    environ = SLURM | {"SLURM_NTASKS": "11", "SLURM_STEP_NODELIST": "a[1-3]", "SLURM_NODEID": str(node)}
    assert detect(environ | {"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}).local_world_size == tasks


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2", "SLURM_NODEID": "0"}, "is not a list of counts"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "2"}, "beyond"),
        ({"SLURM_NTASKS": "9"}, "do not divide evenly over 2 hosts"),
        ({"SLURM_STEP_NODELIST": "node[7"}, "cannot read the Slurm node list"),
    ],
)
def test_slurm_variables_that_make_no_sense(change, problem):
    with pytest.raises(ConfigError, match=problem):
        detect(SLURM | change)


def test_an_address_set_by_the_user_is_kept_under_slurm():
    launch = detect(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert (launch.master_addr, launch.master_port) == ("10.0.0.1", 1234)


def test_mpi_needs_an_address_only_across_nodes():
    local = {name: value for name, value in MPI.items() if not name.startswith("MASTER")}
    with pytest.raises(ConfigError, match="-x MASTER_ADDR="):
        detect(local)
    launch = detect(local | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "5"})
    assert (launch.master_addr, launch.master_port) == ("127.0.0.1", 29500)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"RANK": "8"}, "rank 8 is not below the world size 8"),
        ({"LOCAL_RANK": "4"}, "local rank 4 is not below the ranks of this node, 4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "9 ranks on this node, but only 8"),
        ({"WORLD_SIZE": "eight"}, "WORLD_SIZE='eight' is not a whole number"),
        ({"RANK": "-1"}, "RANK='-1' is not a whole number"),
        ({"RANK": ""}, "RANK missing"),
        ({"MASTER_PORT": "0"}, "port 0"),
        ({"MASTER_PORT": "70000"}, "port 70000"),
    ],
)
def test_contradictions_are_refused(change, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        detect(TORCHRUN | change)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "nodelist, hosts",
    [
        ("login", ["login"]),
        ("a,b-1,c.d", ["a", "b-1", "c.d"]),
        ("node[003-005,12]", ["node003", "node004", "node005", "node12"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[099-101]-ib,m", ["n099-ib", "n100-ib", "n101-ib", "m"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_slurm_node_lists(nodelist, hosts):
    assert expand_hosts(nodelist) == hosts


@pytest.mark.parametrize(
    "nodelist",
    ["", ",", "a,,b", "a,", "n[1-", "n]1[", "n[]", "n[2-1]", "n[a-b]", "n[1-2-3]", "n[[1]]", "n[1-999999]",
     "n[1-999][1-999]"],
)  # fmt: skip
def test_broken_node_lists_are_refused(nodelist):
    with pytest.raises(ConfigError, match="Slurm node list"):
        expand_hosts(nodelist)
