"""Kills, signals, closed streams and full disks against the scripts: real processes throughout.

What a script promises then is in docs/security.md and utils/errors.py: it ends, in one line where
it can still speak, leaves nothing half-written, and the same command afterwards does what an
undisturbed one would have done. Training has more of it in test_cluster.py.
"""
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import slurm_cluster
import test_download
from helpers import AFFINE, ROOT, brain, finetune_flags, related, save_nifti
from safetensors.torch import load_file

KILLS = 20      # at random moments, of each script
LINUX = sys.platform.startswith("linux")
as_root = pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="mounts, which needs root")


# --------------------------------------------------------------------------------------- helpers

def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.002)


def children(pid):
    """The workers of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def tree(folder):
    """{path: bytes} of all files in a folder, hidden ones too; times and durations blotted out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix in (".json", ".md", ".html"):
                data = re.sub(rb'"seconds": [\d.]+', b'"seconds"', data)
                data = re.sub(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+00:00)?", b"DATE", data)
            found[str(path.relative_to(folder))] = data
    return found


def assert_same_tree(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def many_scans(tmp_path_factory):
    """Scans that take preprocess.py a second."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(24):
        save_nifti(folder / f"sub-{i:02d}_T1w.nii.gz", brain((40, 40, 40), seed=i), AFFINE)
    return folder


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """Folders of real and synthetic NIfTI cubes, of 24 voxels a side."""
    folder = tmp_path_factory.mktemp("cubes")
    for name, seed in (("real", 0), ("synthetic", 1)):
        for i, cube in enumerate(related(10, 24, seed)):
            save_nifti(folder / name / f"v{i:02d}.nii.gz", cube, np.eye(4), np.float32)
    return folder


@pytest.fixture
def preprocessing(server, many_scans, tmp_path):
    """(process id, its workers, file with its output) of a preprocess.py at work."""
    output = tmp_path / "log"
    pid = server.start("preprocess", "--input", many_scans, "--size", 96, "--workers", 2,
                       "--output", tmp_path / "out", output=output)
    until(lambda: list(tmp_path.glob(".out.tmp-*/mosaics/*.png")))
    return pid, children(pid), output


# ------------------------------------------------------------------------------ workers and parents

def test_a_killed_worker_ends_preprocessing_in_one_line(server, preprocessing, tmp_path):
    pid, workers, output = preprocessing
    assert len(workers) == 2
    began = time.monotonic()
    os.kill(workers[0], signal.SIGKILL)
    assert server.wait(pid) == 2 and time.monotonic() - began < 10
    last = output.read_text().splitlines()[-1]
    assert last == ("preprocess.py: error: --workers 2: a worker was killed, likely out of memory; "
                    "use fewer workers")
    assert os.listdir(tmp_path) == ["log"] and not any(map(is_running, workers))


def test_workers_end_with_their_parent_and_a_rerun_sweeps(server, preprocessing, many_scans,
                                                          tmp_path):
    pid, workers, output = preprocessing
    os.kill(pid, signal.SIGKILL)
    assert server.wait(pid) == -signal.SIGKILL
    until(lambda: not any(map(is_running, workers)), 3)
    assert len(list(tmp_path.glob(".out.tmp-*"))) == 1
    text = server("preprocess", "--input", many_scans, "--size", 16, "--output", tmp_path / "out",
                  output=output)
    assert "removed 1 unfinished file or folder of a run that was killed" in text
    assert sorted(os.listdir(tmp_path)) == ["log", "out"]


@pytest.mark.parametrize("name, code, words", [
    ("SIGHUP", 129, "ended by SIGHUP"), ("SIGTERM", 143, "ended by SIGTERM"),
    ("SIGINT", 130, "interrupted")])
def test_signals_end_preprocessing_in_order(server, preprocessing, tmp_path, name, code, words):
    pid, workers, output = preprocessing
    for process in (pid, *(workers if name != "SIGTERM" else ())):  # a terminal tells them all
        os.kill(process, getattr(signal, name))
    assert server.wait(pid) == code
    assert output.read_text().splitlines()[-1] == f"preprocess.py: {words}"
    assert "Traceback" not in output.read_text()
    assert os.listdir(tmp_path) == ["log"] and not any(map(is_running, workers))


def test_a_closed_terminal_saves_a_training(server, training, tmp_path):
    command = (*training, "--max-steps", 100000, "--ckpt-every", 100000, "--results-dir",
               tmp_path / "r")
    pid = server.start("train", *command, output=tmp_path / "log")
    log = tmp_path / "r" / "000-DiT-T-4" / "log.jsonl"
    until(lambda: log.is_file() and log.read_text())
    os.kill(pid, signal.SIGHUP)
    assert server.wait(pid) == 75
    said = (tmp_path / "log").read_text()
    assert re.search(r"stopped by SIGHUP after step \d+/100000, saved", said)
    assert len(list(log.parent.glob("checkpoints/*.state.safetensors"))) == 1


def test_nohup_is_respected():
    """What ignores SIGHUP from its start keeps doing so."""
    code = ("import signal, sys\n"
            "sys.path.insert(0, sys.argv[1])\n"
            "from utils import errors, signals\n"
            "def main():\n"
            "    signals.StopSignals()\n"
            "    print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)\n"
            "errors.run_script(main)\n")
    done = subprocess.run(["nohup", sys.executable, "-c", code, str(ROOT)], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout == "True\n"


# ------------------------------------------------------------------------------------- full disks

@as_root
def test_a_full_disk_under_the_file_of_volumes(server, cubes, tmp_path):
    """Without the room taken first, the kernel ends the process with SIGBUS."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    try:
        text = server("evaluate", "--real", cubes / "real", "--synthetic", cubes / "synthetic",
                      "--metrics", "mmd", "--memory-gb", 1e-4, "--output", disk / "e",
                      output=tmp_path / "log", expect=2)
        left = os.listdir(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert left == []
    assert f"error: {disk}/e: no room for a temporary file of 0.000276 GB" in text
    assert "No space left on device" in text and "--memory-gb" in text


def test_a_quota_under_the_file_of_volumes(server, cubes, tmp_path):
    """As above, by a limit on the size of files, which needs no root."""
    pid = server.start("evaluate", "--real", cubes / "real", "--synthetic", cubes / "synthetic",
                       "--metrics", "mmd", "--memory-gb", 1e-4, "--output", tmp_path / "e",
                       output=tmp_path / "log", max_file_bytes=100_000)
    assert server.wait(pid) == 2 and os.listdir(tmp_path) == ["log"]
    assert "no room for a temporary file" in (tmp_path / "log").read_text()


# --------------------------------------------------------------------------- stdout and stderr

# shell syntax around a command, whose exit code and result must not depend on it
STREAMS = {
    "no stdout": "{} >&-",
    "no stderr": "{} 2>&-",
    "neither": "{} >&- 2>&- <&-",
    "head": "{} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}",
    "head of stderr": "{} 2>&1 >/dev/null | head -c 1; exit ${{PIPESTATUS[0]}}",
    "full disk": "{} >/dev/full",
    "full disk, stderr": "{} 2>/dev/full",
    "ASCII": "PYTHONIOENCODING=ascii {}",
    "C locale": "LC_ALL=C {}",
    "no home": "env -u HOME {}",
}
AS_ROOT = {
    "no home, no user": "unshare -m bash -c 'mount --bind /dev/null /etc/passwd && "
                        "exec env -u HOME {}'",
    "no /dev/shm": "unshare -m bash -c 'mount -t tmpfs -o ro tmpfs /dev/shm && exec {}'",
}


def in_shell(syntax, name, *argv, cwd=ROOT, env=None):
    """Runs a script in a new Python, with shell syntax around it."""
    command = shlex.join([sys.executable, str(ROOT / name), *map(str, argv)])
    return subprocess.run(
        ["bash", "-c", syntax.format(command)], cwd=cwd, capture_output=True, text=True,
        errors="backslashreplace", timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})})


class SlowHandler(test_download.Handler):
    """Takes its time for the weights: half a second for 3 MiB."""

    def setup(self):
        super().setup()
        at_once = self.wfile.write

        def write(data):
            for start in range(0, len(data), 2 ** 16):
                at_once(data[start:start + 2 ** 16])
                time.sleep(0.01 * (len(data) > 2 ** 16))

        self.wfile.write = write


@pytest.fixture
def hub():
    """A server of a small autoencoder's files for download.py."""
    with test_download.Server() as server:
        server.RequestHandlerClass = SlowHandler
        server.handle_error = lambda *_: None    # a client that was killed
        server.add({test_download.on_hub("sd-vae-ft-ema", "config.json"): b"{}",
                    test_download.on_hub("sd-vae-ft-ema", test_download.VAE):
                        test_download.safetensors(test_download.NOISE)})
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield {"HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("syntax", STREAMS.values(), ids=STREAMS)
def test_a_download_does_not_depend_on_its_streams(hub, tmp_path, syntax):
    """The quickest script to start; the others are in the next test."""
    done = in_shell(syntax, "download.py", "sd-vae-ft-ema", "--output", "gewicht-ü", env=hub,
                    cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert sorted(path.name for path in (tmp_path / "gewicht-ü" / "sd-vae-ft-ema").iterdir()) == [
        "config.json", test_download.VAE]


@pytest.fixture(scope="module")
def commands(many_scans, cubes, data, vae_folder, finetuned):
    """{script: its arguments, without --output}"""
    return {
        "preprocess": ("--input", many_scans, "--size", 16, "--workers", 2),
        "postprocess": ("--input", data),
        "train_vae": ("--data-path", data, "--init", "tiny", "--tune", "all", "--max-steps", 30,
                      "--batch-size", 2, "--crop", 48, "--device", "cpu"),
        "sample": ("--ckpt", finetuned, "--num-samples", 6, "--batch-size", 2, "--sampler", "ddim",
                   "--num-sampling-steps", 5, "--precision", "fp32", "--device", "cpu"),
        "evaluate": ("--real", cubes / "real", "--synthetic", cubes / "synthetic", "--metrics",
                     "mmd", "ms-ssim", "--bootstrap", 20, "--permutations", 19, "--device", "cpu"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preprocess", "postprocess", "train_vae", "train", "sample",
                                  "evaluate", "bench"])
def test_no_script_depends_on_its_streams(server, commands, training, tmp_path, name):
    """The same exit code and the same files, whatever the streams, the locale and the home."""
    flag = "--results-dir" if name == "train" else "--output"
    argv = {**commands, "train": (*training, "--max-steps", 4),
            "bench": ("metrics", "--size", 16, "--volumes", 3, "--mmd-volumes", 2, "--repeats", 2,
                      "--device", "cpu")}[name]
    out = tmp_path / "out-ü"
    output = () if name == "bench" else (flag, out)
    server(name, *argv, *output, output=tmp_path / "log")
    expected = results_of(out)
    for label, syntax in {**STREAMS, **(AS_ROOT if LINUX and not os.geteuid() else {})}.items():
        shutil.rmtree(out, ignore_errors=True)
        done = in_shell(syntax, f"{name}.py", *argv, *output)
        assert done.returncode == 0, (label, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr, (label, done.stderr)
        assert_same_tree(results_of(out), expected)
    assert set(os.listdir(tmp_path)) <= {"log", "out-ü"}


def results_of(folder):
    """`tree` without the logs of a training, which have times in them."""
    return {name: data for name, data in tree(folder).items()
            if not re.search(r"log\.txt$|tfevents|\.lock$", name)}


# ---------------------------------------------------------------------- kills at random moments

def seconds_of(server, command, out, log):
    """Runs a command undisturbed, twice, into a new folder of its own; the shorter time."""
    out.parent.mkdir()
    seconds = []
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        server(*command, output=log)
        seconds.append(time.monotonic() - began)
    return min(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preprocess", "train_vae", "sample", "evaluate"])
def test_killed_at_random_moments(server, commands, tmp_path, name):
    """Each time, the next run gives what an undisturbed one does, and nothing else is there."""
    out, log = tmp_path / "work" / "out", tmp_path / "log"
    command = (name, *commands[name], "--output", out)
    seconds = seconds_of(server, command, out, log)
    whole = tree(out)
    rng, unfinished = random.Random(name), 0
    for _ in range(KILLS):
        shutil.rmtree(out)
        pid = server.start(*command, output=log)
        workers = wait_and_list_children(pid, rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        killed = server.wait(pid) == -signal.SIGKILL
        until(lambda workers=workers: not any(map(is_running, workers)), 3)
        unfinished += killed and not (out.exists() and tree(out) == whole)
        if name == "sample" or killed and not out.exists():
            server(*command, output=log)
        assert_same_tree(tree(out), whole)
        assert os.listdir(out.parent) == ["out"]
    print(f"\n{name}: {KILLS} kills within {seconds:.1f} s, {unfinished} before the end")
    assert unfinished >= KILLS // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preprocess", "train_vae", "sample", "evaluate"])
def test_signals_at_random_moments(server, commands, tmp_path, name):
    """In order: the code of the signal, no traceback, and nothing unfinished.

    A signal after the work is done ends the process by itself: a shell shows the same code.
    """
    out, log = tmp_path / "work" / "out", tmp_path / "log"
    command = (name, *commands[name], "--output", out)
    seconds = seconds_of(server, command, out, log)
    whole = tree(out)
    rng, codes = random.Random(name), []
    for i in range(KILLS):
        shutil.rmtree(out, ignore_errors=True)
        log.write_text("")
        pid = server.start(*command, output=log)
        time.sleep(rng.uniform(0.1, 0.9 * seconds))
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[i % 3]
        os.kill(pid, number)
        codes.append(server.wait(pid))
        assert codes[-1] in (0, 128 + number, -number) and "Traceback" not in log.read_text(), (
            codes, log.read_text())
        assert not [path for path in out.parent.rglob("*") if ".tmp-" in path.name]
        if name != "sample":    # whose samples are written one by one
            assert codes[-1] < 0 or out.exists() == (codes[-1] == 0)
            assert not out.exists() or tree(out) == whole
    print(f"\n{name}: exit codes {codes}")
    assert len([code for code in codes if code > 0]) >= KILLS // 4


@pytest.mark.slow
def test_killed_at_every_rename_while_scans_are_added(server, many_scans, tmp_path):
    """preprocess.py into a data folder that exists: what was there stays whole at all times."""
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(many_scans.iterdir())[:3]:
        shutil.copy(path, few)
    flags = ("--size", 16, "--workers", 1, "--output")
    server("preprocess", "--input", few, *flags, tmp_path / "begun", output=tmp_path / "log")
    for path in sorted(many_scans.iterdir())[3:5]:
        shutil.copy(path, few)

    def add(output, **options):
        pid = server.start("preprocess", "--input", few, *flags, output, output=tmp_path / "log",
                           **options)
        return server.wait(pid)

    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    assert add(tmp_path / "whole") == 0
    before, whole = tree(tmp_path / "begun"), tree(tmp_path / "whole")
    renames, code = 0, None
    while code != 0:
        renames += 1
        out = tmp_path / f"out{renames}"
        shutil.copytree(tmp_path / "begun", out)
        code = add(out, die_at=("os", "replace", renames))
        kept = tree(out)
        assert kept["manifest.json"] in (before["manifest.json"], whole["manifest.json"])
        assert {name: kept[name] for name in before if "mosaics/" in name} == {
            name: before[name] for name in before if "mosaics/" in name}
        assert add(out) == 0
        assert_same_tree(tree(out), whole)
    print(f"\nkilled at {renames - 1} renames")
    assert renames > 5


def wait_and_list_children(pid, seconds):
    time.sleep(seconds)
    try:
        return children(pid)
    except OSError:     # it has ended
        return []


@pytest.mark.slow
def test_download_killed_at_random_moments(server, hub, tmp_path):
    """It resumes what it had, and ends up with the same files."""
    def start():
        return server.start("download", "sd-vae-ft-ema", "--output", tmp_path / "w",
                            output=tmp_path / "log", env=hub)

    seconds = []    # the first run waits for the server to import the scripts
    for _ in range(3):
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        began = time.monotonic()
        assert server.wait(start()) == 0
        seconds.append(time.monotonic() - began)
    seconds, whole = min(seconds), tree(tmp_path / "w")
    rng, unfinished, resumed = random.Random(0), 0, 0
    for _ in range(KILLS):
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        pid = start()
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        server.wait(pid)
        unfinished += not (tmp_path / "w").exists() or tree(tmp_path / "w") != whole
        resumed += any(path.stat().st_size for path in tmp_path.rglob("*.part"))
        assert server.wait(start()) == 0, (tmp_path / "log").read_text()
        assert_same_tree(tree(tmp_path / "w"), whole)
    assert sorted(os.listdir(tmp_path)) == ["log", "w"]
    print(f"\ndownload: {KILLS} kills within {seconds:.2f} s, {unfinished} before the end, "
          f"{resumed} with a part to resume")
    assert unfinished >= KILLS // 2 and resumed >= KILLS // 4


# ------------------------------------------------------------------------- processes of a training

@pytest.fixture(scope="module")
def training(data, vae_folder, pretrained):
    return ("--data-path", data, "--vae", vae_folder, *finetune_flags(pretrained),
            "--gamma-blocks", 2, "--ckpt-every", 2, "--log-every", 3)


def start_pair(server, command, log, **of_first):
    """Starts two processes of one training, with what torchrun puts into their environment.

    :param of_first: options of `server.start` for process 0
    """
    port = slurm_cluster.free_ports()
    pids = []
    for rank in (0, 1):
        env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1",
                   MASTER_PORT=port)
        pids.append(server.start("train", *command, output=f"{log}{rank}", env=env,
                                 **({} if rank else of_first)))
    return pids


@pytest.fixture(scope="module")
def pair_whole(server, training, tmp_path_factory):
    """What two undisturbed processes train in 4 steps."""
    folder = tmp_path_factory.mktemp("pair")
    command = (*training, "--max-steps", 4, "--results-dir", folder / "r")
    assert [server.wait(pid) for pid in start_pair(server, command, folder / "log")] == [0, 0]
    return load_file(folder / "r" / "000-DiT-T-4" / "checkpoints" / "0000004.safetensors")


MOMENTS = {
    "while latents are encoded": ("diffusion.vae", "encode_moments", 2),
    "while latents are written": ("training.latent_cache", "save_file", 1),
    "while its run folder is created": ("training.run_folder", "_rename_to_next_number", 1),
    "before the first checkpoint is written": ("training.checkpoint", "save_file", 1),
    "before the first checkpoint gets its name": ("utils.files", "_flush_to_disk", 1),
    "between checkpoint and state": ("training.checkpoint", "save_file", 2),
}
QUICK_MOMENTS = ("while latents are encoded", "while its run folder is created",
                 "before the first checkpoint gets its name")


@pytest.mark.parametrize("moment", [
    pytest.param(moment, id=name, marks=() if name in QUICK_MOMENTS else pytest.mark.slow)
    for name, moment in MOMENTS.items()])
def test_a_process_dies_and_the_same_command_finishes(server, training, pair_whole, data, tmp_path,
                                                      moment):
    own_data = tmp_path / "data"
    shutil.copytree(data, own_data, ignore=shutil.ignore_patterns("latents-*"))
    command = (*training, "--data-path", own_data, "--max-steps", 4, "--results-dir",
               tmp_path / "r")
    pids = start_pair(server, command, tmp_path / "first", die_at=moment)
    began = time.monotonic()
    assert server.wait(pids[0]) == -signal.SIGKILL
    assert server.wait(pids[1]) == 2 and time.monotonic() - began < 60
    assert "lost contact with the others" in (tmp_path / "first1").read_text()
    assert "Traceback" not in (tmp_path / "first1").read_text()

    pids = start_pair(server, command, tmp_path / "second")
    assert [server.wait(pid) for pid in pids] == [0, 0], (tmp_path / "second0").read_text()
    assert os.listdir(tmp_path / "r") == ["000-DiT-T-4"]
    hidden = {path.name for folder in (tmp_path / "r", own_data) for path in folder.rglob(".*")}
    assert hidden == {".lock"}
    ours = load_file(tmp_path / "r" / "000-DiT-T-4" / "checkpoints" / "0000004.safetensors")
    assert ours.keys() == pair_whole.keys()
    assert all(ours[name].equal(pair_whole[name]) for name in ours)


def test_two_resumes_of_one_run_at_the_same_moment(server, training, tmp_path):
    command = (*training, "--results-dir", tmp_path / "r")
    server("train", *command, "--max-steps", 2, output=tmp_path / "log")
    run = tmp_path / "r" / "000-DiT-T-4"
    both = [server.start("train", *command, "--max-steps", 20, "--resume", run,
                         output=tmp_path / f"log{i}") for i in (0, 1)]
    codes = [server.wait(pid) for pid in both]
    assert sorted(codes) == [0, 2]
    refused = (tmp_path / f"log{codes.index(2)}").read_text()
    assert f"error: --resume {run}: another job is writing there" in refused
    assert os.listdir(tmp_path / "r") == [run.name]


def test_a_clock_that_jumps(server, training, tmp_path):
    """Time of day, and times of files, decide nothing."""
    for name, options in (("steady", {}), ("jumping", {"clock_jumps": True})):
        command = (*training, "--results-dir", tmp_path / name)
        for steps in (3, 6):
            pid = server.start("train", *command, "--max-steps", steps, output=tmp_path / "log",
                               **options)
            assert server.wait(pid) == 0
            checkpoints = sorted((tmp_path / name).glob("*/checkpoints/*"))
            for i, path in enumerate(checkpoints if options else ()):
                os.utime(path, (2e9 - 1e6 * i,) * 2)    # 2033, the newest first
    steady, jumping = (tmp_path / name / "000-DiT-T-4" for name in ("steady", "jumping"))
    for name in ("checkpoints/0000006.safetensors", "checkpoints/0000006.state.safetensors",
                 "log.jsonl"):
        assert (jumping / name).read_bytes() == (steady / name).read_bytes()


@pytest.mark.slow
def test_a_killed_torchrun_takes_its_processes_along(training, tmp_path):
    """They save and stop, and the same command resumes; before, they trained on, unseen."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               ROOT / "train.py", *training, "--max-steps", 100000, "--ckpt-every", 100000,
               "--results-dir", tmp_path / "r"]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=ROOT,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = tmp_path / "r" / "000-DiT-T-4" / "log.jsonl"
    until(lambda: lines.is_file() and lines.read_text(), 120)
    processes = children(job.pid)
    job.kill()
    job.wait()
    until(lambda: not any(map(is_running, processes)), 30)
    assert re.search(r"stopped by SIGTERM after step \d+", (tmp_path / "log").read_text())
