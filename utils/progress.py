"""Progress of long work: a tqdm bar on a terminal, plain lines in a log otherwise."""
import contextlib
import sys
import time

from tqdm import tqdm


@contextlib.contextmanager
def counter(label, total, initial=0, seconds=10):
    """Yields a function that counts finished items.

    On a terminal it drives a tqdm bar; otherwise (SLURM logs) it prints a line every `seconds`.

    :param label: what is counted, in the plural
    :param total: number of items
    :param initial: items that were finished before
    """
    if sys.stderr.isatty():
        with tqdm(desc=label, total=total, initial=initial, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = last_line = time.monotonic()
    done = initial

    def update(n=1):
        nonlocal done, last_line
        done += n
        now = time.monotonic()
        if now - last_line < seconds or done >= total:
            return
        rate = (done - initial) / (now - start)
        print(f"{label}: {done}/{total}, {rate:.3g}/s, {(total - done) / rate:.0f} s left",
              file=sys.stderr, flush=True)
        last_line = now

    yield update
    if done > initial:
        print(f"{label}: {done}/{total} in {time.monotonic() - start:.1f} s",
              file=sys.stderr, flush=True)


def progress(iterable, label, total=None, initial=0, seconds=10):
    """Iterates over `iterable` and shows the progress as `counter` does."""
    total = len(iterable) if total is None else total
    with counter(label, total, initial, seconds) as update:
        for item in iterable:
            yield item
            update()
