"""Seconds by stage."""
import time

import pytest

from utils.stopwatch import Stopwatch


def test_seconds_add_up_by_stage():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("a"):
            time.sleep(0.02)
    with pytest.raises(KeyError), watch.stage("b"):
        raise KeyError
    assert list(watch.seconds) == ["a", "b"]
    assert watch.seconds["a"] >= 0.04 > watch.seconds["b"] >= 0
