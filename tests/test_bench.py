"""bench.py as a user runs it, at a size where it says nothing about speed."""
import os
import re
import signal

import numpy as np
import pytest
from helpers import AFFINE, brain, error_line, save_nifti, script

import bench
import models
from benchmarks import measure as costs
from utils.errors import UserError


def test_metrics():
    done = script("bench.py", "metrics", "--size", 16, "--volumes", 3, "--mmd-volumes", 2, "--repeats", 2, "--device", "cpu")
    assert re.search(r"SciPy, from the formula +[\d.]+\n.*3 pairs +[\d.]+ +[\d.]+ times faster", done.stdout)
    assert float(re.search(r"difference ([\d.e+-]+)", done.stdout)[1]) < 1e-5  # the two ways agree
    assert "10 inner products" in done.stdout
    script("bench.py", "metrics", "--size", 8, expect=2)


SMALL = ("--model", "DiT-T/4", "--steps", 1, "--device", "cpu")
TINY = (*SMALL, "--vae", "tiny")


def test_train():
    done = script("bench.py", "train", *TINY, "--image-size", 64, "--turns", 1, "--batch-size", 2, "--accum", 2, "--grad-checkpoint", 2)
    assert "DiT-T/4, 64 x 64, 4 tokens, batch 2; 1 turns of 1 steps" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(("plain", "ours", "ratio"))}
    assert all(float(value) >= 0 for name in ("plain", "ours") for value in rows[name] if value != "%")
    assert float(rows["ratio"][0]) > 0 and 0.5 < float(rows["ratio"][1]) < 2 and "our first step" in done.stdout


def test_what_is_counted():
    model = models.DiT_models["DiT-T/4"](input_size=8)  # 4 blocks of width 384
    linear, attention = 4 * 24 * 4 * 384 ** 2, 4 * 4 * 16 * 384
    assert costs.products(model, 4, False) == linear + attention and costs.products(model, 4, True) == 2 * linear + 3.5 * attention
    line = bench.row("ours", dict(times=[0.5, 2.0, 4.0], products=3e12, rate=20e12, peak=1.5), 8).split()
    assert line == ["ours", "2.000", "4.0000", "12.000", "20.000", "60", "%", "1.50"]
    assert costs.merge([dict(times=[1], peak=2, a=3), dict(times=[4], peak=1, a=5)]) == dict(times=[1, 4], peak=2, a=3)
    assert costs.merge([dict(times=[1], peak=2), None]) is None and "out of memory" in bench.row("plain", None, 1)


def _kill_this_process(code):
    os.kill(os.getpid(), code)


def _refuse(words):
    raise UserError(words)


def test_a_process_that_was_killed_ran_out_of_memory():
    assert costs.alone(_kill_this_process, signal.SIGKILL) is None
    with pytest.raises(UserError, match="what is wrong"):
        costs.alone(_refuse, "what is wrong")
    with pytest.raises(UserError, match="ended with code -15"):
        costs.alone(_kill_this_process, signal.SIGTERM)


def test_scaling(tmp_path):
    script("bench.py", "scaling", *SMALL, "--image-sizes", 32, 64, "--batch-sizes", 1, 2, "--output", tmp_path / "s")
    table = (tmp_path / "s" / "scaling.md").read_text().splitlines()
    rows = [[c.strip() for c in line.split("|")[1:4]] for line in table[2:]]
    assert rows == [["32 x 32", "1", "1"], ["64 x 64", "4", "1"], ["32 x 32", "1", "2"]]
    assert (tmp_path / "s" / "scaling.png").stat().st_size > 5000


def test_sample():
    done = script("bench.py", "sample", *TINY, "--image-size", 32, "--turns", 1, "--batch-size", 2)
    assert len(re.search(r"ours +(.*)", done.stdout)[1].split()) == 6
    assert 5 < float(re.search(r"of ours, dpm\+\+ 25 against ddpm 250: ([\d.]+) times", done.stdout)[1]) < 10  # 10, but for the decoding


def test_samplers(finetuned, data, tmp_path):
    ckpt = finetuned / "checkpoints" / "0000004.safetensors"
    out = script("bench.py", "samplers", "--ckpt", ckpt, "--real", data, "--num-samples", 2, "--precision", "fp32", "--device", "cpu",
                 "--output", tmp_path / "s").stdout
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if re.match(r"\| d\S+ \d", line)]
    rows = {name: [float(n) for n in numbers] for name, *numbers in cells}
    assert list(rows) == ["ddpm 250", "ddim 250", "dpm++ 50", "dpm++ 25"]
    assert rows["ddim 250"][2] == 0 < rows["dpm++ 50"][2] < rows["ddpm 250"][2]  # the same path in fewer steps, against another path
    assert rows["ddpm 250"][1] == 1 < rows["dpm++ 25"][1]
    assert (tmp_path / "s" / "samplers.png").stat().st_size > 20000
    again = script("bench.py", "samplers", "--ckpt", ckpt, "--output", tmp_path / "s", expect=2)
    assert "exists already" in error_line(again)


def test_preprocess(tmp_path):
    for i in range(2):
        save_nifti(tmp_path / f"{i}.nii.gz", brain((30, 34, 30), i), AFFINE)
    done = script("bench.py", "preprocess", "--input", tmp_path, "--scans", 3, "--plain-scans", 2, "--turns", 1, "--workers", 1)
    different, most = re.search(r"results: ([\d.]+) % of the pixels differ, by (\d+) of 255", done.stdout).groups()
    assert float(different) < 0.1 and int(most) <= 1  # the plain way is an independent implementation
    assert np.isfinite(float(re.search(r"preprocess.py +([-\d.]+) ms a scan", done.stdout)[1]))


def test_refusals(tmp_path):
    for flags, words in ((("train", "--image-size", 100), "--image-size 100: must be a multiple of 16"),
                         (("train", "--steps", 0), "--steps 0: at least 1"),
                         (("sample", "--memory-limit", 40, "--device", "cpu"), "--memory-limit: only on a GPU"),
                         (("scaling", "--batch-sizes", 3, "--accum", 2), "--accum must divide it"),
                         (("preprocess", "--input", tmp_path), f"--input {tmp_path}: holds no .nii.gz")):
        assert words in error_line(script("bench.py", *flags, expect=2))
