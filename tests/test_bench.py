"""bench.py as a user runs it, at a size where it says nothing about speed."""
import re

import numpy as np
import pytest
from conftest import AFFINE, brain, error_line, save_nifti, script


def test_metrics():
    done = script("bench.py", "metrics", "--size", 16, "--volumes", 3, "--mmd-volumes", 2, "--repeats", 2, "--device", "cpu")
    assert re.search(r"SciPy, from the formula +[\d.]+\n.*3 pairs +[\d.]+ +[\d.]+ times faster", done.stdout)
    assert float(re.search(r"difference ([\d.e+-]+)", done.stdout)[1]) < 1e-5  # the two ways agree
    assert "10 inner products" in done.stdout
    script("bench.py", "metrics", "--size", 8, expect=2)


TINY = ("--model", "DiT-T/4", "--vae", "tiny", "--steps", 1, "--device", "cpu")


def test_train():
    done = script("bench.py", "train", *TINY, "--image-size", 64, "--turns", 1, "--batch-size", 2, "--accum", 2, "--grad-checkpoint", 2)
    assert "DiT-T/4, 64 x 64, 4 tokens, batch 2; 1 turns of 1 steps" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(("plain", "ours", "ratio"))}
    seconds, images, work, rate, part = (float(v) for v in rows["ours"][:5])
    assert images == pytest.approx(2 / seconds, rel=0.05) and part == pytest.approx(100 * work / rate, abs=15)
    # 4 blocks of width 384 on 4 tokens: twice 24 T w^2 of linear layers, 3.5 times 4 T^2 w of attention, 2 images
    assert work == pytest.approx(2 * 4 * (48 * 4 * 384 ** 2 + 14 * 16 * 384) / seconds / 1e12, abs=2e-3)
    assert float(rows["ratio"][0]) == pytest.approx(float(rows["plain"][0]) / seconds, rel=0.1)


def test_scaling(tmp_path):
    script("bench.py", "scaling", *TINY, "--image-sizes", 32, 64, "--batch-sizes", 1, 2, "--output", tmp_path / "s")
    table = (tmp_path / "s" / "scaling.md").read_text().splitlines()
    rows = [[c.strip() for c in line.split("|")[1:4]] for line in table[2:]]
    assert rows == [["32 x 32", "1", "1"], ["64 x 64", "4", "1"], ["32 x 32", "1", "2"]]
    assert (tmp_path / "s" / "scaling.png").stat().st_size > 5000


def test_sample():
    done = script("bench.py", "sample", *TINY, "--image-size", 32, "--turns", 1, "--batch-size", 2)
    step, decode, _, long, _, short = (float(v) for v in re.search(r"ours +(.*)", done.stdout)[1].split())
    assert long == pytest.approx((250 * step + decode) / 2, rel=0.2, abs=0.1) and "of ours, dpm++ 25 against ddpm 250: " in done.stdout


def test_samplers(finetuned, data, tmp_path):
    ckpt = finetuned / "checkpoints" / "0000004.safetensors"
    out = script("bench.py", "samplers", "--ckpt", ckpt, "--real", data, "--num-samples", 2, "--precision", "fp32", "--device", "cpu",
                 "--output", tmp_path / "s").stdout
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if re.match(r"\| d\S+ \d", line)]
    rows = {name: [float(n) for n in numbers] for name, *numbers in cells}
    assert list(rows) == ["ddpm 250", "ddim 250", "dpm++ 50", "dpm++ 25"]
    assert rows["ddim 250"][2] == 0 < rows["dpm++ 50"][2] < rows["ddpm 250"][2]  # the same path in fewer steps, against another path
    assert rows["dpm++ 25"][1] == pytest.approx(rows["ddpm 250"][0] / rows["dpm++ 25"][0], rel=0.2)
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
