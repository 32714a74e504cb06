"""What every command shares: one-line errors, flags that show their defaults, atomic output, progress.

Imports nothing of the project, so any module may use it.
"""
import argparse
import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

WEIGHTS = Path("weights")  # where download.py puts public weights, unless told otherwise, and the others look for them
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # that this process may use
UMASK = os.umask(0o077)  # its file mode creation mask: reading it is setting it, for all threads, so once
os.umask(UMASK)
STOPPED = 75  # exit code of work that was asked to stop, saved, and goes on when run again (sysexits' EX_TEMPFAIL)


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: the file or flag, what is wrong, what to do."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's line breaks and adds every default to its flag."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parser(description):
    """An ArgumentParser that shows every default and refuses abbreviated flags, so that a SLURM script stays valid."""
    return argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def add_device(p):
    """The flag --device, checked when it is parsed."""
    def device(text):
        import torch  # scripts that need no device need not wait for it
        try:
            kind = torch.device(text)
        except RuntimeError:
            raise argparse.ArgumentTypeError(f"{text!r} is no device; give cpu or cuda") from None
        if kind.type == "cuda" and not (kind.index or 0) < torch.cuda.device_count():
            raise argparse.ArgumentTypeError(f"{text!r}: this machine has {torch.cuda.device_count()} GPUs that PyTorch can use")
        return text

    import torch
    p.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


def add_compile(p):
    """The flag --compile, None where the user says nothing."""
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the blocks; default: on GPUs, where there is a "
                   "compiler that works")


def seed(text):
    """A flag's type: a whole number that a random generator takes."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def safe_name(text):
    """Whether a text can name a file in our folders and nothing outside them: letters, digits and _ . + = - after the first."""
    return isinstance(text, str) and len(text) <= 200 and re.fullmatch(r"[A-Za-z0-9_][\w.+=-]*", text) is not None


def non_negative(text):
    """A flag's type: a finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a finite number, 0 or more")
    return value


def positive(text):
    """A flag's type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a finite number above 0")
    return value


def shard(text):
    """A flag's type: i/n, part i of 1…n of the work."""
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        i = n = 0
    if not 1 <= i <= n:
        raise argparse.ArgumentTypeError(f"{text!r}: must be i/n with 1 <= i <= n, such as 3/8")
    return i, n


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 (Slurm's warning before the walltime) ask for an orderly end; a second one exits at once.

    Until `begin` there is nothing to save, and the first one exits too, with code STOPPED. After it, `received` is the first
    one's name. A thread listens, so that the second is heard even while the main thread is deep in a long computation. Under
    torchrun or Slurm, both of which forward signals, one request can arrive several times: there, what comes within 5 seconds
    counts as one.
    """

    def __init__(self):
        self.received, self._begun = None, False
        self._together = 5.0 if {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"} & os.environ.keys() else 0.0
        self._pipe, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)  # each signal's number, as a byte
        self._numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        for number in self._numbers:
            signal.signal(number, self._early)

    def begin(self):
        self._begun = True
        threading.Thread(target=self._listen, daemon=True).start()

    def _early(self, number, frame):
        if not self._begun:
            name = signal.Signals(number).name
            print(f"{Path(sys.argv[0]).name}: {name} during the set-up: nothing to save", file=sys.stderr, flush=True)
            raise SystemExit(STOPPED)

    def _listen(self):
        first = 0.0
        while True:
            number = os.read(self._pipe, 1)[0]
            if number not in self._numbers:
                continue
            if not self.received:
                first, self.received = time.monotonic(), signal.Signals(number).name
            elif time.monotonic() - first >= self._together:
                os._exit(128 + number)  # what it was writing has a temporary name, and the next run removes it


def _terminate(*_):
    raise SystemExit(143)  # so that temporary files are removed on the way out


def run(main):
    """Calls main() and exits with its code: 0 on None, 2 with one line on stderr for an error the user can mend."""
    prog = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main()
    except UserError as e:
        print(f"{prog}: error: {' '.join(str(e).split())}", file=sys.stderr)
        code = 2
    except OSError as e:  # full disk, no permission, a path that is a file: the system's word names the mend
        where = e.filename or e.filename2
        print(f"{prog}: error: {f'{where}: ' if where else ''}{e.strerror or e}", file=sys.stderr)
        code = 2
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, MemoryError) and "out of memory" not in str(e) and "can't allocate memory" not in str(e):
            raise
        print(f"{prog}: error: out of memory ({str(e).splitlines()[0][:120] if str(e) else 'host'}); use a smaller batch, more --accum, "
              "--grad-checkpoint, or fewer --workers, whichever it has", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


@contextlib.contextmanager
def atomic(path, suffix=None, durable=False):
    """Yields a temporary path beside `path`; renamed onto it on success, removed on any error.

    :param suffix: of the temporary file, for writers that look at it; default: that of `path`
    :param durable: on the disk before the name is, and the name before this returns: whole even when the machine goes down
    """
    path = Path(path)
    fd, tmp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix if suffix is None else suffix, dir=path.parent)
    os.close(fd)
    try:
        yield Path(tmp)
        os.chmod(tmp, 0o666 & ~UMASK)
        if durable:
            _sync(tmp, path)
        os.replace(tmp, path)
        if durable:
            _sync(path.parent, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a temporary folder beside `path`; renamed onto it on success, removed on any error.

    Raises UserError when `path` exists and is not an empty folder.
    """
    path = refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as e:
        raise UserError(f"--output {path}: cannot be made there ({e.strerror}); name a folder where you may write") from None
    try:
        yield tmp
        tmp.chmod(0o777 & ~UMASK)
        os.replace(tmp, path)  # onto an empty folder this is legal; onto any other it was refused above
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def refuse_existing(path):
    """The path, if nothing is there yet but perhaps an empty folder; else UserError."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists() or path.is_symlink():
        raise UserError(f"--output {path}: exists already; name a new folder, or remove this one first")
    return path


def _sync(path, named):
    """fsync of a file or folder; a full disk or quota is reported for `named`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:  # file systems that cannot sync a folder say so
            raise OSError(e.errno, e.strerror, str(named)) from None
    finally:
        os.close(fd)


def file_sha256(path):
    """SHA-256 of a file, in hex, without holding it in memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def brief(error, most=160):
    """An error's text on one line, cut to `most` characters."""
    return " ".join(str(error).split())[:most]


def write_bytes(path, data):
    with atomic(path, ".tmp") as tmp:  # a job that was killed leaves nothing that looks like one of its results
        tmp.write_bytes(data)


def write_text(path, text):
    write_bytes(path, text.encode())


@contextlib.contextmanager
def counter(what, total, initial=0, seconds=10):
    """Yields a function that counts what was done: a tqdm bar on a terminal, a plain line every `seconds` otherwise (SLURM logs)."""
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, initial=initial, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = said = time.monotonic()
    done = initial

    def update(n=1):
        nonlocal done, said
        done += n
        now = time.monotonic()
        if now - said >= seconds and done < total:
            rate = (done - initial) / (now - start)
            print(f"{what}: {done}/{total}, {rate:.3g}/s, {(total - done) / rate:.0f} s left", file=sys.stderr, flush=True)
            said = now

    yield update
    if done > initial:
        print(f"{what}: {done}/{total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def progress(iterable, what, total=None, initial=0, seconds=10):
    """Iterates, and counts as `counter` does."""
    with counter(what, total if total is not None else len(iterable), initial, seconds) as update:
        for item in iterable:
            yield item
            update()
