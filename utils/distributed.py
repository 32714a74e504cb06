"""The processes that torchrun starts: who this one is, and what they tell each other. One process needs none of it.

Training's gradients are summed in buckets laid out once and for all by the order of the parameters, so that a resumed run
adds them in the same order as one that was not; DistributedDataParallel lays its buckets out anew after the first step.
"""
import contextlib
import json
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.cli import UserError, brief

BUCKET = 8 * 2 ** 20  # values summed at once, 32 MB


def rank():
    """This process among all, 0…world() - 1."""
    return int(os.environ.get("RANK", 0))


def world():
    """How many processes there are, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own_device(device):
    """The device of this process: of `cuda`, the GPU that LOCAL_RANK says. Raises UserError when there are too few."""
    if device != "cuda" or world() == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UserError(f"--nproc-per-node of torchrun: process {local + 1} on a machine with {torch.cuda.device_count()} "
                        "GPUs; start fewer")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


@contextlib.contextmanager
def group(device):
    """Within it the processes can talk: through nccl about what is on GPUs, through gloo about the rest."""
    if world() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    with _peers():
        dist.init_process_group(backend, timeout=timedelta(hours=1))  # encoding all mosaics takes one process a while
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


@contextlib.contextmanager
def main_first():
    """The body runs in process 0, and then, when that has written its files, in the others."""
    if world() > 1 and rank():
        barrier()
    yield
    if world() > 1 and not rank():
        barrier()


def barrier():
    """Returns when all processes have come here."""
    if world() > 1:
        sum_over_processes(torch.zeros(1))


def tell(what=None):
    """Process 0 tells the others something that JSON can hold; each returns it."""
    if world() == 1:
        return what
    data = torch.tensor(list(json.dumps(what).encode()), dtype=torch.uint8)
    length = sum_over_processes(torch.tensor(len(data) if rank() == 0 else 0))
    data = data if rank() == 0 else torch.zeros(int(length), dtype=torch.uint8)
    with _peers():
        dist.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))


def sum_over_processes(tensor):
    """Adds up a tensor of every process, in place. The result is the same to the bit in each."""
    if world() > 1:
        with _peers():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters):
    """Adds up over the processes the gradients of these parameters, and no others."""
    if world() == 1:
        return
    bucket, size = [], 0
    for p in [*parameters, None]:
        if bucket and (p is None or size + p.numel() > BUCKET):
            flat = sum_over_processes(torch.cat([q.grad.flatten() for q in bucket]))
            for q, grad in zip(bucket, flat.split([q.numel() for q in bucket])):
                q.grad.copy_(grad.view_as(q))
            bucket, size = [], 0
        if p is not None:
            bucket.append(p)
            size += p.numel()


@contextlib.contextmanager
def _peers():
    """When another process has ended, that one's error is what matters: this one adds a line, not a traceback."""
    try:
        yield
    except RuntimeError as e:  # gloo's and nccl's errors are all of this kind
        if "out of memory" in str(e):
            raise
        raise UserError(f"process {rank()} of {world()}: lost the others, whose error is above or in their log "
                        f"({brief(e)})") from None
