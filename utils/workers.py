"""Processes that work for this one: they end with it, and if one of them dies, the others end.

A forked process inherits the signal handlers of its parent, which are none of its business:
`become_worker` replaces them. Each worker has a pipe of its own, so that one that dies in the
middle of a message is noticed, and no semaphores are needed, which are in /dev/shm.
"""
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import connection

from utils.progress import counter

PR_SET_PDEATHSIG = 1    # of <sys/prctl.h>
POLL_SECONDS = 1        # between two looks at whether the parent is there
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WorkerDied(Exception):
    """A worker was killed: by the kernel when memory ended, or by someone."""


# ------------------------------------------------------------------------------------------- work

def map_in_processes(function, items, count, label, initialize):
    """Calls a function for every item in `count` processes, with progress.

    :param function: of one item; pickled by name where processes cannot be forked
    :param items: list
    :param label: what the items are, in the plural
    :param initialize: function that each process calls first
    :return: list of results in the order of the items
    :raises WorkerDied: at once, and the other workers are ended
    """
    results = [None] * len(items)
    waiting = list(enumerate(items))[::-1]
    working = {}    # {pipe: index of the item whose result will come through it}

    def give(pipe):
        index, item = waiting.pop()
        pipe.send(item)
        working[pipe] = index

    try:
        with _started(min(count, len(items)), function, initialize) as pipes, \
                counter(label, len(items)) as update:
            for pipe in pipes:
                give(pipe)
            while working:
                for pipe in connection.wait(list(working)):
                    results[working.pop(pipe)] = _result(pipe.recv())
                    update()
                    if waiting:
                        give(pipe)
    except (EOFError, ConnectionError):
        raise WorkerDied from None
    return results


@contextlib.contextmanager
def _started(count, function, initialize):
    """Yields a pipe to each of `count` new workers; they are gone afterwards."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes, pipes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, function, initialize, os.getpid()), daemon=True)
            with signals_held_back():
                process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
    finally:
        for process in processes:   # they wait for more, or must not write any longer
            process.kill()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _work(pipe, function, initialize, parent):
    """Sends (result, exception) for each item that comes."""
    become_worker(parent)
    initialize()
    while True:
        item = pipe.recv()
        try:
            answer = function(item), None
        except Exception as e:
            e.add_note(traceback.format_exc())
            answer = None, e
        pipe.send(answer)


def _result(answer):
    value, error = answer
    if error is not None:
        raise error
    return value


# -------------------------------------------------------------------------------- life and death

@contextlib.contextmanager
def signals_held_back():
    """Within it a worker is started, which hears no signal until `become_worker`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_worker(parent):
    """To be called first in a process that works for another one.

    SIGTERM ends it. Ctrl-C and a closed terminal, which all processes of a terminal hear of, are
    left to the parent, with which this process ends.

    :param parent: its number
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    end_with(parent)


def end_with(parent, number=signal.SIGKILL):
    """Makes this process get a signal when its parent ends, however that ends.

    :param parent: its number
    :param number: of the signal
    """
    if not _ask_kernel(number):
        threading.Thread(target=_watch, args=(parent, number), daemon=True).start()
    elif os.getppid() != parent:    # it ended before the kernel was asked
        os.kill(os.getpid(), number)


def _ask_kernel(number):
    """Whether the kernel will send this signal when the parent ends; it does on Linux."""
    try:
        return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False


def _watch(parent, number):
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), number)
