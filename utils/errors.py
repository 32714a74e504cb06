"""Errors a user can fix, how a script reports them, and its exit codes.

The scripts import this module before any other: from then on, Ctrl-C during the seconds in which
they import PyTorch ends in one line.
"""
import gc
import os
import signal
import sys
import threading
from pathlib import Path

from utils import escaping

EXIT_USER_ERROR = 2      # one line on stderr says what to fix
EXIT_STOPPED = 75        # asked to stop, saved; the same command resumes (EX_TEMPFAIL)
EXIT_INTERRUPTED = 130   # Ctrl-C
EXIT_TERMINATED = 143    # SIGTERM

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
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    if signal.getsignal(signal.SIGINT) is _exit_during_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
    except UserError as e:
        code = _report(str(e))
    except OSError as e:
        path = e.filename or e.filename2
        code = _report(f"{f'{path}: ' if path else ''}{e.strerror or e}")
    except (MemoryError, RuntimeError) as e:
        if not _is_out_of_memory(e):
            raise
        code = _report(
            f"out of memory ({str(e).splitlines()[0][:120] if str(e) else 'host'}); "
            "use a smaller batch, a larger --accum, --grad-checkpoint, or fewer --workers, "
            "whichever this script has")
    except KeyboardInterrupt:
        print(f"{_script_name()}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    if _is_script_running():
        gc.freeze()     # Python's last search for garbage, through all of PyTorch, takes over 1 s
    sys.exit(code)


def _report(message):
    line = escaping.printable(" ".join(message.split()))
    print(f"{_script_name()}: error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR


def _script_name():
    return Path(sys.argv[0]).name


def _is_out_of_memory(error):
    """PyTorch raises RuntimeErrors for a host or a GPU that has no memory left."""
    if isinstance(error, MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _exit_on_sigterm(*_):
    """Turns SIGTERM into an exception, so that temporary files are removed on the way out."""
    raise SystemExit(EXIT_TERMINATED)


# --------------------------------------------------------------------- Ctrl-C while a script starts

def _exit_during_imports(*_):
    """Ends the process at once: nothing has been written yet that would have to be removed."""
    os.write(2, f"{_script_name()}: interrupted\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _is_script_running():
    """Whether this process runs one of our scripts, and not a notebook, a test or a worker."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or threading.current_thread() is not threading.main_thread():
        return False
    return Path(file).resolve().parent in (_ROOT, _ROOT / "demo")


if _is_script_running() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit_during_imports)
