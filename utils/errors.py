"""Errors a user can fix, how a script reports them, and its exit codes.

| code | the script |
|---|---|
| 0 | did what it was asked to |
| 1 | did it for a part only: what was left out is named, and the rest is written |
| 2 | found a mistake that the user can fix, named in one line; nothing half-written is left |
| 75 | was asked to stop, and saved: the same command resumes (train.py) |
| 129, 130, 143 | was ended by SIGHUP (a closed terminal), Ctrl-C or SIGTERM |

Code 1 with a traceback is a bug. Nothing that happens to stdout or stderr changes the code, see
utils/streams.py. The scripts import this module before any other: from then on, Ctrl-C during the
seconds in which they import PyTorch ends in one line.
"""
import contextlib
import gc
import os
import signal
import sys
import threading
from pathlib import Path

from utils import bus_errors, escaping, leftovers, streams

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75        # EX_TEMPFAIL
EXIT_INTERRUPTED = 130   # 128 and the number of the signal, here SIGINT
# in the text of PyTorch's errors
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")

_received = []          # numbers of the signals that ask this script to end

_ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake the user can fix. One line: the file or flag, what is wrong, what to do."""


def shorten(error, limit=160):
    """The text of an error on one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def run_script(main):
    """Calls main() and exits with its return value as the code; None is 0.

    A UserError, an error of the operating system (full disk, no permission) or a lack of memory
    ends in one line on stderr and exit code 2. Anything else is a bug and keeps its traceback.
    """
    escaping.protect_terminal()
    bus_errors.end_with(_exit_on_bus_error)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _exit_on_signal)
    if signal.getsignal(signal.SIGINT) in (_exit_during_imports, signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = main()
    except KeyboardInterrupt:
        code = _say_interrupted()
    except Exception as e:
        code = _code_of_signal() or _code_of(e)
    finally:    # all is done: a signal now ends the process at once, without a traceback
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    if _is_script_running():
        gc.freeze()     # Python's last search for garbage, through all of PyTorch, takes over 1 s
    sys.exit(code)


def _code_of(error):
    """Reports an error that the user can fix; raises any other again."""
    if isinstance(error, UserError):
        return _report(str(error))
    if isinstance(error, OSError):
        path = error.filename or error.filename2
        return _report(f"{f'{path}: ' if path else ''}{error.strerror or error}")
    cause = out_of_memory(error)
    if cause is None:
        raise error
    reason = str(cause).splitlines()[0][:120] if str(cause) else "host"
    return _report(f"out of memory ({reason}); use a smaller batch, a larger --accum, "
                   "--grad-checkpoint, or fewer --workers, whichever this script has")


def _code_of_signal():
    """The exit code of the signal that was received; None without one.

    A library that is interrupted by one may report damaged weights instead.
    """
    if not _received:
        return None
    return _say_interrupted() if _received[0] == signal.SIGINT else 128 + _received[0]


def _say_interrupted():
    print(f"{_script_name()}: interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _report(message):
    line = escaping.printable(leftovers.final_names(" ".join(message.split())))
    print(f"{_script_name()}: error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR


def _script_name():
    return Path(sys.argv[0]).name


def out_of_memory(error):
    """The error that says that a host or a GPU has no memory left, or None.

    :param error: it, or a RuntimeError that was raised while it was handled, such as by the end
        of the capture of a CUDA graph
    """
    while isinstance(error, (MemoryError, RuntimeError)):
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            return error
        error = error.__context__
    return None


def _exit_on_signal(number, _):
    """Turns a signal into an exception, so that temporary files are removed on the way out."""
    _received.append(number)
    say_at_once(f"ended by {signal.Signals(number).name}")
    raise SystemExit(128 + number)


def _interrupt(number, _):
    """As Python's own handler of Ctrl-C, but remembers it."""
    _received.append(number)
    raise KeyboardInterrupt


def _exit_on_bus_error(message):
    """Ends the process at once: the instruction that failed cannot be left in any other way."""
    say_at_once(f"error: {message}")
    leftovers.remove_own()
    os._exit(EXIT_USER_ERROR)


def say_at_once(message):
    """Prints a line on stderr from a signal handler, in which print may be called within print."""
    with contextlib.suppress(OSError):  # the terminal was closed
        os.write(2, f"{_script_name()}: {message}\n".encode())


# --------------------------------------------------------------------- Ctrl-C while a script starts

def _exit_during_imports(*_):
    """Ends the process at once: nothing has been written yet that would have to be removed."""
    say_at_once("interrupted")
    os._exit(EXIT_INTERRUPTED)


def _is_script_running():
    """Whether this process runs one of our scripts, and not a notebook, a test or a worker."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or threading.current_thread() is not threading.main_thread():
        return False
    return Path(file).resolve().parent in (_ROOT, _ROOT / "demo")


if _is_script_running():
    streams.make_robust()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_during_imports)
