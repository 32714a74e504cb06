"""evaluate.py --ckpt-folder, --features and --utility as a user runs them."""
import json

import numpy as np
import pytest
import torch
from helpers import error_line, script

from metrics import random_features
from metrics.over_training import COLUMNS

RUN = ("--num-samples", 2, "--sampler", "ddim", "--num-sampling-steps", 2, "--device", "cpu",
       "--slices", 1)


@pytest.fixture(scope="module")
def evaluated(finetuned, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("over") / "training"
    flags = ("--ckpt-folder", finetuned, "--real", data, "--train", data, "--output", output)
    return output, flags, script("evaluate.py", *flags, *RUN)


def test_a_run_by_step(evaluated, data):
    output, _, done = evaluated
    rows = [line.split("\t") for line in (output / "over-training.tsv").read_text().splitlines()]
    assert rows[0] == list(COLUMNS)
    assert [row[0] for row in rows[1:]] == ["2", "4"]
    assert sorted(p.name for p in output.iterdir()) == [
        "figures", "over-training.tsv", "report.md", "samples"]
    for step in ("0000002", "0000004"):
        recorded = json.loads((output / "samples" / step / "samples.json").read_text())
        assert recorded["recipe"]["sampler"] == "ddim"
        assert recorded["recipe"]["class_label"] == "cohort" and len(recorded["samples"]) == 2
    assert "step 2, " in done.stdout and "report.md" in done.stdout
    read = [line.split(":")[0] for line in done.stderr.splitlines() if " volumes: " in line]
    assert [read.count(f"{name} volumes") for name in ("real", "train", "synthetic")] == [1, 1, 2]
    assert done.stdout.count(f"--real {data}: ") == done.stdout.count(f"--train {data}: ") == 1


@pytest.mark.slow   # starts sample.py twice more
def test_a_run_is_resumed(evaluated):
    output, flags, _ = evaluated
    before = (output / "over-training.tsv").read_text()
    kept = output / "samples" / "0000002" / "nifti" / "000000.nii.gz"
    written = kept.stat().st_mtime_ns
    (output / "samples" / "0000004" / "nifti" / "000001.nii.gz").unlink()
    script("evaluate.py", *flags, *RUN)
    assert (output / "over-training.tsv").read_text() == before
    assert kept.stat().st_mtime_ns == written
    assert (output / "samples" / "0000004" / "nifti" / "000001.nii.gz").is_file()


@pytest.mark.parametrize("flags, message", [
    (("--train", "data"), "holds no checkpoints/STEP.safetensors"),
    ((), "--train is missing, which --ckpt-folder needs"),
    (("--train", "data", "--synthetic", "x"), "--synthetic has no effect with --ckpt-folder"),
])
def test_a_run_that_cannot_be_evaluated(data, tmp_path, flags, message):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    flags = [data if flag == "data" else flag for flag in flags]
    done = script("evaluate.py", "--ckpt-folder", tmp_path / "run", "--real", data, "--output",
                  tmp_path / "o", *flags, expect=2)
    assert message in error_line(done) and not (tmp_path / "o").exists()


def test_flags_that_need_another(data, tmp_path):
    both = ("--real", data, "--output", tmp_path / "o")
    done = script("evaluate.py", *both, expect=2)
    assert "--synthetic is missing; an evaluation needs --real, --synthetic" in error_line(done)
    done = script("evaluate.py", *both, "--synthetic", data, "--sampler", "ddim", expect=2)
    assert "--sampler has no effect without --ckpt-folder" in error_line(done)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning",
                            "ignore:.*torch.jit.*:DeprecationWarning")
def test_features_and_utility_in_the_report(data, tmp_path):
    network = random_features.RandomNetwork(seed=3)
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(str(tmp_path / "mine.pt"))
    done = script("evaluate.py", "--real", data, "--real-split", "train", "--synthetic", data,
                  "--metrics", "mmd-3d", "histogram", "utility", "--features",
                  tmp_path / "mine.pt", "--utility", "class", "--output", tmp_path / "e",
                  "--bootstrap", 0, "--permutations", 0, "--device", "cpu", expect=2)
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    entries = content["metrics"]
    assert np.isfinite(entries["mmd_random"]["value"]) and "histogram" in entries
    assert entries["mmd_user"]["network"]["name"] == "mine.pt"
    assert "subjects of class" in content["skipped"]["utility"]     # three subjects are too few
    report = (tmp_path / "e" / "report.md").read_text()
    assert entries["mmd_user"]["network"]["sha256"] in report
    assert random_features.fingerprint() in report
    assert "not all could be computed" in error_line(done)
