"""Atomic writing, output folders, bounded JSON, names."""
import errno
import os
import shutil
import stat
import subprocess
import sys

import pytest
from helpers import ROOT

from utils import files, leftovers
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


# ------------------------------------------------------------------------------- output folders

def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_folder(path, **options):
    """What a script does with --output."""
    with files.atomic_folder(path, **options) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        (folder / "b").write_text("b")
        return folder


def contents(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


WRITTEN = ["b", "sub", "sub/a"]


@pytest.mark.parametrize("exists", [True, False])
def test_an_output_that_is_a_symbolic_link(tmp_path, exists):
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    link.symlink_to(target)
    if exists:
        target.mkdir(parents=True)
    assert files.require_new_folder(link) == link
    folder = write_folder(link)
    assert folder.parent == target.parent       # on the same disk as what it becomes
    assert link.is_symlink() and contents(target) == WRITTEN
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    with pytest.raises(UserError, match="--output .*link: exists already"):
        files.require_new_folder(link)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UserError, match="--output .*link: (cannot be read|exists already)"):
        files.require_new_folder(link)


def test_an_output_that_is_the_current_folder(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    assert write_folder(".").parent == folder
    assert contents(folder) == WRITTEN and folder.stat().st_ino == inode
    assert sorted(os.listdir()) == ["b", "sub"]         # the shell sees it, too


def test_an_output_that_is_a_mount_point(tmp_path):
    """As with `docker run -v`: a folder of the same file system, mounted."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "mounted").mkdir()
    code = ("import sys; from utils import files\n"
            "with files.atomic_folder(sys.argv[1]) as f: (f / 'a').write_text('a')")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c",
         f"mount --bind {tmp_path}/outside {tmp_path}/mounted || exit 99; "
         f"{sys.executable} -c \"{code}\" {tmp_path}/mounted"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode in (1, 99) and "Traceback" not in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "outside") == ["a"] and contents(tmp_path / "mounted") == []


def test_a_rename_that_fails_costs_no_work(tmp_path, monkeypatch):
    """Whatever the reason: the contents are then moved in."""
    (tmp_path / "out").mkdir()
    replace = os.replace

    def busy(source, target):
        if str(target) == str(tmp_path / "out"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(source), None, str(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    write_folder(tmp_path / "out")
    assert contents(tmp_path / "out") == WRITTEN and os.listdir(tmp_path) == ["out"]


def test_an_output_whose_parent_cannot_be_written(tmp_path, monkeypatch):
    parent = tmp_path / "parent"
    (parent / "out").mkdir(parents=True)
    make = files.tempfile.mkdtemp

    def refuse(prefix, dir):
        if dir == parent:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    write_folder(parent / "out")
    assert contents(parent / "out") == WRITTEN
    with pytest.raises(UserError, match=r"--output .*new: cannot be created \(Permission denied"):
        write_folder(parent / "new")


def test_permissions_setgid_and_group_of_a_folder_stay(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    groups = [gid for gid in os.getgroups() if gid != os.getegid()]
    gid = 4321 if os.geteuid() == 0 else (groups or [os.getegid()])[0]
    os.chown(folder, -1, gid)
    folder.chmod(0o2770)
    write_folder(folder)
    assert mode_of(folder) == 0o2770 and folder.stat().st_gid == gid
    assert (folder / "sub").stat().st_gid == gid == (folder / "sub" / "a").stat().st_gid
    assert mode_of(folder / "sub") & stat.S_ISGID
    # a new folder takes both from its parent
    write_folder(folder / "new")
    assert mode_of(folder / "new") == 0o2777 & ~files.umask()
    assert (folder / "new" / "b").stat().st_gid == gid


@pytest.mark.parametrize("mask", [0o022, 0o002])
def test_every_file_obeys_the_umask_whatever_wrote_it(tmp_path, mask):
    before = os.umask(mask)
    try:
        with files.atomic_folder(tmp_path / "out") as folder:
            (folder / "sub").mkdir(0o700)
            for name in ("weights", "sub/weights"):
                os.close(os.open(folder / name, os.O_CREAT, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "out" / "weights") == 0o666 & ~mask
    assert mode_of(tmp_path / "out" / "sub" / "weights") == 0o666 & ~mask
    assert mode_of(tmp_path / "out" / "sub") == 0o777 & ~mask


def test_errors_never_show_temporary_names(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError) as found, files.atomic_folder(out) as folder:
        (folder / "missing" / "a").write_text("a")
    assert found.value.filename == str(out / "missing" / "a")
    with pytest.raises(FileNotFoundError) as found, files.atomic_folder(out) as folder:
        files.write_text(folder / "missing" / "a", "a")
    assert found.value.filename == str(out / "missing" / "a")
    with pytest.raises(UserError) as found, files.atomic_folder(out) as folder:
        raise UserError(f"{folder}/a.png: damaged")
    assert str(found.value) == f"{out}/a.png: damaged"
    with pytest.raises(OSError) as found, files.atomic_file(tmp_path / "f") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert found.value.filename == str(tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, capsys):
    code = ("import os, signal, sys; from utils import files\n"
            "with files.atomic_folder(sys.argv[1]) as folder:\n"
            "    (folder / 'half').write_text('half')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n")

    def kill(path):
        subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path,
                       env={**os.environ, "PYTHONPATH": str(ROOT)})

    out = tmp_path / "out"
    kill(out)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.tmp-") and contents(left) == ["half"]
    write_folder(out)
    assert contents(out) == WRITTEN and os.listdir(tmp_path) == ["out"]
    said = capsys.readouterr().err
    assert "out: removed 1 unfinished file or folder of a run that was killed" in said
    # and within a folder, such as a mount point
    shutil.rmtree(out)
    out.mkdir()
    (out / (left.name)).mkdir()
    files.require_new_folder(out)
    write_folder(out)
    assert contents(out) == WRITTEN


def test_a_living_run_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    living = leftovers.prefix_of(out).replace(f"-{os.getpid()}-", f"-{os.getppid()}-") + "x"
    (tmp_path / living).mkdir()
    write_folder(tmp_path / "out")
    assert (tmp_path / living).is_dir()
    shutil.rmtree(out)
    (out / living).mkdir(parents=True)
    with pytest.raises(UserError, match="another run is writing there"):
        files.require_new_folder(out)


def test_a_folder_that_may_be_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(UserError, match="exists already"):
        write_folder(out, replace=lambda path: False)
    with pytest.raises(KeyError), files.atomic_folder(out, replace=lambda path: True):
        raise KeyError
    assert contents(out) == ["old"]
    write_folder(out, replace=lambda path: (path / "old").exists())
    assert contents(out) == WRITTEN


# ------------------------------------------------------------------------------------------ JSON

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


def test_the_loser_of_a_race_leaves_the_winner_alone(tmp_path, monkeypatch):
    """The other run's folder appears at the last moment, between the last look and the rename."""
    rename = os.replace

    def too_late(source, target):
        (target / "mosaics").mkdir(parents=True)
        (target / "manifest.json").write_text("winner")
        rename(source, target)

    with pytest.raises(UserError, match="out: another program wrote there while this one "
                                        "computed, and what it wrote is kept") as raised:
        with files.atomic_folder(tmp_path / "out") as folder:
            (folder / "mosaics").mkdir()
            (folder / "manifest.json").write_text("loser")
            monkeypatch.setattr(os, "replace", too_late)
    assert ".tmp-" not in str(raised.value)
    assert (tmp_path / "out" / "manifest.json").read_text() == "winner"
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out" / "mosaics") == []


@pytest.mark.parametrize("beyond", ["", "x", "x/y"])
def test_a_folder_below_a_file_names_the_file(tmp_path, beyond):
    """The system says "File exists" of one, "Not a directory" of the other."""
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError) as raised:
        files.make_folder(tmp_path / "file" / beyond, "--output given")
    assert str(raised.value) == (f"--output given: cannot be created ({tmp_path}/file is not a "
                                 "folder); name a folder where you may write")
    assert (tmp_path / "file").read_text() == "kept"
    files.make_folder(tmp_path / "a" / "b", "--output given")
    files.make_folder(tmp_path / "a" / "b", "--output given")
    assert (tmp_path / "a" / "b").is_dir()
