"""Which process of which job this is, from the variables a launcher leaves in the environment.

Order: RANK and WORLD_SIZE (torchrun, DeepSpeed), a Slurm step, Open MPI, else one process alone.
"""

import math
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from random import SystemRandom
from typing import Literal

from rest_megatron.errors import ConfigError

DEFAULT_PORT = 29500
MAX_HOSTS = 100_000
Launcher = Literal["torchrun", "deepspeed", "slurm", "mpi", "single"]


@dataclass(frozen=True)
class Launch:
    """One process of a job. Ranks count from 0; the process with rank 0 listens on master_addr:master_port."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    launcher: Launcher

    def __post_init__(self) -> None:
        rules = (
            (0 <= self.rank < self.world_size, f"rank {self.rank} is not below the world size {self.world_size}"),
            (
                0 <= self.local_rank < self.local_world_size,
                f"local rank {self.local_rank} is not below the ranks of this node, {self.local_world_size}",
            ),
            (
                self.local_world_size <= self.world_size,
                f"{self.local_world_size} ranks on this node, but only {self.world_size} in the job",
            ),
            (0 < self.master_port < 65536, f"port {self.master_port} is not in 1..65535"),
        )
        for holds, problem in rules:
            if not holds:
                raise ConfigError(
                    f"launch: {problem} (launcher: {self.launcher})\n"
                    "  The launcher's variables contradict each other: start through one launcher only, "
                    "or unset variables left over from another"
                )


def detect(environ: Mapping[str, str]) -> Launch:
    """The place of this process in its job, read from `environ` alone.

    Raises ConfigError when a launcher's variables are incomplete, not numbers, or contradict each other.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _from_torch(environ)
    if "SLURM_STEP_ID" in environ:
        return _from_slurm(environ)
    if "OMPI_COMM_WORLD_RANK" in environ or "OMPI_COMM_WORLD_SIZE" in environ:
        return _from_open_mpi(environ)
    return Launch(0, 1, 0, 1, "127.0.0.1", free_port(), "single")


def _from_torch(environ: Mapping[str, str]) -> Launch:
    launcher: Launcher = "deepspeed" if "CROSS_RANK" in environ else "torchrun"
    # DeepSpeed's launcher calls the number of ranks on a node LOCAL_SIZE.
    local_size = "LOCAL_SIZE" if "LOCAL_WORLD_SIZE" not in environ and "LOCAL_SIZE" in environ else "LOCAL_WORLD_SIZE"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", local_size, "MASTER_ADDR", "MASTER_PORT")
    _require(environ, names, launcher)
    return Launch(
        rank=_integer(environ, "RANK"),
        world_size=_integer(environ, "WORLD_SIZE"),
        local_rank=_integer(environ, "LOCAL_RANK"),
        local_world_size=_integer(environ, local_size),
        master_addr=environ["MASTER_ADDR"],
        master_port=_integer(environ, "MASTER_PORT"),
        launcher=launcher,
    )


def _from_slurm(environ: Mapping[str, str]) -> Launch:
    """`srun` with one task per rank. Outside a step (a bare `python` in an salloc) this is not reached."""
    # The step's own count first: inside salloc's interactive step SLURM_NTASKS is still the whole job's.
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    needed = ["SLURM_PROCID", "SLURM_LOCALID", count, "SLURM_STEP_NODELIST"]
    needed += [] if "MASTER_PORT" in environ else ["SLURM_JOB_ID"]
    _require(environ, needed, "slurm")
    hosts = expand_hosts(environ["SLURM_STEP_NODELIST"])
    world_size = _integer(environ, count)
    if "MASTER_PORT" in environ:
        port = _integer(environ, "MASTER_PORT")
    else:
        port = DEFAULT_PORT + _integer(environ, "SLURM_JOB_ID") % 1000
    return Launch(
        rank=_integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environ, "SLURM_LOCALID"),
        local_world_size=_slurm_tasks_on_this_node(environ, world_size, len(hosts)),
        master_addr=environ.get("MASTER_ADDR") or hosts[0],
        master_port=port,
        launcher="slurm",
    )


def _slurm_tasks_on_this_node(environ: Mapping[str, str], world_size: int, num_hosts: int) -> int:
    """Tasks of this node: from SLURM_STEP_TASKS_PER_NODE, such as "4(x2),3", else an even share."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if text is not None and "SLURM_NODEID" in environ:
        parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
        counts = [(int(part[1]), int(part[2] or 1)) for part in parts if part is not None]
        if len(counts) < len(parts):
            raise ConfigError(f"launch: SLURM_STEP_TASKS_PER_NODE={text!r} is not a list of counts such as 4(x2),3")
        node = _integer(environ, "SLURM_NODEID")
        for tasks, nodes in counts:
            if node < nodes:
                return tasks
            node -= nodes
        raise ConfigError(f"launch: SLURM_NODEID={environ['SLURM_NODEID']} is beyond SLURM_STEP_TASKS_PER_NODE={text}")
    if world_size % num_hosts:
        raise ConfigError(
            f"launch: {world_size} Slurm tasks do not divide evenly over {num_hosts} hosts, and "
            "SLURM_STEP_TASKS_PER_NODE with SLURM_NODEID is not set\n"
            "  Start with srun --ntasks-per-node=N"
        )
    return world_size // num_hosts


def _from_open_mpi(environ: Mapping[str, str]) -> Launch:
    names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    _require(environ, names, "mpi")
    rank, world_size, local_rank, local_world_size = (_integer(environ, name) for name in names)
    address = environ.get("MASTER_ADDR", "127.0.0.1" if local_world_size == world_size else "")
    if not address:
        raise ConfigError(
            f"launch: MPI started {world_size} ranks on several nodes ({local_world_size} here), "
            "but MASTER_ADDR is not set\n"
            "  Open MPI does not name the host of rank 0: add mpirun -x MASTER_ADDR=<that host> -x MASTER_PORT=29500"
        )
    port = _integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else DEFAULT_PORT
    return Launch(rank, world_size, local_rank, local_world_size, address, port, "mpi")


def expand_hosts(nodelist: str) -> list[str]:
    """The hosts of a Slurm node list, in order: "node[003-005,12],login" -> node003 node004 node005 node12 login.

    Raises ConfigError for a list that cannot be read or names more than MAX_HOSTS hosts.
    """
    groups = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodelist)
    if not groups or ",".join(groups) != nodelist:
        raise ConfigError(
            f"launch: cannot read the Slurm node list {nodelist!r}; expected one such as node[003-010,12]"
        )
    return list(chain.from_iterable(_expand_group(group, nodelist) for group in groups))


def _expand_group(group: str, nodelist: str) -> list[str]:
    pieces = [
        _expand_ranges(piece[1:-1], nodelist) if piece.startswith("[") else [piece]
        for piece in re.findall(r"\[[^\]]*\]|[^\[\]]+", group)
    ]
    if math.prod(len(choices) for choices in pieces) > MAX_HOSTS:
        raise ConfigError(f"launch: the Slurm node list {nodelist!r} names more than {MAX_HOSTS} hosts")
    return ["".join(parts) for parts in product(*pieces)]


def _expand_ranges(ranges: str, nodelist: str) -> list[str]:
    """The numbers of "003-005,12", with the zeros they are written with."""
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
        begin, end = (match[1], match[2] or match[1]) if match else ("1", "0")
        first, last = int(begin), int(end)
        if last < first or last - first >= MAX_HOSTS:
            raise ConfigError(f"launch: cannot read the range {part!r} in the Slurm node list {nodelist!r}")
        numbers += [str(number).zfill(len(begin)) for number in range(first, last + 1)]
    return numbers


def _require(environ: Mapping[str, str], names: Sequence[str], launcher: Launcher) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = [name for name in names if environ.get(name)]
        raise ConfigError(
            f"launch: {', '.join(present) or 'nothing'} set, but {', '.join(missing)} missing (launcher: {launcher})\n"
            f"  All of {', '.join(names)} are needed: start through torchrun, deepspeed, srun or mpirun, "
            "or unset the ones that are set to run as one process"
        )


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not re.fullmatch(r"\d{1,18}", text):
        raise ConfigError(f"launch: {name}={text!r} is not a whole number; a launcher sets it, so unset or correct it")
    return int(text)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens.

    It lies below those that systems give to outgoing connections by default: one of these may be in use again before
    the process that the port is for listens on it.
    """
    random = SystemRandom()  # no generator of the run's
    for _ in range(100):
        port = random.randrange(15_000, 32_768)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise ConfigError("launch: no free port of 127.0.0.1 was found between 15000 and 32767; set MASTER_PORT")
