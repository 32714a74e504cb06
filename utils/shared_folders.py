"""Opening files in folders that others may write: what lies there may not be what its name says.

A name may be a link to a file of somebody else, which must not be written; or a pipe or a device,
which never ends when it is read.
"""
import contextlib
import errno
import fcntl
import os
import stat
import sys

from utils.errors import UserError

_NOT_REGULAR = "not a regular file, but a pipe, device or folder; remove it, or name another"


def open_own(path, mode="a"):
    """Opens a file of ours to append to it, and creates it if nothing is there.

    Nothing is cut off: what a file held before stays until the caller knows that it is ours.

    :param mode: of `open`: "a" or "ab", with "+" to read, too
    :return: open file
    :raises UserError: a symbolic link, a file with a second name, or no regular file
    """
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, encoding=encoding, opener=_open_to_append)


def _open_to_append(path, _):
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UserError(f"{path}: is a symbolic link, which is not followed for writing; "
                            "remove it") from None
        if e.errno in (errno.ENXIO, errno.EISDIR):   # a socket, a folder
            raise UserError(f"{path}: {_NOT_REGULAR}") from None
        raise
    _require_regular(handle, path)
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise UserError(f"{path}: is a hard link to a file that has another name, too; remove it")
    return handle


def open_regular(path):
    """Opens a file to read its bytes; links are followed.

    :raises UserError: a pipe, a device or a folder, which need not end
    """
    return open(path, "rb", opener=_open_to_read)


def _open_to_read(path, _):
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    _require_regular(handle, path)
    return handle


def _require_regular(handle, path):
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: {_NOT_REGULAR}")


@contextlib.contextmanager
def locked(path):
    """Holds a lock that one process has at a time; the others wait. Its file is removed at the end.

    :param path: of the file that stands for the lock
    :raises UserError: see `open_own`
    """
    file = lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)   # while it is held: whoever waits for it sees that it is gone
        file.close()


def lock(path):
    """Waits for a lock, which is held until the returned file is closed.

    :param path: of the file that stands for the lock; who holds it may remove it
    :return: open file; where there are no locks, a warning was printed, and nothing is locked
    :raises UserError: see `open_own`
    """
    while True:
        file = open_own(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as e:           # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({e.strerror}): make sure that only one job "
                  "begins there at a time", file=sys.stderr, flush=True)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()                   # who held it before has removed it
