"""The lock of a run folder: one job at a time writes there."""
import fcntl
import os
import sys
import time

from utils.errors import UserError
from utils.shared_folders import open_own, open_regular

LOCK_PATIENCE = 120   # seconds that a requeued Slurm job waits for its own last processes to end


def lock_file(path, patience):
    """Opens a file and locks it while this process lives; it holds the Slurm job's number.

    :raises BlockingIOError: another process holds the lock after `patience` seconds
    """
    end = time.monotonic() + patience
    file = open_own(path, "a+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
        except OSError as e:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({e.strerror}): make sure that only one job "
                  "writes there", file=sys.stderr)
            break
    file.truncate(0)
    file.write(os.environ.get("SLURM_JOB_ID", ""))
    file.flush()
    return file


def lock_patience(folder):
    """Seconds to wait for the lock: a requeued Slurm job waits for its own last processes."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        with open_regular(folder / ".lock") as f:
            return LOCK_PATIENCE if job and f.read(len(job) + 1) == job.encode() else 0
    except (OSError, UserError):
        return 0
