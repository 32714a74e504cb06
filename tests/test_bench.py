"""bench.py as a user runs it, at sizes too small to say anything about speed."""
import functools
import re
import sys

import numpy as np
import pytest
import torch
from example_scans import head
from helpers import AFFINE, brain, error_line, save_nifti, script
from small_meshnets import brightness_network

import bench
from benchmarks import attention_cost, measure, sampling_cost

SMALL = ("--model", "DiT-T/4", "--steps", 1, "--device", "cpu")
TINY = (*SMALL, "--vae", "tiny")


def table_rows(text):
    """{first word: other words} of the lines that belong to a table of both ways."""
    names = ("baseline  ", "optimized  ", "foreground  ")
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()
            if line.startswith(names)}


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs bench.py without new processes, which take seconds to start; test_train starts some."""
    monkeypatch.setattr(measure, "alone", lambda function, *args: function(*args))

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, args)])
        bench.main()
        return capsys.readouterr().out
    return run


def test_metrics():
    done = script("bench.py", "metrics", "--size", 16, "--volumes", 3, "--mmd-volumes", 2,
                  "--report-volumes", 5, "--repeats", 2, "--device", "cpu")
    assert re.search(r"baseline: SciPy, from the formula +[\d.]+\n"
                     r" +optimized:.*3 pairs +[\d.]+ +[\d.]+ times faster", done.stdout)
    difference = re.search(r"difference ([\d.e+-]+)", done.stdout)[1]
    assert float(difference) < 1e-5  # both ways agree
    assert "10 inner products" in done.stdout
    report = done.stdout.split("Report of 5 against 5, 5 trained on")[1]
    parts = dict(re.findall(r"^  (\S.*?) +([\d.]+)(?:;.*)?$", report, re.MULTILINE))
    total = float(parts.pop("together"))
    assert set(parts) >= {"MS-SSIM", "MMD", "smoothness", "histogram", "memorization"}
    assert abs(sum(map(float, parts.values())) - total) < 0.06 * len(parts)


def test_train():
    done = script("bench.py", "train", *TINY, "--image-size", 64, "--turns", 1,
                  "--batch-size", 2, "--accum", 2, "--grad-checkpoint", 2)
    assert "DiT-T/4, 64 x 64, 4 tokens, batch 2; 1 turns of 1 steps" in done.stdout
    rows = table_rows(done.stdout)
    for name in ("baseline", "optimized", "foreground"):
        assert len(rows[name]) == 7
        assert all(float(value) >= 0 for value in rows[name] if value != "%")
    compared = re.findall(r"(\w+ / \w+): ([\d.]+) times faster, ([\d.]+) of the memory",
                          done.stdout)
    assert [ways for ways, _, _ in compared] == [
        "baseline / optimized", "optimized / foreground", "baseline / foreground"]
    assert all(float(times) > 0 and 0.5 < float(memory) < 2 for _, times, memory in compared)
    assert "foreground: 3 of the 4 tokens" in done.stdout
    assert "optimized: the first step took" in done.stdout


def test_scaling(run_here, tmp_path):
    run_here("scaling", *SMALL, "--image-sizes", 32, 64, "--batch-sizes", 1, 2,
             "--output", tmp_path / "s")
    table = (tmp_path / "s" / "scaling.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table[2:]]
    assert rows == [["32 x 32", "1, all", "1"], ["32 x 32", "1, foreground", "1"],
                    ["64 x 64", "4, all", "1"], ["64 x 64", "3, foreground", "1"],
                    ["32 x 32", "1, all", "2"], ["32 x 32", "1, foreground", "2"]]
    assert (tmp_path / "s" / "scaling.png").stat().st_size > 5000


def test_sample(run_here):
    output = run_here("sample", *TINY, "--image-size", 32, "--turns", 1, "--batch-size", 2)
    rows = table_rows(output)
    assert len(rows["optimized"]) == len(rows["baseline"]) == len(rows["foreground"]) == 6
    assert len(re.findall(r"\w+ / \w+, times( +[\d.]+){3}\n", output)) == 3
    faster = float(re.search(r"dpm\+\+ 25 is ([\d.]+) times faster", output)[1])
    assert 5 < faster < 10  # 10, if decoding took no time


ROW_OF_ATTENTION = re.compile(
    r"^(PyTorch's choice|cpu_attention.py) +([\d.]+) +([\d.]+) +\S+ and \S+ +([\d.]+) +([\d.]+)$",
    re.MULTILINE)


def attention(run_here, *flags):
    return run_here("attention", "--model", "DiT-T/4", "--tokens", 33, 20, "--batch-size", 2,
                    "--repeats", 2, "--device", "cpu", *flags)


@pytest.mark.parametrize("fast, used", [(True, "use"), (False, "do not use")])
def test_attention(run_here, monkeypatch, fast, used):
    monkeypatch.setattr(attention_cost.cpu_attention, "is_faster", lambda: fast)
    monkeypatch.setattr(attention_cost.cpu_attention, "MIN_TOKENS", 21)
    out = attention(run_here, "--precision", "bf16")
    assert "attention of 2 x 6 heads of 64, 33 tokens, bf16" in out
    rows = ROW_OF_ATTENTION.findall(out)
    assert [row[0] for row in rows] == [
        "PyTorch's choice", "cpu_attention.py", "PyTorch's choice"]     # 20 tokens are too few
    for _, forward, backward, result, gradient in rows:
        assert float(forward) > 0 and float(backward) > 0
        assert 1e-3 < float(result) <= float(gradient) < 0.2
    compared = r"cpu_attention.py: [\d.]+ and [\d.]+ times faster; train.py and sample.py (.*) it"
    assert re.findall(compared, out) == [used]


def test_attention_that_is_pytorchs_is_not_compared(run_here, monkeypatch):
    monkeypatch.setattr(attention_cost.cpu_attention, "MIN_TOKENS", 1)
    out = attention(run_here, "--precision", "fp32")
    rows = ROW_OF_ATTENTION.findall(out)
    assert [row[0] for row in rows] == 2 * ["PyTorch's choice"] and "faster" not in out
    assert all(row[3:] == ("0.0000", "0.0000") for row in rows)


def test_a_mean_of_keys_makes_pytorchs_gradient_less_exact(run_here):
    errors = [float(ROW_OF_ATTENTION.findall(attention(
        run_here, "--precision", "bf16", "--mean", mean))[0][4]) for mean in (0, 4)]
    assert 3 * errors[0] < errors[1]


def kernels_with(kernel):
    return lambda q: {"PyTorch's choice": torch.nn.functional.scaled_dot_product_attention,
                      "cuDNN": kernel}


def test_attention_that_a_device_does_not_have(monkeypatch):
    def unavailable(q, k, v):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(attention_cost, "kernels", kernels_with(unavailable))
    costs = attention_cost.measure_kernels((1, 2, 9, 4), "fp32", "cpu", repeats=1, mean=0)
    assert costs["cuDNN"] is None and costs["PyTorch's choice"].result_error < 1e-6
    lines = attention_cost.report((1, 2, 9, 4), "fp32", costs)
    assert lines[-1].split(maxsplit=1) == ["cuDNN", "not available for these inputs"]


def test_other_errors_of_attention_are_not_hidden(monkeypatch):
    def wrong(q, k, v):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(attention_cost, "kernels", kernels_with(wrong))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        attention_cost.measure_kernels((1, 2, 9, 4), "fp32", "cpu", repeats=1, mean=0)


def test_one_kernel_by_name():
    """A CPU has FlashAttention alone; asked for cuDNN's, PyTorch says what is looked for."""
    inputs = attention_cost._random_inputs((1, 2, 9, 4), torch.float32, "cpu", 0)
    q, k, v, _ = inputs
    flash = functools.partial(attention_cost._with_backend,
                              attention_cost.GPU_KERNELS["FlashAttention 2"])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(flash(q, k, v), expected, atol=1e-6)
    cudnn = functools.partial(attention_cost._with_backend, attention_cost.GPU_KERNELS["cuDNN"])
    assert attention_cost._one_head_if_available(flash, inputs) is not None
    assert attention_cost._one_head_if_available(cudnn, inputs) is None


def test_rates_of_attention():
    """100 tokens, 2 heads of 50: a product has 2 * 100 * 100 * 50 * 2 = 2 million operations."""
    costs = {"PyTorch's choice": attention_cost.AttentionCost(1e-6, 2e-6, 0.25, 0.5),
             "cpu_attention.py": attention_cost.AttentionCost(0.5e-6, 0.5e-6, 0.25, 0.5)}
    lines = attention_cost.report((1, 2, 100, 50), "bf16", costs)
    assert lines[2].endswith("4 and 5   0.2500       0.5000")
    assert lines[3].endswith("8 and 20   0.2500       0.5000")
    assert lines[4].startswith("cpu_attention.py: 2.00 and 4.00 times faster; ")


@pytest.mark.parametrize("name, way", [
    ("plain", "baseline"), ("ours", "optimized"), ("optimized", "optimized")])
def test_ways_have_former_names(name, way, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "sample", "--only", name])
    args = bench.parse_flags()
    assert list(bench.selected(sampling_cost.WAYS, args.only)) == [way]


def test_samplers(finetuned, data, tmp_path):
    flags = ("samplers", "--ckpt", finetuned / "checkpoints" / "0000004.safetensors",
             "--output", tmp_path / "s")
    done = script("bench.py", *flags, "--real", data, "--num-samples", 2, "--precision", "fp32",
                  "--device", "cpu")
    lines = [line for line in done.stdout.splitlines() if re.match(r"\| \S+ \d+ \|", line)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = {name: [float(number) for number in numbers] for name, *numbers in cells}
    assert list(rows) == [
        "ddpm 250", "ddim 250", "dpm++ 50", "dpm++ 25", "unipc 50", "unipc 25"]
    assert all(len(numbers) == 5 for numbers in rows.values())
    faster = {name: numbers[1] for name, numbers in rows.items()}
    difference = {name: numbers[2] for name, numbers in rows.items()}
    # dpm++ takes the path of ddim in fewer steps, ddpm takes another one
    assert difference["ddim 250"] == 0 < difference["dpm++ 50"] < difference["ddpm 250"]
    assert 0 < difference["unipc 25"] < difference["ddpm 250"]
    assert faster["ddpm 250"] == 1 < faster["dpm++ 25"]
    assert (tmp_path / "s" / "samplers.png").stat().st_size > 20000
    assert "exists already" in error_line(script("bench.py", *flags, expect=2))


def test_preprocess(tmp_path):
    for i in range(2):
        save_nifti(tmp_path / f"{i}.nii.gz", brain((30, 34, 30), i), AFFINE)
    done = script("bench.py", "preprocess", "--input", tmp_path, "--scans", 3,
                  "--plain-scans", 2, "--turns", 1, "--workers", 1)
    match = re.search(r"results: ([\d.]+) % of the pixels differ, by (\d+) of 255", done.stdout)
    different, most = match.groups()
    assert float(different) < 0.1 and int(most) <= 1  # the baseline is another implementation
    assert np.isfinite(float(re.search(r"optimized +([-\d.]+) ms/scan", done.stdout)[1]))


def test_stages_of_a_recipe(tmp_path):
    pytest.importorskip("SimpleITK")
    brightness_network(tmp_path / "weights" / "meshnet" / "mindgrab")
    large = AFFINE @ np.diag([2, 2, 2, 1])       # a brain of a child's size
    save_nifti(tmp_path / "in" / "a.nii.gz", head()[0], large, np.float32)
    done = script("bench.py", "preprocess", "--recipe", "native", "--input", tmp_path / "in",
                  "--scans", 2, cwd=tmp_path)
    assert "--recipe native: --n4 --skull-strip --register none --crop brain" in done.stdout
    rows = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == ["read", "N4", "skull strip", "resample", "write", "all"]
    medians = [float(median) for _, median, _ in rows]
    assert abs(sum(medians[:-1]) - medians[-1]) < 0.1 + 0.2 * medians[-1]
    assert all(float(median) <= float(longest) for _, median, longest in rows)


def test_refusals(tmp_path):
    for flags, words in (
            (("train", "--image-size", 100), "--image-size 100: must be a multiple of 16"),
            (("train", "--steps", 0), "--steps 0: must be at least 1"),
            (("train", "--foreground", 1.5), "--foreground 1.5: a share of the tokens"),
            (("sample", "--memory-limit", 40, "--device", "cpu"), "--memory-limit: only on a GPU"),
            (("scaling", "--batch-sizes", 3, "--accum", 2), "--accum must divide it"),
            (("scaling", "--grad-checkpoint", -1), "--grad-checkpoint -1: must be at least 0"),
            (("attention", "--tokens", 5, 1), "--tokens 1: must be at least 2"),
            (("metrics", "--size", 8), "--size 8: must be at least 16"),
            (("preprocess", "--recipe", "paper"), "--recipe: needs scans of heads; name their"),
            (("preprocess", "--input", tmp_path), f"--input {tmp_path}: holds no .nii.gz")):
        assert words in error_line(script("bench.py", *flags, expect=2))
