"""Workers: results in order, errors, deaths, and what they do when their parent ends."""
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers import ROOT

from utils import workers
from utils.errors import UserError


def _nothing():
    pass


def _square(x):
    time.sleep(0.001 * (x % 3))     # so that results do not come in order by themselves
    return x * x


def _refuse_odd(x):
    if x % 2:
        raise UserError(f"{x}: is odd")
    return x


def _die_at_seven(x):
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def _handlers(_):
    return [signal.getsignal(number) for number in workers.STOPPING], signal.pthread_sigmask(
        signal.SIG_BLOCK, [])


def test_results_come_in_the_order_of_the_items(capsys):
    assert workers.map_in_processes(_square, list(range(50)), 3, "numbers", _nothing) == [
        x * x for x in range(50)]
    assert capsys.readouterr().err.startswith("numbers: 50/50 in ")
    assert workers.map_in_processes(_square, [5], 4, "numbers", _nothing) == [25]
    assert workers.map_in_processes(_square, [], 4, "numbers", _nothing) == []


def test_large_messages_pass():
    items = [bytes([i]) * 10 ** 6 for i in range(6)]
    assert workers.map_in_processes(bytes.upper, items, 2, "texts", _nothing) == [
        item.upper() for item in items]


def test_errors_arrive_with_the_lines_that_raised_them():
    with pytest.raises(UserError, match="^1: is odd") as raised:
        workers.map_in_processes(_refuse_odd, [0, 1, 2], 2, "numbers", _nothing)
    assert str(raised.value) == "1: is odd" and "in _refuse_odd" in raised.value.__notes__[0]


def test_a_worker_that_dies_is_noticed_at_once():
    began = time.monotonic()
    with pytest.raises(workers.WorkerDied):
        workers.map_in_processes(_die_at_seven, list(range(20)), 2, "numbers", _nothing)
    assert time.monotonic() - began < 2


def test_workers_have_handlers_of_their_own():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        (handlers, blocked), = workers.map_in_processes(_handlers, [0], 1, "looks", _nothing)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert dict(zip(workers.STOPPING, handlers)) == {
        signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_IGN}
    assert not blocked & set(workers.STOPPING)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(workers.STOPPING)


@pytest.mark.parametrize("without_prctl", [False, True])
def test_a_process_hears_that_its_parent_ended(without_prctl):
    """The parent is killed; the child prints the signal that it gets. The second way is that of
    other systems than Linux."""
    child = textwrap.dedent(f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from utils import workers
        def handle(number, frame):
            print(signal.Signals(number).name, flush=True)
            sys.exit()
        signal.signal(signal.SIGTERM, handle)
        if {without_prctl}:
            workers._ask_kernel = lambda number: False
            workers.POLL_SECONDS = 0.05
        workers.end_with(os.getppid(), signal.SIGTERM)
        print("ready", flush=True)
        time.sleep(30)
        """)
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.read() == "SIGTERM\n"
    process.wait()
