"""With which code, and when, a result was computed."""
import datetime
import platform
import subprocess
from importlib import metadata

from utils.files import SCRIPTS_DIR


def now():
    """The time in UTC, such as "2026-11-25T19:20:00+00:00"."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions(*packages):
    """{"python": version, package: version, …}."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in packages}}


def git_commit(folder=SCRIPTS_DIR):
    """The commit of the repository that a folder is the root of, with "+" if files differ from it.

    :return: None without a repository, or without git
    """
    if not (folder / ".git").exists():
        return None
    git = ["git", "-c", "safe.directory=*", "-C", str(folder)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        return commit + ("+" if _output([*git, "status", "--porcelain", "-uno"]) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _output(command):
    return subprocess.run(command, capture_output=True, text=True, check=True,
                          timeout=10).stdout.strip()
