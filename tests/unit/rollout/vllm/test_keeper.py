"""The keeper leaves nothing of a server behind, however the trainer ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rest_megatron.rollout.vllm import keeper
from tests.waiting import happens

SERVER = """
import os, signal, subprocess, sys, time
notes, ignore = sys.argv[1], "ignore" in sys.argv
if ignore:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-ISc", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
same_group = subprocess.Popen(sleep)
own_session = subprocess.Popen(sleep, start_new_session=True)
# Its own parent ends at once, so nothing in the server's tree leads to it any more.
orphan = int(subprocess.check_output(
    [sys.executable, "-ISc", "import subprocess, sys; "
     "print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=subprocess.DEVNULL).pid)", *sleep]))
with open(notes + ".part", "w") as file:
    print(os.getpid(), same_group.pid, own_session.pid, orphan, file=file)
os.rename(notes + ".part", notes)
if "end" in sys.argv:
    sys.exit(7)
time.sleep(600)
"""
TRAINER = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), *sys.argv[2:]], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


class Case:
    """A trainer with its keeper and server; `pids` are the server's own and its descendants'."""

    def __init__(self, directory: Path, *words: str, grace: float = 5.0) -> None:
        self.private = directory / "private"
        self.private.mkdir()
        notes = directory / "pids"
        server = [sys.executable, "-I", "-S", "-c", textwrap.dedent(SERVER), str(notes), *words]
        self.trainer = subprocess.Popen(
            [sys.executable, "-ISc", TRAINER, keeper.__file__, str(grace), str(self.private), *server],
            stdout=subprocess.PIPE,
        )
        self.keeper = int(self.trainer.stdout.readline())
        assert happens(notes.exists), "the server did not start"
        self.pids = [int(word) for word in notes.read_text().split()]

    def left(self) -> list[int]:
        """Processes of keeper and server that still run."""
        return [pid for pid in (self.keeper, *self.pids) if runs(pid)]

    def clean_up(self) -> None:
        for pid in (self.trainer.pid, *self.left()):
            os.kill(pid, signal.SIGKILL)
        self.trainer.wait()


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie, which a container without an init may never bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start(tmp_path):
    cases = []

    def make(*words, **options):
        cases.append(Case(tmp_path, *words, **options))
        return cases[-1]

    yield make
    for case in cases:
        case.clean_up()


def test_a_killed_trainer_leaves_no_process_and_no_directory(start):
    case = start()
    assert case.left() == [case.keeper, *case.pids] and len(case.pids) == 4
    case.trainer.kill()
    assert happens(lambda: not case.left()), f"still running: {case.left()}"
    assert happens(lambda: not case.private.exists())


def test_a_server_that_ignores_sigterm_is_killed_after_its_grace(start):
    case = start("ignore", grace=1.0)
    started = time.monotonic()
    os.kill(case.keeper, signal.SIGTERM)
    assert happens(lambda: not case.left()), f"still running: {case.left()}"
    assert time.monotonic() - started >= 1.0
    assert not case.private.exists()


def test_a_trainer_that_dies_while_its_server_ends_leaves_nothing(start):
    case = start("ignore", grace=1.0)
    os.kill(case.keeper, signal.SIGTERM)
    case.trainer.kill()
    assert happens(lambda: not case.left()), f"still running: {case.left()}"
    assert not case.private.exists()


def test_a_server_whose_keeper_is_killed_is_told_to_end(start):
    case = start()
    os.kill(case.keeper, signal.SIGKILL)
    assert happens(lambda: not runs(case.pids[0]))


def test_what_a_server_that_ends_by_itself_leaves_is_killed_and_its_exit_code_passed_on(tmp_path):
    notes = tmp_path / "pids"
    server = [sys.executable, "-ISc", SERVER, str(notes), "end"]
    done = keep(server, tmp_path)
    assert done.returncode == 7
    assert [pid for pid in map(int, notes.read_text().split()) if runs(pid)] == []


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["/no/such/python"], 127, "/no/such/python cannot be started"),
        ([sys.executable, "-ISc", "import os; os.kill(os.getpid(), 9)"], 128 + signal.SIGKILL, ""),
        ([sys.executable, "-ISc", "import sys; sys.exit(len(sys.stdin.read()))"], 0, ""),
    ],
    ids=["no interpreter", "killed", "its standard input is empty"],
)
def test_the_exit_code_is_the_servers(tmp_path, command, code, said):
    done = keep(command, tmp_path)
    assert done.returncode == code and said in done.stderr


def keep(command: list[str], directory: Path) -> subprocess.CompletedProcess:
    """Run a keeper of this process to its end."""
    words = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), "1", str(directory / "none"), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)


def test_trackers_of_shared_memory_may_finish_before_they_are_killed(tmp_path):
    cleaned = tmp_path / "cleaned"
    # Named like multiprocessing's own: it outlives the server for a moment, to free what is left.
    tracker = f"import time; 'from multiprocessing.resource_tracker'; time.sleep(0.5); open({str(cleaned)!r}, 'w')"
    server = f"import subprocess, sys; subprocess.Popen([sys.executable, '-ISc', {tracker!r}])"
    assert keep([sys.executable, "-ISc", server], tmp_path).returncode == 0
    assert cleaned.exists()
