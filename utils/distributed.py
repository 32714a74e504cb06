"""The processes that torchrun starts: which one this is, and how they communicate.

A single process needs none of it. Gradients are summed in buckets that depend on the order of the
parameters alone, so that a resumed run adds them in the same order as an uninterrupted one;
DistributedDataParallel rearranges its buckets after the first step.
"""
import contextlib
import functools
import json
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils import workers
from utils.errors import UserError, shorten

BUCKET_VALUES = 8 * 2 ** 20  # gradients summed in one call: 32 MB
LAUNCHER_VARIABLES = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID")  # torchrun sets both


def rank():
    """Number of this process, 0…world_size() - 1."""
    return int(os.environ.get("RANK", 0)) if _is_launched() else 0


def world_size():
    """Number of processes, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", 1)) if _is_launched() else 1


def _is_launched():
    """Whether RANK and WORLD_SIZE come from torchrun, and not from a line left in the shell."""
    if any(name in os.environ for name in LAUNCHER_VARIABLES):
        return True
    leftover = [f"{name}={os.environ[name]}" for name in ("RANK", "WORLD_SIZE")
                if name in os.environ]
    if leftover:
        _warn_once(f"{' '.join(leftover)} in the environment, but not "
                   f"{' or '.join(LAUNCHER_VARIABLES)}: not started by torchrun, so this is a "
                   f"single process; `unset RANK WORLD_SIZE` ends this warning")
    return False


@functools.cache
def _warn_once(message):
    print(f"warning: {message}", file=sys.stderr, flush=True)


def is_main():
    """Whether this is process 0, the only one that writes."""
    return rank() == 0


def end_with_launcher():
    """A torchrun that is killed ends this process in order: SIGTERM, on which it saves and stops.

    Otherwise its processes would continue, unseen, and hold the run folder's lock.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        workers.end_with(os.getppid(), signal.SIGTERM)


def own_device(device):
    """The device of this process: for "cuda" the GPU that LOCAL_RANK names. It becomes the current
    one, which streams and graphs are made on.

    :raises UserError: the machine has fewer GPUs than processes
    """
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if device != "cuda" or world_size() == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"torchrun --nproc-per-node: process {local + 1} on a machine with {gpus} "
                        "GPUs; start fewer processes")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


@contextlib.contextmanager
def process_group(device):
    """Within this context processes can communicate: GPU tensors by nccl, others by gloo."""
    if world_size() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    with _explain_lost_peers():
        # an hour, as processes wait for the one that encodes the last mosaics
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    yield
    dist.destroy_process_group()  # not after an error, as it would wait for the others


def barrier():
    """Returns once all processes have arrived here."""
    if world_size() > 1:
        sum_over_processes(torch.zeros(1))


def broadcast_json(value=None):
    """Sends a JSON-serializable value of process 0 to all processes; each returns it."""
    if world_size() == 1:
        return value
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    length = int(sum_over_processes(torch.tensor(len(data) if is_main() else 0)))
    if not is_main():
        data = torch.zeros(length, dtype=torch.uint8)
    with _explain_lost_peers():
        dist.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))


def sum_over_processes(tensor):
    """Sums a tensor over all processes, in place; the result is bitwise identical in each."""
    if world_size() > 1:
        with _explain_lost_peers():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters):
    """Sums the gradients of these parameters over all processes, in place."""
    if world_size() == 1:
        return
    bucket, size = [], 0
    for p in parameters:
        if bucket and size + p.numel() > BUCKET_VALUES:
            _sum_bucket(bucket)
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(parameters):
    flat = sum_over_processes(torch.cat([p.grad.flatten() for p in parameters]))
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad.copy_(grad.view_as(p))


@contextlib.contextmanager
def _explain_lost_peers():
    """If another process died, its error is what matters: this one adds a line, no traceback."""
    try:
        yield
    except RuntimeError as e:  # the errors of gloo and nccl are all RuntimeErrors
        if "out of memory" in str(e):
            raise
        raise UserError(f"process {rank()} of {world_size()}: lost contact with the others; their "
                        f"error is above or in their log ({shorten(e)})") from None
