"""Threads that each compute one thing on one core."""
import contextlib
from concurrent.futures import ThreadPoolExecutor

import torch

from metrics.gaussian_filter import is_cpu


@contextlib.contextmanager
def threads_of_one_core(device="cpu"):
    """An executor with a thread per core, in each of which PyTorch uses that core alone.

    Cores that share the small matrix products of a single task mostly wait for each other. A GPU
    gets one thread.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores if is_cpu(device) else 1) as executor:
            try:
                yield executor
            except BaseException:   # such as Ctrl-C: what waits is dropped
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(cores)
