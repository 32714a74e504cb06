"""Signals that ask a script to stop: finish the step, save, exit."""
import os
import signal
import threading
import time

from utils.errors import EXIT_STOPPED, say_at_once


class StopSignals:
    """Turns signals that ask a process to stop into a request.

    They are SIGTERM, SIGINT, SIGHUP (the terminal was closed; not where it is ignored, as under
    nohup) and SIGUSR1 (Slurm's warning before the walltime).

    Before `begin` there is nothing to save, and the first signal exits with code EXIT_STOPPED.
    After it, `received` is the name of the first signal, and a second one exits at once. A thread
    listens, so that the second is heard even during a long computation in the main thread. Under
    torchrun or Slurm, both of which forward signals, one request can arrive several times: there,
    signals within 5 seconds count as one.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self):
        self.received = None
        self._begun = False
        forwarded = {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"} & os.environ.keys()
        self._one_request = 5.0 if forwarded else 0.0  # seconds
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        # the interpreter writes the number of each signal into the pipe, as a byte
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in self.NUMBERS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def begin(self):
        """From now on there is something to save."""
        self._begun = True
        threading.Thread(target=self._listen, daemon=True).start()

    def _handle(self, number, frame):
        if self._begun:
            return  # the thread takes care of it
        say_at_once(f"{signal.Signals(number).name} during set-up: nothing to save")
        raise SystemExit(EXIT_STOPPED)

    def _listen(self):
        first = 0.0
        while True:
            number = os.read(self._read_end, 1)[0]
            if number not in self.NUMBERS:
                continue
            if not self.received:
                first = time.monotonic()
                self.received = signal.Signals(number).name
            elif time.monotonic() - first >= self._one_request:
                os._exit(128 + number)  # half-written files have temporary names
