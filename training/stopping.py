"""When a run stops and when it saves: decided after each step, alike in all processes."""
import time

import torch

from utils import distributed


class StopWatch:
    """Turns signals, --max-minutes and --ckpt-minutes into decisions.

    :param signals: StopSignals
    :param began: time.monotonic() at the start of the script
    :param max_minutes: stop after this time; None: no limit
    :param save_minutes: minutes between states to resume from
    """

    def __init__(self, signals, began, max_minutes, save_minutes):
        self.signals = signals
        self.began = began
        self.max_minutes = max_minutes
        self.save_minutes = save_minutes
        self.last_save = time.monotonic()

    def decide(self):
        """[stop, save]: whether any process wants to stop, and whether a state is overdue."""
        wants_stop = self.signals.received is not None or self._is_out_of_time()
        since_save = time.monotonic() - self.last_save
        overdue = distributed.is_main() and since_save >= 60 * self.save_minutes
        wishes = torch.tensor([wants_stop, overdue], dtype=torch.float)  # on the host, not a GPU
        return distributed.sum_over_processes(wishes).bool().tolist()

    def saved(self):
        """A state was written just now."""
        self.last_save = time.monotonic()

    def reason(self):
        """Why the run stops, for the log."""
        if self._is_out_of_time():
            return "--max-minutes"
        return self.signals.received or "another process"

    def _is_out_of_time(self):
        if self.max_minutes is None:
            return False
        return (time.monotonic() - self.began) / 60 >= self.max_minutes
