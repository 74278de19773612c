"""What stops a run while it works, or hangs: signals, its time limit, its watchdog. Each in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from rest_megatron.distributed.watch import SIGNALS, Watch
from rest_megatron.errors import HANG_EXIT_CODE, Preempted

PREAMBLE = """
import ctypes, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from rest_megatron.distributed import watch as module
from rest_megatron.errors import Preempted
from rest_megatron.distributed.watch import Watch

def say(text):
    print(text, flush=True)

def stuck():
    # In C, where no signal gets it out: a mutex that is locked twice.
    mutex = (ctypes.c_char * 64)()
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def work(watch, seconds=20.0, pause=0.01):
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            watch.check()
            time.sleep(pause)
    except Preempted as stop:
        say(stop)
        sys.exit(stop.exit_code)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Those of this process, whatever a test has left."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(code: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, and what is left of stdout and stderr."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out.strip(), err.strip()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_reason_to_stop(number):
    process = start("with Watch() as watch: say('ready'); work(watch)")
    assert read(process) == "ready"
    process.send_signal(number)
    assert end(process) == (75, f"preempted: {number.name}", "")


BLOCKED = """
module.SAME_REQUEST_SECONDS = 0.5
with Watch() as watch:
    def tell():
        while watch.stop_reason is None:
            time.sleep(0.01)
        say(watch.stop_reason)
    threading.Thread(target=tell, daemon=True).start()
    say('ready')
    stuck()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_main_thread_that_is_stuck_in_c_hears_a_signal_and_is_ended_by_a_second_one(number):
    process = start(BLOCKED)
    assert read(process) == "ready"
    process.send_signal(signal.SIGUSR1)
    assert read(process) == "SIGUSR1"
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(number)
    assert end(process) == (128 + number, "", "")


def test_what_a_launcher_passes_on_again_is_no_second_signal():
    process = start("with Watch() as watch: say('ready'); time.sleep(0.6); work(watch)")
    assert read(process) == "ready"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.1)
    assert end(process) == (75, "preempted: SIGINT", "")


def test_a_first_signal_after_the_time_limit_does_not_end_the_process():
    process = start("with Watch(save_by=0.1) as watch: time.sleep(0.2); say(watch.exchange_reasons()); stuck()")
    assert read(process) == "checkpoint.save_by=0.1 s are over"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    end(process)


def test_what_was_there_before_is_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Watch():
        assert not {signal.getsignal(number) for number in SIGNALS} & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_process_that_stops_as_asked_keeps_its_exit_code():
    code = "try:\n    with Watch(save_by=0.1) as watch: work(watch)\nfinally:\n    say('ended'); time.sleep(0.6)"
    process = start(code)
    assert [read(process), read(process)] == ["preempted: checkpoint.save_by=0.1 s are over", "ended"]
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, "", "")


def test_outside_the_main_thread_it_does_without_signals():
    before, inside = [signal.getsignal(number) for number in SIGNALS], []

    def enter():
        with Watch(save_by=1e9) as watch:
            inside.extend(signal.getsignal(number) for number in SIGNALS)
            watch.check()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert inside == before


FORKED = """
def sleep(seconds):
    say('child')
    time.sleep(seconds)
if __name__ == '__main__':
    with Watch() as watch:
        child = multiprocessing.get_context('fork').Process(target=sleep, args=(20,))
        child.start()
        time.sleep(0.5)
        child.terminate()
        child.join(5)
        say(child.exitcode)
        say(os.waitstatus_to_exitcode(os.system('kill -TERM $$')))
        watch.check()
        say('no reason')
"""


def test_signals_to_children_end_them_and_are_not_heard_here():
    code, out, err = end(start(FORKED))
    assert (code, out.splitlines(), err) == (0, ["child", "-15", "-15", "no reason"], "")


def test_the_time_limit_is_a_reason_to_stop():
    with Watch(save_by=1.0) as watch:
        watch.check()
        time.sleep(1.05)
        with pytest.raises(Preempted, match=r"^preempted: checkpoint.save_by=1 s are over$"):
            watch.check()


def test_a_watch_that_was_never_entered_does_nothing():
    watch = Watch(save_by=1e-9, hang_timeout=1e-9)
    watch.connect(lambda reason: "another rank")
    with watch.phase("rollout"), watch.patient():
        watch.beat()
        watch.check()
    assert watch.stop_reason is None and watch.exchange_reasons() is None


def test_another_rank_s_reason_is_asked_for_now_and_then(monkeypatch):
    monkeypatch.setattr("rest_megatron.distributed.watch.EXCHANGE_SECONDS", 1.0)
    calls = []

    def exchange(reason):
        calls.append(reason)
        return "SIGUSR1" if len(calls) == 2 else reason

    with Watch() as watch:
        watch.connect(exchange)
        for _ in range(20):
            assert watch.exchange_reasons() is None
        assert calls == [None]
        time.sleep(1.05)
        assert watch.exchange_reasons() == "SIGUSR1"
        time.sleep(1.05)
        assert watch.exchange_reasons() == "SIGUSR1" and calls == [None, None]


def test_this_rank_s_reason_is_told_once_and_at_once():
    calls = []
    with Watch(save_by=1.0) as watch:
        watch.connect(lambda reason: calls.append(reason) or reason)
        assert watch.exchange_reasons() is None
        time.sleep(1.05)
        assert watch.exchange_reasons() == watch.exchange_reasons() == "checkpoint.save_by=1 s are over"
    assert calls == [None, "checkpoint.save_by=1 s are over"]


def test_a_signal_that_comes_during_the_exchange_is_not_lost():
    def exchange(reason):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.5)
        return reason

    with Watch() as watch:
        watch.connect(exchange)
        assert watch.exchange_reasons() == "SIGUSR1"


HUNG = """
stacks = STACKS
with Watch(hang_timeout=0.5, stacks=stacks, rank=3) as watch:
    with watch.phase('step'), watch.phase('rollout'):
        stuck()
"""


def hung(stacks, settings: str = "") -> tuple[int, str, str]:
    where = "None" if stacks is None else f"Path({str(stacks)!r})"
    return end(start(settings + HUNG.replace("STACKS", where)))


def test_a_process_without_progress_writes_its_stacks_and_ends(tmp_path):
    code, out, err = hung(tmp_path / "run" / "hang")
    path = tmp_path / "run" / "hang" / "rank-3.txt"
    assert (code, out) == (HANG_EXIT_CODE, "")
    header, *stacks = path.read_text().splitlines()
    said, _, where = header.partition("; ")
    assert re.fullmatch(r"rank 3 made no progress for \d+ s in phase 'step/rollout' \(run.hang_timeout=0.5\)", said)
    assert where.startswith("host ") and ", pid " in where
    assert err.startswith(f"hang: {said}; stacks: {path}. ") and len(err.splitlines()) == 1
    assert any("in stuck" in line for line in stacks) and any("in _listen" in line for line in stacks)


@pytest.mark.parametrize("stacks", [None, "/proc/no/such/directory"])
def test_stacks_that_have_no_place_go_to_stderr(stacks):
    code, _, err = hung(stacks)
    assert code == HANG_EXIT_CODE and "in stuck" in err
    assert ("stacks: below" in err) is (stacks is None) and ("hang: no stacks in" in err) is (stacks is not None)


def test_a_file_system_that_hangs_too_does_not_keep_the_process(tmp_path):
    os.mkfifo(tmp_path / "rank-3.txt")  # to be opened by a reader that never comes
    code, _, err = hung(tmp_path, "module.REPORT_SECONDS = 0.5")
    assert code == HANG_EXIT_CODE and "made no progress" in err


ALIVE = {
    "beats": "work(watch, 3.0, pause=0.2)",
    "phases": "for _ in range(12):\n        with watch.phase('update'): time.sleep(0.25)",
    "a call with a deadline of its own": "with watch.patient(): time.sleep(3.0)",
    "the end of such a call": "with watch.patient(): time.sleep(2.0)\n    time.sleep(0.3)",
}


@pytest.mark.parametrize("what", ALIVE)
def test_progress_is(what):
    code = f"with Watch(hang_timeout=1.2) as watch:\n    {ALIVE[what]}\nsay('done')"
    assert end(start(code)) == (0, "done", "")


def test_a_process_that_was_suspended_did_not_hang():
    # It beats by its own clock: seconds in which it did not run are none of its own.
    code = "with Watch(hang_timeout=1.0) as watch:\n    for i in range(60):\n        time.sleep(0.05)\n"
    code += "        if i % 12 == 0: watch.beat(); say(i)\nsay('done')"
    process = start(code)
    assert read(process) == "0"
    time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    code, out, err = end(process)
    assert (code, out.split()[-1], err) == (0, "done", "")
