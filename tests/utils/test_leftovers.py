"""Which temporary files belong to processes that no longer exist."""
import multiprocessing
import os
import re
import subprocess
import sys

from helpers import ROOT

from utils import leftovers


def name_of(process, path="out"):
    """Name of a temporary file that a process of this machine makes for `path`."""
    own = leftovers.prefix_of(path)
    return re.sub(r"-\d+-$", f"-{process}-", own) + "x1y2"


def dead_process():
    """The number of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_leftovers_are_those_of_dead_processes(tmp_path):
    dead = name_of(dead_process())
    for name in (dead, name_of(os.getppid()), name_of(1), ".out.abcd", "out", ".hidden"):
        (tmp_path / name).write_text("")
        assert leftovers.is_leftover(tmp_path / name) == (name == dead), name
    assert leftovers.is_temporary(name_of(1)) and not leftovers.is_temporary(".out.abcd")
    other_place = re.sub(r"tmp-[0-9a-f]{10}", "tmp-0123456789", dead)
    assert leftovers.is_temporary(other_place) and not leftovers.is_leftover(other_place)


def test_only_what_a_process_uses_now_is_its_own(tmp_path):
    path = tmp_path / (leftovers.prefix_of("out") + "x")
    path.mkdir()
    leftovers.claim(path)
    assert not leftovers.is_leftover(path)
    leftovers.release(path)
    assert leftovers.is_leftover(path)      # of an earlier process that had this number


def test_remove(tmp_path):
    dead = dead_process()
    (tmp_path / name_of(dead)).mkdir()
    (tmp_path / name_of(dead) / "file").write_text("")
    (tmp_path / name_of(dead, "other.png")).write_text("")
    (tmp_path / name_of(os.getppid())).mkdir()
    assert leftovers.remove(tmp_path, "out") == 1
    assert leftovers.remove(tmp_path, "another") == 0
    assert leftovers.remove(tmp_path) == 1
    assert os.listdir(tmp_path) == [name_of(os.getppid())]
    assert leftovers.remove(tmp_path / "missing") == 0


def test_final_names_stand_for_temporary_ones():
    folder, file = name_of(7, "/data/d.73"), name_of(7, "/data/a b.png") + ".png"
    assert leftovers.final_names(f"/data/{folder}/x: full; '/data/{file}' and {folder}") == (
        "/data/d.73/x: full; '/data/a b.png' and d.73")
    for text in ("--lr 1.5: a.tmp-0123456789-7-x stays", "/a/.hidden/.tmp-file: no"):
        assert leftovers.final_names(text) == text


def test_a_child_process_has_the_same_place_and_another_number():
    code = "from utils import leftovers; print(leftovers.prefix_of('out'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    place = re.compile(r"\.out\.tmp-([0-9a-f]{10})-(\d+)-$")
    theirs, ours = place.match(done.stdout.strip()), place.match(leftovers.prefix_of("out"))
    assert theirs[1] == ours[1] and theirs[2] != ours[2]
    assert multiprocessing.current_process().pid == int(ours[2])
