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
import time
from pathlib import Path

import forked
import pytest
import torch
from conftest import ROOT, TRAIN, error_line, script
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import checkpoints
from cli import UserError

STEPS = 24


@pytest.fixture(scope="module")
def server():
    server = forked.Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def flags(data, vae_folder, pretrained):
    """A finetuning that saves after every step and logs every third."""
    args = [a if a != "none" else pretrained / "checkpoints" / "0000002.safetensors" for a in TRAIN]
    return ("--data-path", data, "--vae", vae_folder, *args, "--gamma-blocks", 2, "--max-steps", STEPS, "--ckpt-every", 2, "--log-every", 3)


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

def killed(server, flags, whole, tmp_path, kills, seed):
    """Kills training `kills` times, every other time while it writes a checkpoint, and lets it end."""
    rng, during_writing, lost = random.Random(seed), 0, 0
    run = tmp_path / "000-DiT-T-4" / "checkpoints"
    command = (*flags, "--results-dir", tmp_path, "--ckpt-every", 1)
    reached = 0
    for i in range(kills):
        before = max([int(p.name[:7]) for p in run.glob("*.state.safetensors")], default=0)
        assert before >= reached  # what was saved once is never lost
        pid = server.start("train", *command, output=tmp_path / "out")
        if i % 2:
            until(lambda pid=pid: list(run.glob(".*.safetensors")) or not Path(f"/proc/{pid}").exists())
            time.sleep(rng.uniform(0, 0.006))
        else:
            time.sleep(rng.uniform(0, 0.25) if i < 3 else rng.uniform(0, 2.5))
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL, (tmp_path / "out").read_text()
        during_writing += bool(list(run.glob(".*.safetensors")))
        reached = before
    text = server("train", *command, output=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name[0] == "0"] == ["000-DiT-T-4"]
    ours, theirs = contents(run.parent), contents(whole)
    assert [k for k in theirs if ours[k] != theirs[k]] == [] and not list(run.glob(".*"))
    assert "damaged" not in text and "not a whole" not in text
    print(f"\n{kills} kills, {during_writing} of them while a checkpoint was written; lost: {lost}")
    return during_writing


def test_killed_three_times(server, flags, whole, tmp_path):
    killed(server, flags, whole, tmp_path, 3, seed=0)
