"""How long each stage of some work takes."""
import contextlib
import time
from collections import defaultdict


class Stopwatch:
    """Adds up the seconds that are spent in each stage: `seconds` is {stage: seconds}."""

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name):
        """Counts the time within as that of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
