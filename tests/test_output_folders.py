"""--output of every script that makes a folder: symbolic links, the current folder, leftovers."""
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from helpers import AFFINE, GOLDEN, ROOT, brain, error_line, save_nifti, script

V2 = GOLDEN / "v2"
PREPROCESS = ("preprocess.py", "--input", V2 / "scans", "--size", 16, "--split", "3:2", "--workers",
              1)
COMMANDS = {
    "preprocess": PREPROCESS,
    "postprocess": ("postprocess.py", "--input", V2 / "samples"),
    "evaluate": ("evaluate.py", "--real", V2 / "data", "--synthetic", V2 / "samples", "--device",
                 "cpu", "--metrics", "histogram"),
    "train_vae": ("train_vae.py", "--data-path", V2 / "data", "--init", "tiny", "--tune", "all",
                  "--max-steps", 1, "--batch-size", 1, "--crop", 32, "--device", "cpu"),
}
RESULT = {"preprocess": "manifest.json", "postprocess": "source.json", "evaluate": "metrics.json",
          "train_vae": "config.json"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_link_and_the_current_folder(tmp_path, name):
    target = tmp_path / "disk"
    target.mkdir()
    target.chmod(0o2750)
    (tmp_path / "link").symlink_to(target)
    script(*COMMANDS[name], "--output", tmp_path / "link")
    assert (target / RESULT[name]).is_file() and (tmp_path / "link").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o2750
    here = tmp_path / "here"
    here.mkdir()
    script(*COMMANDS[name], "--output", ".", cwd=here)
    assert (here / RESULT[name]).is_file()
    assert sorted(os.listdir(tmp_path)) == ["disk", "here", "link"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in here.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~current_umask()}
    line = error_line(script(*COMMANDS[name], "--output", tmp_path / "link" / RESULT[name] / "x",
                             expect=2))
    assert ".tmp-" not in line and "--output" in line


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name, flag, argv", [
    ("postprocess", "--output", ("--input", V2 / "samples")),
    ("download", "--output", ("meshnet",)),
    ("preprocess", "--output", (*PREPROCESS[1:], "--shard", "1/2"))])
def test_an_output_below_a_file_is_refused_in_one_line(tmp_path, name, flag, argv):
    (tmp_path / "file").write_text("")
    line = error_line(script(f"{name}.py", *argv, flag, tmp_path / "file" / "x", expect=2))
    assert f"{flag} {tmp_path}/file/x" in line
    assert f"cannot be created ({tmp_path}/file is not a folder); name" in line


def test_an_array_of_jobs_into_a_link(tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    for part in ("1/2", "2/2"):
        script(*PREPROCESS, "--output", tmp_path / "link", "--shard", part)
    assert (target / "manifest.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    """SIGKILL in the middle of preprocessing."""
    for i in range(40):
        save_nifti(tmp_path / "in" / f"s{i:02d}.nii.gz", brain((48, 48, 48), seed=0), AFFINE)
    out = tmp_path / "out"
    command = ("preprocess.py", "--input", tmp_path / "in", "--size", 64, "--workers", 1)
    killed = subprocess.Popen([sys.executable, ROOT / command[0], *map(str, command[1:]),
                               "--output", out], stderr=subprocess.DEVNULL, cwd=tmp_path)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".out.tmp-*/mosaics/*.png")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.glob(".out.tmp-*"))) == 1
    done = script("postprocess.py", "--input", V2 / "samples", "--output", out)
    assert "removed 1 unfinished file or folder of a run that was killed" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
