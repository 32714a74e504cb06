"""A stdout and a stderr that never stop the work, whatever became of the other end.

A reader that went away (`| head`), a terminal that was closed or a full disk under a log costs
what is printed, not what is computed: the files are written, and the exit code says how the work
ended. A character that the terminal's encoding lacks is printed as an escape.
"""
import errno
import io
import os
import sys

READER_WENT_AWAY = (errno.EPIPE, errno.EIO, errno.EBADF)  # EIO: the terminal was closed


def make_robust():
    """Replaces sys.stdout and sys.stderr; to be called before any file is opened.

    A descriptor that was closed (`>&-`) is opened on /dev/null. Otherwise the next file to be
    opened would get its number, and with it all that a library prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _robust(1, sys.stdout)
    sys.stderr = _robust(2, sys.stderr)


def _robust(descriptor, stream):
    """A text stream that replaces `stream`, which is None if the descriptor was closed."""
    output = _Output(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(output), encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace", line_buffering=stream.line_buffering if stream else False,
        write_through=stream.write_through if stream else False)


class _Output(io.FileIO):
    """A descriptor that drops what cannot be written."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as e:
            descriptor = self.fileno()
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, descriptor)
            os.close(devnull)
            if descriptor == 1 and e.errno not in READER_WENT_AWAY:
                print(f"warning: stdout cannot be written ({e.strerror}); the work continues, and "
                      "what it prints is lost", file=sys.stderr, flush=True)
            return len(data)
