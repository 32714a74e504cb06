"""Atomic writing, bounded JSON, names."""
import os
import stat

import pytest

from utils import files
from utils.errors import UserError


def test_an_atomic_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == tmp_path and temporary.suffix == ".txt"
    assert path.read_text() == "one"
    with pytest.raises(KeyError), files.atomic_file(path, ".tmp", durable=True) as temporary:
        assert temporary.suffix == ".tmp"
        temporary.write_text("two")
        raise KeyError
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a.txt"]


def test_an_atomic_folder_is_whole_or_absent(tmp_path):
    with files.atomic_folder(tmp_path / "new" / "a") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "new" / "a").exists()
    assert (tmp_path / "new" / "a" / "x").read_text() == "x"
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("x")
        raise KeyError
    assert os.listdir(tmp_path) == ["new"]
    with pytest.raises(UserError, match="exists already"), files.atomic_folder(tmp_path / "new"):
        pass
    (tmp_path / "empty").mkdir()
    with files.atomic_folder(tmp_path / "empty") as folder:
        (folder / "y").write_text("y")
    assert os.listdir(tmp_path / "empty") == ["y"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_obey_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        assert files.umask() == mask
        files.write_text(tmp_path / "a", "a")
        with files.atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes == [0o666 & ~mask, 0o777 & ~mask]


def test_json_that_is_none_or_too_large(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="no such file"):
        files.read_json(path)
    path.write_text('{"a": [1, 2]}')
    assert files.read_json(path) == {"a": [1, 2]}
    for text in ("{", "[" * 100_000, "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match="not valid JSON"):
            files.read_json(path)
    path.write_text("[1, 2, 3, 4]")
    monkeypatch.setattr(files, "MAX_JSON_VALUES", 3)
    with pytest.raises(UserError, match="more than 3 values"):
        files.read_json(path)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 11)
    with pytest.raises(UserError, match="12 bytes, more than the 11"):
        files.read_json(path)


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256_of_file(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_names():
    good = ("a", "sub-01_T1w", "0.5+x=y", "_a", "x" * 200)
    bad = ("", ".a", "-a", "a/b", "a b", "a\n", "..", "x" * 201, None, 3, ["a"])
    assert all(files.is_safe_name(name) for name in good)
    assert not any(files.is_safe_name(name) for name in bad)
