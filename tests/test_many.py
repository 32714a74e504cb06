"""Many scans, a large one, and other locales; a memory of 4 GB must do.

The peak is that of all processes together: the memory that is a process's own, and its share of
what it shares with others (PSS). A limit on the address space would not do, as PyTorch reserves
more of it than it uses.
"""
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import AFFINE, ROOT, brain, error_line, save_nifti, script
from test_attacks import assert_same_tree, in_shell, tree

from mri import manifest

LIMIT_GB = 4      # of a script
SCANS = 10_000
ENTRIES = 50_000
LARGE_SIDE = 600
LOCALES = {"tr_TR.ISO-8859-9": "ISO-8859-9", "tr_TR.UTF-8": "UTF-8", "de_DE.ISO-8859-1":
           "ISO-8859-1", "de_DE.UTF-8": "UTF-8"}


# ----------------------------------------------------------------------------------------- memory

def own_and_shared(pid):
    """PSS of a process and its descendants, bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:     # it has ended
        return 0
    total = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total + sum(own_and_shared(child) for child in children)


def run(name, *argv, limit_gb=LIMIT_GB):
    """Runs a script in a new Python; asserts that its memory stays below the limit.

    :return: what it printed
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / name, *map(str, argv)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"})
    peak = 0

    def watch():
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, own_and_shared(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    text = process.communicate()[0]
    watcher.join()
    print(f"\n{name}: {time.monotonic() - began:.0f} s, peak {peak / 1e9:.2f} GB")
    assert process.returncode == 0 and "Traceback" not in text, text[-3000:]
    assert peak < limit_gb * 1e9
    return text


needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(),
                                reason="measures memory as Linux counts it")


# ------------------------------------------------------------------------------------------- many

@pytest.mark.slow
@needs_proc
def test_thousands_of_scans_pass_through_all_scripts(vae_folder, tmp_path):
    scans = [brain((12, 14, 13), seed=seed) for seed in range(50)]
    for i in range(SCANS):
        noise = np.random.default_rng(i).normal(0, 20, scans[0].shape)
        save_nifti(tmp_path / "in" / f"sub-{i:04d}_T1w.nii", scans[i % 50] + noise, AFFINE)
    data, vae = tmp_path / "data", tmp_path / "vae"
    text = run("preprocess.py", "--input", tmp_path / "in", "--output", data, "--size", 16,
               "--split", "50:1")    # train_vae.py measures the PSNR of the whole test split
    assert f"{SCANS} mosaics of 48 x 48" in text
    run("train_vae.py", "--data-path", data, "--init", vae_folder, "--tune", "decoder",
        "--max-steps", 5, "--crop", 48, "--output", vae, "--device", "cpu")
    run("train.py", "--data-path", data, "--vae", vae, "--ckpt", "none", "--tune", "full",
        "--model", "DiT-T/4", "--num-classes", 1, "--max-steps", 5, "--device", "cpu",
        "--results-dir", tmp_path / "r")
    run("sample.py", "--ckpt", tmp_path / "r", "--num-samples", 64, "--batch-size", 32,
        "--sampler", "ddim", "--num-sampling-steps", 2, "--output", tmp_path / "s", "--device",
        "cpu")
    text = run("postprocess.py", "--input", data, "--output", tmp_path / "n")
    assert f"{SCANS} NIfTI volumes" in text
    run("evaluate.py", "--real", data, "--synthetic", tmp_path / "n", "--train", data,
        "--metrics", "ms-ssim", "mmd", "smoothness", "histogram", "--pairs", 2000, "--bootstrap",
        100, "--permutations", 99, "--output", tmp_path / "e", "--device", "cpu",
        limit_gb=5.5)    # 8 bytes for each pair of volumes, in four matrices
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["sets"]["synthetic"][
        "n"] == SCANS


@pytest.mark.slow
@needs_proc
def test_a_manifest_of_fifty_thousand(data, vae_folder, tmp_path):
    """Its mosaics are links to a few."""
    header, entries = manifest.read_manifest(data)
    many = tmp_path / "many"
    (many / "mosaics").mkdir(parents=True)
    listed = []
    for i in range(ENTRIES):
        entry = entries[i % len(entries)]
        name = f"sub-{i:05d}"
        listed.append({**entry, "id": name, "subject": name,
                       "split": "test" if i % 50 else "train"})
        os.link(data / "mosaics" / f"{entry['id']}.png", many / "mosaics" / f"{name}.png")
    manifest.write_manifest(many, header, listed)
    run("train.py", "--data-path", many, "--vae", vae_folder, "--ckpt", "none", "--tune", "full",
        "--model", "DiT-T/4", "--max-steps", 2, "--device", "cpu", "--results-dir", tmp_path / "r")
    text = run("postprocess.py", "--input", many, "--output", tmp_path / "n")
    assert f"{ENTRIES} NIfTI volumes" in text


@pytest.mark.slow
@needs_proc
def test_one_large_scan(tmp_path):
    small = brain((60, 60, 60), seed=0)
    large = np.kron(small, np.ones((10, 10, 10), np.float32)).astype(np.int16)
    assert large.shape == (LARGE_SIDE,) * 3
    nib.save(nib.Nifti1Image(large, np.diag([0.3, 0.3, 0.3, 1])), tmp_path / "large.nii")
    save_nifti(tmp_path / "small.nii", small, np.diag([3.0, 3, 3, 1]))
    del large
    run("preprocess.py", "--input", tmp_path, "--output", tmp_path / "d", "--size", 128,
        "--workers", 1)
    run("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n", "--restore-shape")
    restored = nib.load(tmp_path / "n" / "large.nii.gz")
    assert restored.shape == (LARGE_SIDE,) * 3


# ---------------------------------------------------------------------------------------- locales

@pytest.fixture(scope="module")
def locale_folder(tmp_path_factory):
    """A folder for LOCPATH with locales that are made here; skips where they cannot be."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/tr_TR").exists():
        pytest.skip("needs localedef and the sources of locales (Debian: apt install locales)")
    folder = tmp_path_factory.mktemp("locales")
    for name, charmap in LOCALES.items():
        subprocess.run(["localedef", "-i", name[:5], "-f", charmap, folder / name],
                       capture_output=True, check=False)    # it warns, with exit code 1
        if not (folder / name / "LC_CTYPE").exists():
            pytest.skip(f"localedef cannot make {name}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_locales_change_nothing(scans, data, vae_folder, finetuned, locale_folder, tmp_path, name):
    """Turkish has another lower case of I, German a decimal comma; both have byte encodings."""
    (tmp_path / "labels.tsv").write_text("participant_id\tgroup\n" + "".join(
        f"sub-{i:02d}\t{'ÇİĞ' if i % 2 else 'Größe'}\n" for i in range(5)), encoding="utf-8")
    commands = {
        "preprocess.py": ("--input", scans, "--size", 16, "--split", "3:2", "--workers", 2,
                          "--labels", tmp_path / "labels.tsv", "--label-column", "group"),
        "postprocess.py": ("--input", data),
        "sample.py": ("--ckpt", finetuned, "--num-samples", 2, "--sampler", "ddim", "--device",
                      "cpu", "--num-sampling-steps", 2),
        "evaluate.py": ("--real", data, "--synthetic", data, "--metrics", "mmd", "smoothness",
                        "--device", "cpu"),
        "train_vae.py": ("--data-path", data, "--init", vae_folder, "--max-steps", 2, "--crop",
                         48, "--device", "cpu")}
    environment = {"LC_ALL": name, "LOCPATH": str(locale_folder)}
    for command, argv in commands.items():
        out = tmp_path / "out"
        script(command, *argv, "--output", out)
        expected = tree(out)
        shutil.rmtree(out)
        in_shell("{}", command, *argv, "--output", out, env=environment).check_returncode()
        assert_same_tree(tree(out), expected)
        shutil.rmtree(out)
    done = in_shell("{}", "preprocess.py", "--input", tmp_path / "ığ", "--output", tmp_path / "out",
                    env=environment)
    assert done.returncode == 2 and "no .nii" in error_line(done)
