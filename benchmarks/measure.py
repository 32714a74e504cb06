"""How cost is measured: times, peak memory, and the rate of the device.

Training and sampling are measured in processes of their own, so that each has its own peak memory.
"""
import dataclasses
import multiprocessing
import os
import re
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils import workers
from utils.errors import UserError, out_of_memory

# -------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class StepCost:
    """Cost of the steps of one way of doing a piece of work."""
    step_seconds: list            # one number for each measured step
    peak_gb: float                # most memory the process had, GB (10^9 bytes)
    message: str | None = None    # a line to tell the user


def alone(function, *args):
    """Calls a function in a new process, so that its peak memory is its own.

    :param function: of a module, as the process finds it by name
    :param args: its arguments; they are pickled
    :return: its result; None if it ran out of memory
    :raises UserError: the function raised one, or its process ended in another way
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, os.getpid(), function, *args))
    with workers.signals_held_back():
        process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    except BaseException:
        process.kill()
        raise
    process.join()
    if isinstance(result, UserError):
        raise result
    if process.exitcode not in (0, -signal.SIGKILL):  # the kernel kills a process for its memory
        raise UserError(f"{function.__name__}: its process ended with code {process.exitcode}; "
                        "the lines above say why")
    return result


def _send_result(connection, parent, function, *args):
    workers.become_worker(parent)
    try:
        result = function(*args)
    except UserError as e:
        result = e
    except (MemoryError, RuntimeError) as e:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(e):
            raise
        result = None
    connection.send(result)


def alternate_processes(ways, turns, setup):
    """Measures several ways of doing the same work, each turn in a process of its own.

    They alternate, so that a machine that slows down meanwhile slows all of them.

    :param ways: {name: function of `setup` that returns a StepCost}
    :param turns: how often each way is measured
    :param setup: what is measured; it is pickled
    :return: {name: list of results, None where a turn ran out of memory}
    """
    results = {name: [] for name in ways}
    for _ in range(turns):
        for name, function in ways.items():
            results[name].append(alone(function, setup))
    return results


def merge(turns):
    """Merges the turns of one way.

    :param turns: StepCosts, or None for a turn that ran out of memory
    :return: the times of all turns, the highest peak, and everything else of the first turn;
        None if a turn ran out of memory
    """
    if None in turns:
        return None
    seconds = [second for turn in turns for second in turn.step_seconds]
    peak = max(turn.peak_gb for turn in turns)
    return dataclasses.replace(turns[0], step_seconds=seconds, peak_gb=peak)


def alternate(ways, repeats):
    """Calls several ways of doing the same work in turn, after one call of each to warm up.

    :param ways: {name: function without arguments}
    :param repeats: how often each way is timed
    :return: {name: median seconds}, {name: result}
    """
    results = {name: way() for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}, results


# ----------------------------------------------------------------------------------------- memory

def limit_memory(device, memory_limit):
    """Makes a GPU the current one, and bounds how much of its memory this process takes.

    :param memory_limit: GiB, of everything: what the driver and the kernels take beside PyTorch's
        allocator is subtracted from what the allocator may take. None: no limit
    :raises UserError: other processes leave nothing of it
    """
    if torch.device(device).type != "cuda":
        return
    torch.cuda.set_device(torch.device(device).index or 0)
    if memory_limit:
        free, total = torch.cuda.mem_get_info()
        fraction = memory_limit * 2 ** 30 / total - 1 + free / total
        if fraction <= 0:
            raise UserError(f"--memory-limit {memory_limit:g}: {(total - free) / 2 ** 30:.1f} GiB "
                            "of the GPU are taken already; stop the processes that use it")
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction))


def peak_gb(device):
    """Most memory that this process ever had, in GB (10^9 bytes).

    :param device: a GPU: what PyTorch reserved of its memory; "cpu": memory of the host
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    if not Path("/proc/self/status").exists():  # macOS, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    status = Path("/proc/self/status").read_text()  # getrusage's maximum would include the parent's
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9


# ------------------------------------------------------------------------------------------- time

def wait(device):
    """Waits until a GPU has finished everything it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def warm_up_steps(device):
    """Steps before the first measured one; on a GPU, the first ones load kernels."""
    return 4 if torch.device(device).type == "cuda" else 1


def time_steps(step, device, steps, warm_up):
    """Times calls of a function.

    :param step: function without arguments
    :param steps: number of calls that are measured
    :param warm_up: number of calls before them
    :return: list of seconds
    """
    times = []
    for _ in range(warm_up + steps):
        start = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - start)
    return times[warm_up:]


def time_call(function, device):
    """Times a function that is short; on a GPU, several calls between two waits.

    :param function: without arguments
    :return: seconds of a call, and the result of the last one
    """
    calls = 10 if torch.device(device).type == "cuda" else 1
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    wait(device)
    return (time.perf_counter() - start) / calls, result


def matmul_rate(device, dtype=torch.float32, n=4096, seconds=1.0):
    """Floating-point operations per second of a large matrix product, the best of several.

    :param n: side of the matrices
    :param seconds: how long to try
    """
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, time_call(lambda: a @ b, device)[0])
    return 2 * n ** 3 / best


def slowest_operations(step, device, count=8):
    """Profiles one call of a function.

    :return: lines, one for each of the operations that took longest, with its share of the time
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU]
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        wait(device)
    events = profiler.key_averages()
    if cuda:
        on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        spent = {e.key: e.self_device_time_total for e in on_gpu if not e.is_user_annotation}
    else:
        spent = {e.key: e.self_cpu_time_total for e in events}
    total = sum(spent.values())
    longest = sorted(spent.items(), key=_time_of, reverse=True)[:count]
    return [f"    {100 * microseconds / total:5.1f} %  {key[:90]}" for key, microseconds in longest]


def _time_of(item):
    _, microseconds = item
    return microseconds
