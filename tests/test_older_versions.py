"""Runs, checkpoints and samples of format version 2, made by the code before the house.

tests/golden/v2/make.py made them and says how. Their model is a DiT of width 32 that no zoo holds,
so each test adds it, in a process of its own.
"""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT
from safetensors.torch import load_file

from mri import manifest, mosaic_files
from training import checkpoint, pretrained

V2 = GOLDEN / "v2"
RUN = "results/000-DiT-N-4"
CKPT = f"{RUN}/checkpoints/0000004.safetensors"
RUNNER = """
import runpy, sys
import models
models.SIZES["N"] = (32, 2, 2)
models.DiT_models["DiT-N/4"] = models.partial(models._build, "DiT-N/4")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TUNING = ("--data-path", "data", "--vae", "vae", "--model", "DiT-N/4", "--num-classes", 2,
          "--precision", "fp32", "--global-batch-size", 2, "--lr", 1e-2, "--ema-decay", 0.5,
          "--log-every", 1, "--device", "cpu", "--ckpt", "base.safetensors", "--gamma-blocks", 1,
          "--max-steps", 4, "--ckpt-every", 2, "--results-dir", "results")


@pytest.fixture
def folder(tmp_path):
    """A copy of the folders, as a user has them who updates the toolkit."""
    return shutil.copytree(V2, tmp_path / "v2")


def run(folder, script, *args):
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / script), *map(str, args)], cwd=folder, text=True,
        capture_output=True, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same_tensors(a, b):
    a, b = load_file(a), load_file(b)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k], b[k], rtol=1e-5, atol=1e-6) for k in a)


def test_an_interrupted_run_resumes_and_ends_as_it_did_then(folder):
    run_folder = folder / RUN
    for name in ("0000004.state.safetensors", "0000004.safetensors"):
        (run_folder / "checkpoints" / name).unlink()
    log = (run_folder / "log.jsonl").read_text().splitlines()
    (run_folder / "log.jsonl").write_text("".join(line + "\n" for line in log[:3]))
    text = run(folder, "train.py", *TUNING)
    assert "the EMA continues without warm-up, as this run was started" in text
    assert "25.0% of it the initial weights" in text  # 0.5 ** 2
    assert "resumes at step 2" in text and [p.name for p in (folder / "results").iterdir()] == [
        "000-DiT-N-4"]
    for name in ("0000004.state.safetensors", "0000004.safetensors"):
        ours = run_folder / "checkpoints" / name
        assert_same_tensors(ours, V2 / RUN / "checkpoints" / name)
        assert checkpoint.verify(ours)["step"] == 4
    entries = [[json.loads(line) for line in path.read_text().splitlines()]
               for path in (run_folder / "log.jsonl", V2 / RUN / "log.jsonl")]
    for ours, theirs in zip(*entries, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_cached_latents_are_used(folder):
    cache = folder / "data" / "latents-vae.safetensors"
    before = cache.stat().st_mtime_ns
    assert "has its 4 steps already" in run(folder, "train.py", *TUNING)
    assert cache.stat().st_mtime_ns == before


def test_a_checkpoint_rebuilds_its_model_and_samples_as_it_did(folder):
    model, metadata = pretrained.restore_model(folder / CKPT, base=folder / "base.safetensors")
    assert metadata["version"] == 2 and metadata["step"] == 4 and model.blocks[0].gamma1 is not None
    run(folder, "sample.py", "--ckpt", CKPT, "--base", "base.safetensors", "--vae", "vae",
        "--num-samples", 2, "--sampler", "ddim", "--num-sampling-steps", 3, "--precision", "fp32",
        "--device", "cpu", "--output", "again")
    header, _ = manifest.read_manifest(folder / "again")
    assert header == manifest.read_manifest(V2 / "samples")[0]
    for i in range(2):
        ours, theirs = (mosaic_files.read_mosaic(
            mosaic_files.mosaic_path(root, f"{i:06d}"), header).astype(int)
            for root in (folder / "again", V2 / "samples"))
        assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 1


def test_a_samples_folder_is_continued(folder):
    args = ("--ckpt", CKPT, "--base", "base.safetensors", "--vae", "vae", "--sampler", "ddim",
            "--num-sampling-steps", 3, "--precision", "fp32", "--device", "cpu", "--output",
            "samples")
    assert "already has" in run(folder, "sample.py", *args, "--num-samples", 2)
    before = (folder / "samples" / "mosaics" / "000001.png").read_bytes()
    run(folder, "sample.py", *args, "--num-samples", 3)
    assert len(list((folder / "samples" / "nifti").iterdir())) == 3
    assert (folder / "samples" / "mosaics" / "000001.png").read_bytes() == before


def test_an_old_run_is_known_by_its_checksums_wherever_it_is(folder):
    """Its args.json has paths alone; the checksums are in its newest state."""
    (folder / "data").rename(folder / "elsewhere")
    moved = [{"data": folder / "elsewhere", "vae": "./vae/"}.get(a, a) for a in TUNING]
    text = run(folder, "train.py", *moved, "--max-steps", 5)
    assert "resumes at step 4" in text
    assert [path.name for path in (folder / "results").iterdir()] == ["000-DiT-N-4"]
