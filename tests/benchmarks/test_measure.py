"""How cost is measured."""
import os
import signal

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import StepCost
from utils.errors import UserError


def _kill_this_process(code):
    os.kill(os.getpid(), code)


def _refuse(words):
    raise UserError(words)


def test_a_killed_process_ran_out_of_memory():
    assert measure.alone(_kill_this_process, signal.SIGKILL) is None
    with pytest.raises(UserError, match="what is wrong"):
        measure.alone(_refuse, "what is wrong")
    with pytest.raises(UserError, match="ended with code -15"):
        measure.alone(_kill_this_process, signal.SIGTERM)


def test_a_limit_of_gpu_memory(monkeypatch):
    """Of 80 GiB, 10 are taken: of a limit of 39, PyTorch may have 29."""
    shares = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * 2 ** 30, 80 * 2 ** 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    measure.limit_memory("cuda", 39)
    measure.limit_memory("cpu", 39)
    assert shares == [pytest.approx(29 / 80)]
    with pytest.raises(UserError, match="--memory-limit 8: 10.0 GiB of the GPU are taken already"):
        measure.limit_memory("cuda", 8)


def test_turns_are_merged():
    first = StepCost(step_seconds=[1], peak_gb=2, message="a")
    second = StepCost(step_seconds=[4], peak_gb=1, message="b")
    assert measure.merge([first, second]) == StepCost(
        step_seconds=[1, 4], peak_gb=2, message="a")
    assert measure.merge([first, None]) is None


def test_ways_alternate():
    calls = []

    def baseline():
        calls.append("baseline")
        return 1

    def optimized():
        calls.append("optimized")
        return 2

    ways = {"baseline": baseline, "optimized": optimized}
    seconds, results = measure.alternate(ways, repeats=2)
    assert calls == ["baseline", "optimized"] * 3  # once to warm up
    assert results == {"baseline": 1, "optimized": 2} and min(seconds.values()) >= 0
