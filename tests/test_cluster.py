"""What a cluster does to training: kills, signals, walltimes, damaged files, full disks, many processes."""
import json
import os
import random
import re
import resource
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

from training import checkpoint as checkpoints
from training import finetuning
from training import run_folder as runs
from utils.errors import UserError

STEPS = 24


@pytest.fixture(scope="module")
def flags(data, vae_folder, pretrained):
    """A finetuning that saves after every step and logs every third."""
    return ("--data-path", data, "--vae", vae_folder, *finetune_flags(pretrained), "--gamma-blocks", 2, "--max-steps", STEPS,
            "--ckpt-every", 2, "--log-every", 3)


@pytest.fixture(scope="module")
def whole(server, flags, tmp_path_factory):
    """The run folder of a training that was never interrupted."""
    results = tmp_path_factory.mktemp("whole")
    server("train", *flags, "--results-dir", results, output=results / "out")
    return results / "000-DiT-T-4"


def contents(run):
    """Every byte that must not depend on interruptions, by file: all checkpoints, the newest state, the log."""
    found = {p.name: p.read_bytes() for p in run.glob("checkpoints/*[0-9].safetensors")}
    newest = max(run.glob("checkpoints/*.state.safetensors"))
    return found | {newest.name: newest.read_bytes(), "log.jsonl": (run / "log.jsonl").read_bytes()}


def assert_same(run, whole):
    ours, theirs = contents(run), contents(whole)
    assert ours.keys() == theirs.keys() and [k for k in ours if ours[k] != theirs[k]] == []


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


# ------------------------------------------------------------------------------------------------------ kills, signals

def killed(server, command, whole, tmp_path, kills, seed):
    """Kills training `kills` times, every other time while it writes a checkpoint, and lets it end: nothing may be lost."""
    rng, saved, during_writing = random.Random(seed), [0], 0
    run = tmp_path / "000-DiT-T-4" / "checkpoints"

    def newest():
        return max([int(p.name[:7]) for p in run.glob("*.state.safetensors")], default=0)

    for i in range(kills):
        pid = server.start("train", *command, "--results-dir", tmp_path, "--ckpt-every", 1, output=tmp_path / "out")
        if i % 2:
            until(lambda: list(run.glob(".*.safetensors")))
            time.sleep(rng.uniform(0, 0.006))
        else:  # any time from the start on, but not so late that it has ended
            end = time.monotonic() + rng.uniform(0, 2.5)
            until(lambda end=end: time.monotonic() > end or newest() > saved[-1] + 2)
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL, (tmp_path / "out").read_text()
        during_writing += bool(list(run.glob(".*.safetensors")))
        assert newest() >= saved[-1]
        saved.append(newest())
    for name in (".0000001.safetensors.abc.safetensors", ".tmpAb3dEf"):  # as a kill leaves behind when it comes at the right moment
        (run / name).write_bytes(b"half")
    text = server("train", *command, "--results-dir", tmp_path, "--ckpt-every", 1, output=tmp_path / "out")
    assert f"goes on at step {saved[-1]}\n" in text or not saved[-1]
    assert [p.name for p in tmp_path.iterdir() if p.name[0] == "0"] == ["000-DiT-T-4"]
    ours, theirs = contents(run.parent), contents(whole)
    assert [k for k in theirs if ours[k] != theirs[k]] == [] and not list(run.glob(".*"))
    assert "damaged" not in text and "not a whole" not in text
    print(f"\n{kills} kills, {during_writing} of them while a checkpoint was written; steps saved by then: {saved[1:]}")
    return during_writing


def test_killed_three_times(server, flags, whole, tmp_path):
    killed(server, flags, whole, tmp_path, 3, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(server, flags, tmp_path):
    command = (*flags, "--max-steps", 72)
    server("train", *command, "--results-dir", tmp_path / "whole", output=tmp_path / "out")
    assert killed(server, command, tmp_path / "whole" / "000-DiT-T-4", tmp_path, 20, seed=1) >= 3


@pytest.mark.parametrize("name", ["SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.slow),
                                  pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_and_saves(server, flags, whole, tmp_path, name):
    pid = server.start("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    until(lambda: list(tmp_path.glob("000-*/checkpoints/*.state.safetensors")))
    os.kill(pid, getattr(signal, name))
    assert server.wait(pid) == 75
    text = (tmp_path / "out").read_text()
    stopped = int(re.search(rf"stopped by {name} after step (\d+)/{STEPS}, saved", text)[1])
    assert (tmp_path / "000-DiT-T-4" / "checkpoints" / f"{stopped:07d}.state.safetensors").exists()
    assert f"goes on at step {stopped}" in server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    assert_same(tmp_path / "000-DiT-T-4", whole)


def test_a_second_signal_exits_at_once_and_an_early_one_too(server, flags, tmp_path):
    """With steps that take many seconds."""
    slow = (*flags, "--results-dir", tmp_path / "r", "--global-batch-size", 2000, "--accum", 20)
    pid = server.start("train", *slow, output=tmp_path / "out")
    until(lambda: list(tmp_path.glob("r/0*/log.jsonl")))
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    sent = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 128 + 15 and time.monotonic() - sent < 5
    assert not list(tmp_path.glob("r/0*/checkpoints/*"))
    early = subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, slow)], stderr=subprocess.PIPE, text=True)
    until(lambda: _catches(early.pid, signal.SIGUSR1))
    early.send_signal(signal.SIGUSR1)
    assert early.wait(60) == 75 and "nothing to save" in early.stderr.read()


def _catches(pid, number):
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return int(caught, 16) >> (number - 1) & 1


def test_max_minutes(server, flags, whole, tmp_path):
    for _ in range(2):
        assert "stopped by --max-minutes" in server("train", *flags, "--max-minutes", 1e-6, "--results-dir", tmp_path, expect=75,
                                                    output=tmp_path / "out")
    server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out2")
    assert "goes on at step 2" in (tmp_path / "out2").read_text()
    assert_same(tmp_path / "000-DiT-T-4", whole)


def test_which_checkpoints_are_kept(server, flags, tmp_path):
    names = {}
    for flag, extra in {"all": (), "two": ("--keep", 2), "and": ("--keep", 3, "--keep-every", 8), "min": ("--ckpt-minutes", 1e-9)}.items():
        every = () if flag != "min" else ("--ckpt-every", 100)
        server("train", *flags, *extra, *every, "--max-steps", 18, "--results-dir", tmp_path / flag, output=tmp_path / "out")
        found = (tmp_path / flag / "000-DiT-T-4" / "checkpoints").iterdir()
        names[flag] = sorted(p.name.removesuffix(".safetensors").lstrip("0") for p in found)
    assert names["all"] == sorted([*(str(i) for i in range(2, 19, 2)), "16.state", "18.state"])
    assert names["two"] == ["16", "16.state", "18", "18.state"]
    assert names["and"] == sorted(["8", "14", "16", "18", "14.state", "16.state", "18.state"])
    assert names["min"] == ["17.state", "18", "18.state"]


# ------------------------------------------------------------------------------------------------------ damaged files

def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    w = torch.arange(6.0).view(2, 3)
    checkpoints.save_checkpoint(path, dict(step=3, config=dict(depth=2)), raw={"w": w, "b": torch.ones(1)})
    whole, meta = path.read_bytes(), checkpoints.verify(path)
    found = 0
    for i in range(len(whole)):
        for flip in (0x01, 0x20, 0xff):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1:])
            try:
                assert checkpoints.verify(path) == meta
                into = dict(w=torch.zeros(2, 3), b=torch.zeros(1))
                checkpoints.load_into(path, raw=into)
                assert torch.equal(into["w"], w) and into["b"] == 1  # a flip that changes nothing, as of a space to a tab
            except UserError:
                found += 1
    assert found > 2.9 * len(whole)


@pytest.mark.parametrize("damage", ["flip", pytest.param("cut", marks=pytest.mark.slow), "zero"])
def test_a_damaged_state_is_passed_over(server, flags, whole, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "000-DiT-T-4")
    newest, before = sorted((tmp_path / "000-DiT-T-4" / "checkpoints").glob("*.state.safetensors"))[::-1]
    content = bytearray(newest.read_bytes())
    content[-1000] ^= 4
    newest.write_bytes({"flip": content, "cut": content[:-500], "zero": b""}[damage])
    text = server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    warning = f"warning: {newest}: " + ("damaged, its checksum" if damage == "flip" else "not a whole safetensors file")
    assert warning in text and f"goes on at step {STEPS - 2}" in text
    assert_same(tmp_path / "000-DiT-T-4", whole)
    if damage == "zero":
        for path in (newest, before):
            path.write_bytes(b"")
        assert "not one of its states to go on from is whole; give --resume none" in server(
            "train", *flags, "--results-dir", tmp_path, output=tmp_path / "out2", expect=2)


def test_states_of_the_first_version_are_read(server, flags, whole, tmp_path):
    """They had no checksum, no count of skipped steps, and were called last.safetensors."""
    shutil.copytree(whole, tmp_path / "000-DiT-T-4")
    folder = tmp_path / "000-DiT-T-4" / "checkpoints"
    newest, before = sorted(folder.glob("*.state.safetensors"))[::-1]
    meta = {k: v for k, v in checkpoints.read_metadata(before).items() if k not in ("sha256", "skipped")} | {"version": 1}
    save_file(load_file(before), folder / "last.safetensors", metadata={"mosaicdit": json.dumps(meta)})
    newest.unlink()
    before.unlink()
    assert f"goes on at step {STEPS - 2}" in server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    assert_same(tmp_path / "000-DiT-T-4", whole)


def test_loading_holds_no_second_copy(tmp_path):
    """256 MB are read into tensors that are there already; the process's own memory must not grow by as much as a tenth."""
    code = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
import torch\nfrom training import checkpoint as checkpoints
def own(): return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
path = {str(tmp_path / "a.safetensors")!r}
tensors = {{str(i): torch.full((4 * 2 ** 20,), float(i)) for i in range(16)}}
checkpoints.save_checkpoint(path, {{}}, raw=tensors)
for t in tensors.values(): t.zero_()
before, most, going = own(), [0], True
def watch():
    while going:
        most[0] = max(most[0], own())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
checkpoints.verify(path); checkpoints.load_into(path, raw=tensors)
going = False; thread.join()
assert all((t == float(i)).all() for i, t in tensors.items())
print(most[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 25.6, done.stdout


# --------------------------------------------------------------------------------------- disks, numbers, folders

def test_a_full_disk_ends_the_run_and_leaves_the_state_before(flags, server, whole, tmp_path):
    run = tmp_path / "000-DiT-T-4" / "checkpoints"
    pid = server.start("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    until(lambda: len(list(run.glob("*.state.safetensors"))) > 1)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    states = sorted(run.glob("*.state.*"))
    limit = states[-1].stat().st_size - 1000  # the weights still fit, the state does not
    done = script("train.py", *flags, "--results-dir", tmp_path, expect=2, env={"OMP_NUM_THREADS": "1"},
                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert ".state.safetensors: " in error_line(done) and "too large" in error_line(done).lower()
    assert sorted(run.glob("*.state.*")) == states and not list(run.glob(".*"))
    assert checkpoints.verify(states[-1])["step"] == int(states[-1].name[:7])
    server("train", *flags, "--results-dir", tmp_path, output=tmp_path / "out")
    assert_same(tmp_path / "000-DiT-T-4", whole)


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounting a small disk needs root on Linux")
def test_a_disk_that_is_really_full(flags, server, tmp_path):
    """A tmpfs with room for the run's beginning only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", disk], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        text = server("train", *flags, "--results-dir", disk, output=tmp_path / "out", expect=2)
        assert text.count("train.py: error: ") == 1 and "safetensors: " in text and "No space left" in text
        states = sorted(disk.glob("000-*/checkpoints/*.state.*"))
        assert states and checkpoints.verify(states[-1])["step"] == int(states[-1].name[:7])
        assert not list(disk.glob("000-*/checkpoints/.*"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_bad_volume_is_named_and_stops_the_run_or_is_skipped(server, flags, data, tmp_path):
    """One volume's latents hold a NaN; the batch is one volume, so that the steps without it are sound."""
    shutil.copytree(data, tmp_path / "d")
    cache = next((tmp_path / "d").glob("latents-*.safetensors"))
    with safe_open(cache, "pt") as f:
        moments, metadata = f.get_tensor("moments"), f.metadata()
    moments[1, 0, 0, 0] = float("nan")
    save_file({"moments": moments}, cache, metadata=metadata)
    ids = [v["id"] for v in json.loads((tmp_path / "d" / "manifest.json").read_text())["volumes"] if v["split"] == "train"]
    one = (*flags, "--data-path", tmp_path / "d", "--global-batch-size", 1, "--ckpt-every", 1, "--log-every", 1, "--results-dir")
    text = server("train", *one, tmp_path / "stop", output=tmp_path / "out", expect=2)
    bad = int(re.search(rf"--lr 0.001: loss nan at step (\d+), .* on the volumes {ids[1]}; .*--skip-nonfinite", text)[1])
    assert max(tmp_path.glob("stop/*/checkpoints/*.state.*"), default=Path("0000000.")).name[:7] == f"{bad - 1:07d}"
    later = server("train", *one, tmp_path / "late", "--log-every", 10, "--ckpt-every", 99, output=tmp_path / "out1", expect=2)
    assert f"loss nan at step {bad}, " in later and not list(tmp_path.glob("late/*/checkpoints/*"))  # heard of at the next line of the log
    server("train", *one, tmp_path / "skip", "--skip-nonfinite", output=tmp_path / "out2")
    log = [json.loads(line) for line in (tmp_path / "skip" / "000-DiT-T-4" / "log.jsonl").read_text().splitlines()]
    assert len(log) == STEPS and log[bad - 1]["loss"] is None and log[bad - 1]["skipped"] == 1
    skipped = [e["step"] for e in log if e["loss"] is None]
    assert log[-1]["skipped"] == len(skipped) == (tmp_path / "out2").read_text().count(f"on the volumes {ids[1]}")
    assert 2 <= len(skipped) < STEPS
    saved = load_file(tmp_path / "skip" / "000-DiT-T-4" / "checkpoints" / f"{STEPS:07d}.state.safetensors")
    assert all(t.isfinite().all() for t in saved.values())
    before, after = (load_file(tmp_path / "skip" / "000-DiT-T-4" / "checkpoints" / f"{s:07d}.safetensors") for s in (bad - 1, bad) if s) \
        if bad > 1 else ({}, {})
    assert all(torch.equal(before[k], after[k]) for k in before)  # a skipped step changes nothing
    pid = server.start("train", *one, tmp_path / "again", "--skip-nonfinite", output=tmp_path / "out3")
    until(lambda: len(list(tmp_path.glob("again/*/checkpoints/*"))) > 8)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    server("train", *one, tmp_path / "again", "--skip-nonfinite", output=tmp_path / "out3")
    assert_same(tmp_path / "again" / "000-DiT-T-4", tmp_path / "skip" / "000-DiT-T-4")
    save_file({"moments": torch.full_like(moments, float("nan"))}, cache, metadata=metadata)
    text = server("train", *one, tmp_path / "all", "--skip-nonfinite", output=tmp_path / "out4", expect=2)
    assert "loss nan at step 20, " in text and "(20 steps in a row were skipped)" in text


def test_two_jobs_in_the_same_second(server, flags, whole, tmp_path):
    pids = [server.start("train", *flags, "--results-dir", tmp_path, output=tmp_path / f"out{i}") for i in range(2)]
    assert [server.wait(p) for p in pids] == [0, 0]
    assert sorted(p.name for p in tmp_path.glob("[0-9.]*")) == ["000-DiT-T-4", "001-DiT-T-4"]
    for i in range(2):
        assert_same(tmp_path / f"00{i}-DiT-T-4", whole)


def test_a_requeued_job_waits_for_its_own_last_processes(tmp_path, monkeypatch):
    """Another job does not: it begins a run of its own."""
    args = SimpleNamespace(model="DiT-T/4", results_dir=tmp_path, resume="auto")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    last = runs.Run.new(args)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert runs.Run.to_resume(args) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    threading.Timer(1.0, last._lock.close).start()
    began = time.monotonic()
    assert runs.Run.to_resume(args).folder == last.folder and time.monotonic() - began > 0.9


# ------------------------------------------------------------------------------------------------------ many processes

def together(server, n, *argv, output, port):
    """Runs train.py as n processes, as torchrun would start them."""
    pids = [server.start("train", *argv, output=f"{output}{r}", env=dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n),
                                                                         MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))) for r in range(n)]
    codes = [server.wait(p) for p in pids]
    assert codes == [0] * n, [Path(f"{output}{r}").read_text() for r in range(n)]


def losses(run):
    return torch.tensor([[e["loss"], e["mse"], e["vb"]] for e in map(json.loads, (run / "log.jsonl").read_text().splitlines())],
                        dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 4])
def test_processes_do_the_same_training(server, flags, whole, tmp_path, n):
    together(server, n, *flags, "--results-dir", tmp_path, output=tmp_path / "out", port=slurm_cluster.free_ports())
    run = tmp_path / "000-DiT-T-4"
    assert [p.name for p in tmp_path.glob("0*")] == [run.name]
    assert ((losses(run) - losses(whole)).abs() <= 1e-6 * losses(whole).abs()).all()
    ours, theirs = (load_file(r / "checkpoints" / f"{STEPS:07d}.safetensors") for r in (run, whole))
    assert max((ours[k] - theirs[k]).abs().max() for k in theirs) <= 1e-5
    assert "MB reduced a step" in (tmp_path / "out0").read_text() and (tmp_path / "out1").read_text() == ""


def test_accumulation_and_an_interruption_under_two_processes(server, flags, whole, tmp_path):
    port = slurm_cluster.free_ports()
    for name, steps in (("whole", (STEPS,)), ("resumed", (9, STEPS))):
        for last in steps:
            together(server, 2, *flags, "--accum", 2, "--max-steps", last, "--results-dir", tmp_path / name, output=tmp_path / "out",
                     port=port)
    ours, theirs = (tmp_path / name / "000-DiT-T-4" for name in ("resumed", "whole"))
    assert contents(ours)["log.jsonl"] == contents(theirs)["log.jsonl"]
    name = f"checkpoints/{STEPS:07d}.state.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert ((losses(ours) - losses(whole)).abs() <= 1e-6 * losses(whole).abs()).all()


def torchrun(n, name, *argv):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", ROOT / name,
                             *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})


def test_torchrun_signals_and_a_dying_process(server, flags, whole, tmp_path):
    """SIGTERM to torchrun saves; one process killed ends the job, with a line of the other's; then all goes on."""
    run = tmp_path / "000-DiT-T-4"
    long = (*flags, "--max-steps", 100000, "--results-dir", tmp_path)
    for kill in ("torchrun", "process 1"):
        job = torchrun(2, "train.py", *long)
        had = len(list(run.glob("checkpoints/*[0-9].safetensors")))
        until(lambda had=had: len(list(run.glob("checkpoints/*[0-9].safetensors"))) > had + 1, 120)
        if kill == "torchrun":
            job.send_signal(signal.SIGTERM)
        else:
            workers = [int(p) for p in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
            os.kill(max(workers), signal.SIGKILL)
        killed_at = time.monotonic()
        text = job.communicate(timeout=60)[0]
        assert job.returncode != 0 and time.monotonic() - killed_at < 60
        if kill == "torchrun":
            stopped = int(re.search(r"stopped by SIGTERM after step (\d+)/", text)[1])
            assert checkpoints.verify(run / "checkpoints" / f"{stopped:07d}.state.safetensors")["step"] == stopped
        else:
            assert f"goes on at step {stopped}" in text
            assert "error: process 0 of 2: lost the others" in text and "exitcode  : -9" in text and 'train.py", line' not in text


def test_only_what_trains_is_reduced(monkeypatch):
    """Of DiT-XL/2: 6.6 MB a step, in one sum, and not the 2.7 GB of the model."""
    import torch.distributed as dist

    import models
    from utils import distributed
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, num_classes=1000)
    trained = finetuning.set_trainable(model, "difffit").values()
    for p in trained:
        p.grad = torch.zeros_like(p)
    summed = []
    monkeypatch.setattr(dist, "all_reduce", lambda t: summed.append(t.numel()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.sum_gradients(trained)
    assert summed == [489632 + 1153152] and 4 * sum(summed) < 7e6


# ------------------------------------------------------------------------------------------------- samples, shards

@pytest.fixture(scope="module")
def sampling(whole):
    return ("--ckpt", whole, "--num-samples", 5, "--batch-size", 2, "--cfg-scale", 2, "--sampler", "ddim", "--num-sampling-steps", 3,
            "--precision", "fp32", "--device", "cpu", "--output")


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_processes_and_shards_draw_the_same_samples_to_the_bit(server, sampling, tmp_path):
    server("sample", *sampling, tmp_path / "one", output=tmp_path / "out")
    one = tree(tmp_path / "one")
    assert len(one) == 11 and "samples.json" in one
    job = torchrun(2, "sample.py", *sampling, tmp_path / "two")
    text = job.communicate(timeout=120)[0]
    assert job.returncode == 0, text
    assert tree(tmp_path / "two") == one and "process 1: " in text
    pids = [server.start("sample", *sampling, tmp_path / "shards", "--shard", f"{i}/3", output=tmp_path / "out3") for i in (1, 2, 3)]
    assert [server.wait(p) for p in pids] == [0, 0, 0] and tree(tmp_path / "shards") == one
    (tmp_path / "shards" / "nifti" / "000003.nii.gz").unlink()  # a task that was killed in the middle of a batch
    (tmp_path / "shards" / "mosaics" / "000003.png").unlink()
    assert "nothing left to do" in server("sample", *sampling, tmp_path / "shards", "--shard", "1/3", output=tmp_path / "out4")
    server("sample", *sampling, tmp_path / "shards", "--shard", "2/3", output=tmp_path / "out5")
    assert tree(tmp_path / "shards") == one
    text = server("sample", *sampling, tmp_path / "x", "--shard", "0/3", output=tmp_path / "out6", expect=2)
    assert "must be i/n with 1 <= i <= n" in text


def test_shards_preprocess_what_one_job_does(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "in")
    (tmp_path / "in" / "sub-09_T1w.nii.gz").write_bytes(b"no scan")
    flags = ("--input", tmp_path / "in", "--size", 16, "--split", "3:2", "--workers", 1)
    script("preprocess.py", *flags, "--output", tmp_path / "one", expect=1)
    shards = ("preprocess.py", *flags, "--output", tmp_path / "many")
    assert "shard 3/3: 2 scans done, 0 skipped" in script(*shards, "--shard", "3/3").stdout
    script(*shards, "--shard", "1/3")
    assert not (tmp_path / "many").exists()
    assert "was made with other flags" in error_line(script(*shards, "--shard", "1/3", "--seed", 5, expect=2))
    last = script(*shards, "--shard", "2/3", expect=1)
    assert "skipped: " in last.stderr and "sub-09" in last.stderr
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "many", "one"]
    assert "exists already" in error_line(script(*shards, "--shard", "2/3", expect=2))
