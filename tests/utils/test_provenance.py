"""Which code, and when."""
import datetime
import subprocess

import numpy
import pytest

from utils import provenance


def test_time_and_versions():
    now = datetime.datetime.fromisoformat(provenance.now())
    assert abs(datetime.datetime.now(datetime.UTC) - now) < datetime.timedelta(seconds=5)
    assert provenance.versions("numpy")["numpy"] == numpy.__version__


def test_commit(tmp_path):
    assert provenance.git_commit(tmp_path) is None

    def git(*args):
        flags = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *flags, "-C", tmp_path, *args], check=True,
                              capture_output=True, text=True).stdout.strip()

    try:
        git("init")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    assert provenance.git_commit(tmp_path) is None      # no commit yet
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert provenance.git_commit(tmp_path) == commit and len(commit) == 40
    (tmp_path / "a").write_text("b")
    assert provenance.git_commit(tmp_path) == commit + "+"
