"""Temporary files and folders that know which process made them.

A process that is killed (SIGKILL, out of memory, power failure) leaves its temporary files behind.
Their names hold where the process ran and its number, so that a later run can remove them, and
never those of a process that is alive.
"""
import functools
import hashlib
import os
import re
import shutil
import socket
from pathlib import Path

MAX_NAME_CHARACTERS = 100   # of a file's name in that of its temporary file; a name holds 255 bytes

_own = set()                # absolute paths of the temporary files that this process uses now


def prefix_of(path):
    """The beginning of the name of a temporary file for `path`: `.NAME.tmp-PLACE-PROCESS-`.

    :param path: file or folder that the temporary one will become
    """
    return f"{_prefix_of_any_process(path)}{_place()}-{os.getpid()}-"


def claim(temporary):
    """Says that this process uses a temporary file or folder until `release`."""
    _own.add(os.path.abspath(temporary))


def release(temporary):
    """Says that this process no longer uses it."""
    _own.discard(os.path.abspath(temporary))


def remove(folder, path=None):
    """Removes from a folder the temporary files and folders of processes that no longer exist.

    :param folder: where to look, not in its subfolders
    :param path: only those that were to become this file or folder; None: all
    :return: number of files and folders removed
    """
    count = 0
    beginning = "" if path is None else _prefix_of_any_process(path)
    for entry in _entries(folder):
        if entry.name.startswith(beginning) and is_leftover(entry):
            _remove(entry)
            count += not entry.exists()
    return count


def remove_own():
    """Removes what this process has claimed and not released; for an end without clean-up."""
    for temporary in map(Path, list(_own)):
        found = _parse(temporary.name)
        if found and found[1] == os.getpid():   # a forked process knows its parent's, too
            _remove(temporary)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_temporary(path):
    """Whether a name is that of a temporary file or folder, of whatever process."""
    return _parse(Path(path).name) is not None


def is_leftover(path):
    """Whether a path is a temporary file or folder of a process that no longer exists.

    Of a process on another machine, or in another container, this cannot be known: False.
    """
    found = _parse(Path(path).name)
    if found is None or found[0] != _place():
        return False
    if found[1] == os.getpid():     # maybe of an earlier process of the same number
        return os.path.abspath(path) not in _own
    return not _is_alive(found[1])


def final_names(text):
    """A text in which temporary paths are replaced by what they were to become."""
    return re.sub(r"(?<![^/\s'\"])\.([^/]*?)\.tmp-[0-9a-f]{10}-\d+-\w+(\.\w+)?", r"\1", text)


def _entries(folder):
    try:
        return list(Path(folder).iterdir())
    except OSError:
        return []


def _prefix_of_any_process(path):
    return f".{Path(path).name[:MAX_NAME_CHARACTERS]}.tmp-"


def _parse(name):
    """(place, process number) in the name of a temporary file; None for any other name."""
    found = re.match(r"\..*\.tmp-([0-9a-f]{10})-(\d+)-", name)
    return found and (found[1], int(found[2]))


@functools.cache
def _place():
    """Names the machine, since it was started, and the container: where process numbers are unique.

    The host name alone would not do: several nodes of a cluster, or a machine and its containers,
    may have the same.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # no Linux
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):  # PermissionError: of another user
        return True
    return True
