"""Progress of long work: a tqdm bar on a terminal, plain lines in a log otherwise."""
import contextlib
import sys
import time

from tqdm import tqdm


@contextlib.contextmanager
def counter(label, total, initial=0, seconds=10, first=None):
    """Yields a function that counts finished items.

    On a terminal it drives a tqdm bar; otherwise (SLURM logs) it prints a line every `seconds`.
    Rates and times left are measured from the first finished item on: what comes before it is a
    set-up, which does not take place for each item.

    :param label: what is counted, in the plural
    :param total: number of items
    :param initial: items that were finished before
    :param first: seconds from the first finished item to the first line; None: `seconds`
    """
    if sys.stderr.isatty():
        with tqdm(desc=label, total=total, initial=initial, dynamic_ncols=True) as bar:
            yield _count_on(bar)
        return
    lines = _Lines(label, total, initial, seconds, seconds if first is None else first)
    yield lines.update
    lines.end()


def _count_on(bar):
    """A function that counts on a bar, whose clock starts with the first item."""
    def update(n=1):
        if bar.n == bar.initial:
            bar.unpause()
        bar.update(n)

    return update


class _Lines:
    """Progress in plain lines; the parameters are those of `counter`."""

    def __init__(self, label, total, initial, seconds, first):
        self.label, self.total, self.initial = label, total, initial
        self.seconds, self.wait = seconds, first
        self.done = initial
        self.start = self.last_line = time.monotonic()
        self.first = None       # (time, items done) when the first item was finished

    def update(self, n=1):
        self.done += n
        now = time.monotonic()
        if self.first is None:
            self.first = now, self.done
            if now - self.last_line >= self.seconds and self.done < self.total:
                self._print("")     # that something happens at all
            self.last_line = now
        elif now - self.last_line >= self.wait and self.done < self.total:
            rate = (self.done - self.first[1]) / (now - self.first[0])
            self._print(f", {rate:.3g}/s, {(self.total - self.done) / rate:.0f} s left")
            self.last_line, self.wait = now, self.seconds

    def end(self):
        if self.done > self.initial:
            self._print(f" in {time.monotonic() - self.start:.1f} s")

    def _print(self, rest):
        print(f"{self.label}: {self.done}/{self.total}{rest}", file=sys.stderr, flush=True)


def progress(iterable, label, total=None, initial=0, seconds=10):
    """Iterates over `iterable` and shows the progress as `counter` does."""
    total = len(iterable) if total is None else total
    with counter(label, total, initial, seconds) as update:
        for item in iterable:
            yield item
            update()
