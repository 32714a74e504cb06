"""What a cluster does to training: kills, signals, walltimes, damaged files, full disks, processes.

In most tests a training is disturbed, the same command is run again, and the run folder must then
hold the same bytes as that of a training that was left alone.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm_cluster
import torch
from helpers import ROOT, error_line, finetune_flags, script
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training import checkpoint, finetuning
from training.run_folder import Run
from utils import distributed
from utils.errors import UserError

STEPS = 24


@pytest.fixture(scope="module")
def flags(data, vae_folder, pretrained):
    """A finetuning that saves after every second step and logs after every third."""
    return ("--data-path", data, "--vae", vae_folder, *finetune_flags(pretrained),
            "--gamma-blocks", 2, "--max-steps", STEPS, "--ckpt-every", 2, "--log-every", 3)


@pytest.fixture(scope="module")
def whole(server, flags, tmp_path_factory):
    """The run folder of a training that was never interrupted."""
    results = tmp_path_factory.mktemp("whole")
    server("train", *flags, "--results-dir", results, output=results / "out")
    return results / "000-DiT-T-4"


def contents(run):
    """{file: bytes} that must not depend on interruptions: checkpoints, newest state, log."""
    found = {p.name: p.read_bytes() for p in run.glob("checkpoints/*[0-9].safetensors")}
    newest = max(run.glob("checkpoints/*.state.safetensors"))
    found[newest.name] = newest.read_bytes()
    found["log.jsonl"] = (run / "log.jsonl").read_bytes()
    return found


def assert_same(run, whole):
    ours, theirs = contents(run), contents(whole)
    assert ours.keys() == theirs.keys() and [k for k in ours if ours[k] != theirs[k]] == []


def until(condition, seconds=60):
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.0005)


def resumed_at(text):
    """The step at which the last training in this text resumed; None if none did."""
    found = re.findall(r"resumes at step (\d+)\n", text)
    return int(found[-1]) if found else None


def stopped_after(text, reason):
    """The step after which a training says that it stopped, saved."""
    return int(re.search(rf"stopped by {reason} after step (\d+)/\d+, saved", text)[1])


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------- kills, signals

def kill_repeatedly(server, command, whole, results, kills, seed):
    """Kills training `kills` times, every other time while it writes, then lets it finish.

    Nothing may be lost or left over.

    :return: how many of the kills left a half-written file
    """
    rng = random.Random(seed)
    folder = results / "000-DiT-T-4" / "checkpoints"
    command = ("train", *command, "--results-dir", results, "--ckpt-every", 1)
    saved, during_writing = [0], 0

    def newest():
        return max([int(p.name[:7]) for p in folder.glob("*.state.safetensors")], default=0)

    for i in range(kills):
        pid = server.start(*command, output=results / "out")
        if i % 2:
            until(lambda: list(folder.glob(".*.safetensors")))
            time.sleep(rng.uniform(0, 0.006))
        else:  # at any time from the start on, but not so late that it has finished
            end = time.monotonic() + rng.uniform(0, 2.5)
            until(lambda end=end: time.monotonic() > end or newest() > saved[-1] + 2)
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL, (results / "out").read_text()
        during_writing += bool(list(folder.glob(".*.safetensors")))
        assert newest() >= saved[-1]
        saved.append(newest())
    # what a kill leaves behind if it comes at the right moment
    for name in (".0000001.safetensors.abc.safetensors", ".tmpAb3dEf"):
        (folder / name).write_bytes(b"half")
    text = server(*command, output=results / "out")
    assert resumed_at(text) == saved[-1] or not saved[-1]
    assert [p.name for p in results.iterdir() if p.name[0] == "0"] == ["000-DiT-T-4"]
    ours, theirs = contents(folder.parent), contents(whole)
    assert [k for k in theirs if ours[k] != theirs[k]] == [] and not list(folder.glob(".*"))
    assert "warning: " not in text
    print(f"\n{kills} kills, {during_writing} of them while a checkpoint was written; "
          f"newest state after each: {saved[1:]}")
    return during_writing


def test_killed_three_times(server, flags, whole, tmp_path):
    kill_repeatedly(server, flags, whole, tmp_path, 3, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(server, flags, tmp_path):
    command = (*flags, "--max-steps", 72)
    server("train", *command, "--results-dir", tmp_path / "whole", output=tmp_path / "out")
    whole = tmp_path / "whole" / "000-DiT-T-4"
    assert kill_repeatedly(server, command, whole, tmp_path, 20, seed=1) >= 3


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_ends_the_step_and_saves(server, flags, whole, tmp_path, name):
    command = ("train", *flags, "--results-dir", tmp_path)
    pid = server.start(*command, output=tmp_path / "out")
    until(lambda: list(tmp_path.glob("000-*/checkpoints/*.state.safetensors")))
    os.kill(pid, getattr(signal, name))
    assert server.wait(pid) == 75
    step = stopped_after((tmp_path / "out").read_text(), name)
    run = tmp_path / "000-DiT-T-4"
    assert (run / "checkpoints" / f"{step:07d}.state.safetensors").exists()
    assert resumed_at(server(*command, output=tmp_path / "out2")) == step
    assert_same(run, whole)


def test_a_second_signal_exits_at_once(server, flags, tmp_path):
    """In the middle of a step that takes many seconds."""
    pid = server.start("train", *flags, "--results-dir", tmp_path / "r", "--global-batch-size",
                       2000, "--accum", 20, output=tmp_path / "out")
    until(lambda: list(tmp_path.glob("r/0*/log.jsonl")))
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    sent = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 128 + 15 and time.monotonic() - sent < 5
    assert not list(tmp_path.glob("r/0*/checkpoints/*"))


def test_a_signal_during_set_up_exits_at_once(server, flags, tmp_path):
    """While it reads the manifest, here a pipe into which nobody writes."""
    manifest = tmp_path / "manifest.json"
    os.mkfifo(manifest)
    pid = server.start("train", *flags, "--data-path", manifest, output=tmp_path / "out")
    until(lambda: _catches(pid, signal.SIGUSR1))
    os.kill(pid, signal.SIGUSR1)
    assert server.wait(pid) == 75
    assert "SIGUSR1 during set-up: nothing to save" in (tmp_path / "out").read_text()


def _catches(pid, number):
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return int(caught, 16) >> (number - 1) & 1


def test_max_minutes(server, flags, whole, tmp_path):
    command = ("train", *flags, "--results-dir", tmp_path)
    for step in (1, 2):
        text = server(*command, "--max-minutes", 1e-6, expect=75, output=tmp_path / f"out{step}")
        assert stopped_after(text, "--max-minutes") == step
    assert resumed_at(server(*command, output=tmp_path / "out3")) == 2
    assert_same(tmp_path / "000-DiT-T-4", whole)


@pytest.mark.parametrize("keep, expected", [
    ((), [*(str(i) for i in range(2, 19, 2)), "16.state", "18.state"]),
    (("--keep", 2), ["16", "16.state", "18", "18.state"]),
    (("--keep", 3, "--keep-every", 8), ["8", "14", "16", "18", "14.state", "16.state", "18.state"]),
    (("--ckpt-minutes", 1e-9, "--ckpt-every", 100), ["17.state", "18", "18.state"]),
])
def test_which_checkpoints_are_kept(server, flags, tmp_path, keep, expected):
    server("train", *flags, *keep, "--max-steps", 18, "--results-dir", tmp_path,
           output=tmp_path / "out")
    found = (tmp_path / "000-DiT-T-4" / "checkpoints").iterdir()
    names = sorted(p.name.removesuffix(".safetensors").lstrip("0") for p in found)
    assert names == sorted(expected)


# -------------------------------------------------------------------------------- damaged files

def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    w = torch.arange(6.0).view(2, 3)
    checkpoint.save_checkpoint(path, dict(step=3, config=dict(depth=2)),
                               raw={"w": w, "b": torch.ones(1)})
    whole, meta = path.read_bytes(), checkpoint.verify(path)
    found = 0
    for i in range(len(whole)):
        for flip in (0x01, 0x20, 0xff):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1:])
            try:
                assert checkpoint.verify(path) == meta
            except UserError:
                found += 1
                continue
            # a flip that changes nothing, such as that of a space to a tab
            into = dict(w=torch.zeros(2, 3), b=torch.zeros(1))
            checkpoint.load_into(path, raw=into)
            assert torch.equal(into["w"], w) and into["b"] == 1
    assert found > 2.9 * len(whole)


def states_of(run):
    """Files of the states of a run folder, newest first."""
    return sorted((run / "checkpoints").glob("*.state.safetensors"), reverse=True)


@pytest.mark.parametrize("damage", ["flip", "cut", "zero"])
def test_the_state_before_a_damaged_one_is_used(server, flags, whole, tmp_path, damage):
    run = tmp_path / "000-DiT-T-4"
    shutil.copytree(whole, run)
    newest, before = states_of(run)
    content = bytearray(newest.read_bytes())
    content[-1000] ^= 4
    newest.write_bytes({"flip": content, "cut": content[:-500], "zero": b""}[damage])
    command = ("train", *flags, "--results-dir", tmp_path)
    text = server(*command, output=tmp_path / "out")
    (warning,) = [line for line in text.splitlines() if line.startswith(f"warning: {newest}: ")]
    assert ("checksum" if damage == "flip" else "safetensors file") in warning
    assert resumed_at(text) == STEPS - 2
    assert_same(run, whole)
    if damage == "zero":
        for path in (newest, before):
            path.write_bytes(b"")
        text = server(*command, output=tmp_path / "out2", expect=2)
        assert f"error: {run}: " in text and "give --resume none" in text


def test_states_of_the_first_version_are_read(server, flags, whole, tmp_path):
    """They had no checksum, no count of skipped steps, and were called last.safetensors."""
    run = tmp_path / "000-DiT-T-4"
    shutil.copytree(whole, run)
    newest, before = states_of(run)
    meta = {k: v for k, v in checkpoint.read_metadata(before).items()
            if k not in ("sha256", "skipped")}
    save_file(load_file(before), before.with_name("last.safetensors"),
              metadata={"mosaicdit": json.dumps(meta | {"version": 1})})
    newest.unlink()
    before.unlink()
    text = server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    assert resumed_at(text) == STEPS - 2
    assert_same(run, whole)


LOAD_AND_WATCH = """
import sys
import threading
import time
import torch
from training import checkpoint

def own_megabytes():
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

def watch():
    global most
    while loading:
        most = max(most, own_megabytes())
        time.sleep(0.001)

path = sys.argv[1]
tensors = {str(i): torch.full((4 * 2 ** 20,), float(i)) for i in range(16)}
checkpoint.save_checkpoint(path, {}, raw=tensors)
for tensor in tensors.values():
    tensor.zero_()
before, most, loading = own_megabytes(), 0, True
thread = threading.Thread(target=watch)
thread.start()
checkpoint.verify(path)
checkpoint.load_into(path, raw=tensors)
loading = False
thread.join()
assert all((tensor == float(i)).all() for i, tensor in tensors.items())
print(most - before)
"""


def test_loading_holds_no_second_copy(tmp_path):
    """256 MB are read into existing tensors; the process may not grow by a tenth of that."""
    command = [sys.executable, "-c", LOAD_AND_WATCH, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 25.6, done.stdout


# ------------------------------------------------------------------------------------ full disks

def test_a_full_disk_ends_the_run_and_leaves_the_previous_state(flags, server, whole, tmp_path):
    run = tmp_path / "000-DiT-T-4"
    command = (*flags, "--results-dir", tmp_path)
    pid = server.start("train", *command, output=tmp_path / "out")
    until(lambda: len(states_of(run)) > 1)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    states = states_of(run)
    limit = states[0].stat().st_size - 1000  # the weights still fit, the state does not
    done = script("train.py", *command, expect=2, max_file_bytes=limit)
    line = error_line(done)
    assert ".state.safetensors: " in line and "too large" in line.lower()
    assert states_of(run) == states and not list((run / "checkpoints").glob(".*"))
    assert checkpoint.verify(states[0])["step"] == int(states[0].name[:7])
    server("train", *command, output=tmp_path / "out")
    assert_same(run, whole)


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"),
                    reason="mounting a small disk needs root on Linux")
def test_a_disk_that_is_really_full(flags, server, tmp_path):
    """A tmpfs with room for the beginning of the run only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        text = server("train", *flags, "--results-dir", disk, output=tmp_path / "out", expect=2)
        assert text.count("train.py: error: ") == 1
        assert "safetensors: " in text and "No space left" in text
        run = disk / "000-DiT-T-4"
        newest = states_of(run)[0]
        assert checkpoint.verify(newest)["step"] == int(newest.name[:7])
        assert not list((run / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", disk], check=True)


# --------------------------------------------------------------------- losses that are not finite

@pytest.fixture(scope="module")
def bad_volume(flags, whole, data, tmp_path_factory):
    """A data folder in which the latents of one volume hold a NaN: its id, and a training.

    A batch is a single volume, so that the steps without the bad one are sound.
    """
    folder = tmp_path_factory.mktemp("bad") / "d"
    shutil.copytree(data, folder)
    cache = next(folder.glob("latents-*.safetensors"))
    with safe_open(cache, "pt") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    tensors["moments"][1, 0, 0, 0] = float("nan")
    save_file(tensors, cache, metadata=metadata)
    volumes = json.loads((folder / "manifest.json").read_text())["volumes"]
    ids = [v["id"] for v in volumes if v["split"] == "train"]
    command = ("train", *flags, "--data-path", folder, "--global-batch-size", 1,
               "--ckpt-every", 1, "--log-every", 1, "--results-dir")
    return SimpleNamespace(id=ids[1], command=command, cache=cache)


@pytest.fixture(scope="module")
def bad_step(server, bad_volume, tmp_path_factory):
    """The step at which training stops because of the bad volume."""
    results = tmp_path_factory.mktemp("stop")
    text = server(*bad_volume.command, results, output=results / "out", expect=2)
    found = re.search(rf"--lr 0.001: loss nan at step (\d+), .* on the volumes {bad_volume.id}; "
                      ".*--skip-nonfinite", text)
    step = int(found[1])
    states = results.glob("*/checkpoints/*.state.*")
    assert max(states, default=Path("0000000.")).name[:7] == f"{step - 1:07d}"
    return step


@pytest.fixture(scope="module")
def skipping(server, bad_volume, tmp_path_factory):
    """The run folder of a training that skips the bad volume, and its output."""
    results = tmp_path_factory.mktemp("skip")
    text = server(*bad_volume.command, results, "--skip-nonfinite", output=results / "out")
    return SimpleNamespace(run=results / "000-DiT-T-4", text=text)


def test_a_bad_volume_stops_the_run_before_anything_is_saved(server, bad_volume, bad_step,
                                                             tmp_path):
    """It is noticed at the next log line or save, whichever comes first."""
    text = server(*bad_volume.command, tmp_path, "--log-every", 10, "--ckpt-every", 99,
                  output=tmp_path / "out", expect=2)
    assert f"loss nan at step {bad_step}, " in text
    assert not list(tmp_path.glob("0*/checkpoints/*"))


def test_a_bad_volume_can_be_skipped(bad_volume, bad_step, skipping):
    log = log_of(skipping.run)
    assert len(log) == STEPS
    assert log[bad_step - 1]["loss"] is None and log[bad_step - 1]["skipped"] == 1
    skipped = [entry["step"] for entry in log if entry["loss"] is None]
    assert 2 <= len(skipped) < STEPS
    assert log[-1]["skipped"] == len(skipped)
    assert skipping.text.count(f"on the volumes {bad_volume.id}") == len(skipped)
    folder = skipping.run / "checkpoints"
    saved = load_file(folder / f"{STEPS:07d}.state.safetensors")
    assert all(t.isfinite().all() for t in saved.values())
    for step in skipped:  # a skipped step changes nothing
        if step > 1:
            before = load_file(folder / f"{step - 1:07d}.safetensors")
            after = load_file(folder / f"{step:07d}.safetensors")
            assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_run_that_skips_steps_resumes_exactly(server, bad_volume, skipping, tmp_path):
    command = (*bad_volume.command, tmp_path, "--skip-nonfinite")
    pid = server.start(*command, output=tmp_path / "out")
    until(lambda: len(list(tmp_path.glob("0*/checkpoints/*"))) > 8)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    server(*command, output=tmp_path / "out2")
    assert_same(tmp_path / "000-DiT-T-4", skipping.run)


def test_too_many_skipped_steps_in_a_row_end_the_run(server, bad_volume, tmp_path):
    shutil.copytree(bad_volume.cache.parent, tmp_path / "d")
    cache = tmp_path / "d" / bad_volume.cache.name
    with safe_open(cache, "pt") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    tensors["moments"].fill_(float("nan"))
    save_file(tensors, cache, metadata=metadata)
    text = server(*bad_volume.command, tmp_path / "r", "--skip-nonfinite", "--data-path",
                  tmp_path / "d", output=tmp_path / "out", expect=2)
    assert "loss nan at step 20, " in text and "(20 steps in a row were skipped)" in text


# ---------------------------------------------------------------------------- folders and locks

def test_two_jobs_in_the_same_second(server, flags, whole, tmp_path):
    pids = [server.start("train", *flags, "--results-dir", tmp_path, output=tmp_path / f"out{i}")
            for i in range(2)]
    assert [server.wait(p) for p in pids] == [0, 0]
    assert sorted(p.name for p in tmp_path.glob("[0-9.]*")) == ["000-DiT-T-4", "001-DiT-T-4"]
    for i in range(2):
        assert_same(tmp_path / f"00{i}-DiT-T-4", whole)


def test_a_requeued_job_waits_for_its_own_last_processes(tmp_path, monkeypatch):
    """Another job does not: it begins a run of its own."""
    flags = {"lr": 0.1}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    last = Run.create(tmp_path, "DiT-T/4", flags)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert Run.find(tmp_path, "DiT-T/4", "auto", flags) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    threading.Timer(0.5, last._lock.close).start()
    began = time.monotonic()
    assert Run.find(tmp_path, "DiT-T/4", "auto", flags).folder == last.folder
    assert time.monotonic() - began > 0.4


# ------------------------------------------------------------------------------ many processes

def together(server, n, name, *argv, output):
    """Runs a script as n processes, with what torchrun puts into their environment.

    :return: what each of them printed
    """
    port = slurm_cluster.free_ports()
    environments = [dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1",
                         MASTER_PORT=port) for rank in range(n)]
    outputs = [Path(f"{output}{rank}") for rank in range(n)]
    pids = [server.start(name, *argv, output=path, env=env)
            for path, env in zip(outputs, environments)]
    codes = [server.wait(p) for p in pids]
    texts = [path.read_text() for path in outputs]
    assert codes == [0] * n, texts
    return texts


def losses(run):
    return torch.tensor([[entry["loss"], entry["mse"], entry["vb"]] for entry in log_of(run)],
                        dtype=torch.float64)


def assert_close_losses(run, whole):
    assert ((losses(run) - losses(whole)).abs() <= 1e-6 * losses(whole).abs()).all()


@pytest.mark.parametrize("n", [2, 4])
def test_processes_do_the_same_training(server, flags, whole, tmp_path, n):
    texts = together(server, n, "train", *flags, "--results-dir", tmp_path,
                     output=tmp_path / "out")
    run = tmp_path / "000-DiT-T-4"
    assert [p.name for p in tmp_path.glob("0*")] == [run.name]
    assert_close_losses(run, whole)
    ours, theirs = (load_file(r / "checkpoints" / f"{STEPS:07d}.safetensors")
                    for r in (run, whole))
    assert max((ours[k] - theirs[k]).abs().max() for k in theirs) <= 1e-5
    assert f"{n} processes" in texts[0] and texts[1] == ""


def test_accumulation_and_an_interruption_under_two_processes(server, flags, whole, tmp_path):
    for name, steps in (("whole", (STEPS,)), ("resumed", (9, STEPS))):
        for last in steps:
            together(server, 2, "train", *flags, "--accum", 2, "--max-steps", last,
                     "--results-dir", tmp_path / name, output=tmp_path / f"{name}{last}-")
    ours, theirs = (tmp_path / name / "000-DiT-T-4" for name in ("resumed", "whole"))
    for name in (f"{STEPS:07d}.state.safetensors", "log.jsonl"):
        assert contents(ours)[name] == contents(theirs)[name]
    assert_close_losses(ours, whole)


def test_processes_measure_the_same_held_out_loss(server, flags, tmp_path):
    """Of equal weights, after one step: the losses are bitwise the same however they are shared."""
    measured = (*flags, "--lr", 1e-30, "--max-steps", 2, "--val-every", 1)
    for n in (1, 2):
        together(server, n, "train", *measured, "--results-dir", tmp_path / f"{n}",
                 output=tmp_path / f"out{n}-")
    lines = [[entry for entry in log_of(tmp_path / f"{n}" / "000-DiT-T-4")
              if "held_out_loss" in entry] for n in (1, 2)]
    assert lines[0] == lines[1] and [entry["step"] for entry in lines[0]] == [1, 2]


def torchrun(n, name, *argv):
    """Starts a script under torchrun, as n processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={n}", ROOT / name, *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})


def wait_for_checkpoints(job, run, n):
    """Waits until the job has written n more checkpoints than there are now."""
    def count():
        return len(list(run.glob("checkpoints/*[0-9].safetensors")))

    had = count()
    until(lambda: count() >= had + n or job.poll() is not None, 120)
    assert job.poll() is None, job.communicate()[0]


def test_torchrun_signals_and_a_dying_process(flags, whole, tmp_path):
    """SIGTERM to torchrun saves. One process that is killed ends the job within a minute."""
    run = tmp_path / "000-DiT-T-4"
    command = (2, "train.py", *flags, "--max-steps", 100000, "--results-dir", tmp_path)
    job = torchrun(*command)
    wait_for_checkpoints(job, run, 2)
    job.send_signal(signal.SIGTERM)
    text = job.communicate(timeout=60)[0]
    assert job.returncode != 0
    step = stopped_after(text, "SIGTERM")
    assert checkpoint.verify(run / "checkpoints" / f"{step:07d}.state.safetensors")["step"] == step

    job = torchrun(*command)
    wait_for_checkpoints(job, run, 2)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(max(map(int, children)), signal.SIGKILL)
    text = job.communicate(timeout=60)[0]
    assert job.returncode != 0 and resumed_at(text) == step
    assert "error: process 0 of 2: lost contact with the others" in text
    assert "exitcode  : -9" in text and 'train.py", line' not in text


def test_only_trainable_parameters_are_reduced(monkeypatch):
    """For DiT-XL/2: 6.6 MB per step, in one sum, and not the 2.7 GB of the model."""
    import torch.distributed as dist

    import models
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, num_classes=1000)
    trained = finetuning.set_trainable(model, "difffit").values()
    for p in trained:
        p.grad = torch.zeros_like(p)
    summed = []
    monkeypatch.setattr(dist, "all_reduce", lambda t: summed.append(t.numel()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    distributed.sum_gradients(trained)
    assert summed == [489632 + 1153152] and 4 * sum(summed) < 7e6


# -------------------------------------------------------------------------------- samples, shards

def tree(folder):
    """{path: bytes} of all files in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_samples_are_bitwise_identical_whoever_draws_them(server, whole, tmp_path):
    """One process, two processes, or three jobs of an array of which one was interrupted."""
    command = ("sample", "--ckpt", whole, "--num-samples", 5, "--batch-size", 2, "--cfg-scale", 2,
               "--sampler", "ddim", "--num-sampling-steps", 3, "--precision", "fp32",
               "--device", "cpu", "--output")
    server(*command, tmp_path / "one", output=tmp_path / "out")
    one = tree(tmp_path / "one")
    assert len(one) == 11 and "samples.json" in one

    texts = together(server, 2, *command, tmp_path / "two", output=tmp_path / "out-two")
    assert tree(tmp_path / "two") == one and "process 1: " in texts[1]

    shards = tmp_path / "shards"
    pids = [server.start(*command, shards, "--shard", f"{i}/3", output=tmp_path / f"out{i}")
            for i in (1, 2, 3)]
    assert [server.wait(p) for p in pids] == [0, 0, 0] and tree(shards) == one
    # as if a task was killed in the middle of a batch
    (shards / "nifti" / "000003.nii.gz").unlink()
    (shards / "mosaics" / "000003.png").unlink()
    text = server(*command, shards, "--shard", "1/3", output=tmp_path / "out4")
    assert text.startswith("shard 1/3: ") and "already has" in text
    assert "mosaics/000003.png" not in tree(shards)
    server(*command, shards, "--shard", "2/3", output=tmp_path / "out5")
    assert tree(shards) == one
    text = server(*command, tmp_path / "x", "--shard", "0/3", output=tmp_path / "out6", expect=2)
    assert "--shard: '0/3': must be I/N with 1 <= I <= N" in text


def test_shards_preprocess_what_one_job_does(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "in")
    (tmp_path / "in" / "sub-09_T1w.nii.gz").write_bytes(b"no scan")
    flags = ("--input", tmp_path / "in", "--size", 16, "--split", "3:2", "--workers", 1)
    script("preprocess.py", *flags, "--output", tmp_path / "one", expect=1)
    shards = ("preprocess.py", *flags, "--output", tmp_path / "many")
    assert "shard 3/3: 2 scans done, 0 skipped" in script(*shards, "--shard", "3/3").stdout
    script(*shards, "--shard", "1/3")
    assert not (tmp_path / "many").exists()
    other_flags = script(*shards, "--shard", "1/3", "--seed", 5, expect=2)
    assert "was made with other flags" in error_line(other_flags)
    last = script(*shards, "--shard", "2/3", expect=1)
    assert "skipped: " in last.stderr and "sub-09" in last.stderr
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "many", "one"]
    again = script(*shards, "--shard", "2/3", expect=2)
    assert "exists already" in error_line(again)
