"""Files in folders that others may write: links are not written, pipes and devices not read."""
import ast
import multiprocessing
import os
import re
import time
from pathlib import Path

import pytest
from helpers import ROOT

from mri import tables
from utils import shared_folders
from utils.errors import UserError
from utils.files import read_json, sha256_of_file


def test_a_file_of_ours_is_created_and_appended_to(tmp_path):
    path = tmp_path / "a"
    for word in ("one ", "two"):
        with shared_folders.open_own(path) as f:
            f.write(word)
            assert f.name == str(path)
    assert path.read_text() == "one two"
    with shared_folders.open_own(path, "ab+") as f:
        assert f.seek(0) == 0 and f.read() == b"one two"


@pytest.mark.parametrize("kind, words", [
    ("link", "is a symbolic link"), ("dangling", "is a symbolic link"),
    ("hard", "is a hard link to a file that has another name"), ("pipe", "not a regular file"),
    ("folder", "not a regular file")])
def test_what_is_not_ours_is_not_opened(tmp_path, kind, words):
    victim, path = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("precious")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "hard":
        os.link(victim, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match=words):
        shared_folders.open_own(path)
    assert victim.read_text() == "precious" and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("read", [read_json, sha256_of_file, tables.read_table,
                                  shared_folders.open_regular])
def test_devices_and_pipes_are_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    start = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises((UserError, IsADirectoryError)):
            read(path)
    assert time.monotonic() - start < 5


def test_nothing_else_opens_files_to_write():
    """They are written under another name first (utils/files.py), or opened here."""
    folders = (path for path in ROOT.iterdir() if (path / "__init__.py").is_file())
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))]
    calls = [(path.name, ast.unparse(node)) for path in files
             for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "open"]
    assert len(calls) > 8
    assert [name for name, call in calls if re.search(r"""['"][rb]*[wax+]""", call)] == []


def _append(folder):
    with shared_folders.locked(folder / ".lock"):
        before = (folder / "log").read_text()
        time.sleep(0.05)
        (folder / "log").write_text(before + "x")


def test_one_at_a_time(tmp_path):
    (tmp_path / "log").write_text("")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(tmp_path,)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "log").read_text() == "xxxxx" and os.listdir(tmp_path) == ["log"]
