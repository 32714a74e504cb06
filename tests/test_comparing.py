"""docs/comparing.md: real volumes in the layout of each generator are found equal to the real set.

Each layout is written here as the generator's own code writes it: shape, dtype, range, affine and
names. Then the commands of the page's section are run as they stand.
"""
import json
import re
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers import ROOT, brain, error_line, script

from metrics import volume_sets

SIZE = 16
SHAPE = (20, 28, 20)
PAGE = (ROOT / "docs" / "comparing.md").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working folder with data/mine, its test set's cubes, and the scans they were made of."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "scans").mkdir()
    for k in range(8):
        scan = np.clip(brain(SHAPE, seed=k) / 700, 0, 1)
        nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scans" / f"s{k}.nii.gz")
    script("preprocess.py", "--input", "scans", "--output", "data/mine", "--size", SIZE,
           "--workers", 1, "--split", "1:1", cwd=folder)
    real = volume_sets.find_set(folder / "data" / "mine", None, "--real")
    assert real.split == "test" and len(real) >= 2
    cubes = np.stack([real.read(i) for i in range(len(real))])
    scans = np.stack([nib.load(folder / "scans" / f"{name}.nii.gz").get_fdata()
                      for name in real.ids])
    return folder, cubes, scans


def section(name):
    """The code blocks of a section of the page, in order."""
    (text,) = re.findall(rf"^## {re.escape(name)}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M).strip() for block in blocks]


def run_section(name, folder):
    """Runs the Python code and the commands of a section; the evaluations' folders."""
    outputs = []
    for block in section(name):
        code, _, commands = block.partition("python ") if block.startswith("import") else (
            "", "", block)
        if code:
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
            commands = "python " + commands
        for line in commands.splitlines():
            if line.startswith("python "):
                _, name, *args = shlex.split(line.replace("--size 128", f"--size {SIZE}"))
                if name == "preprocess.py":
                    args += ["--workers", "1"]
                if name == "evaluate.py":
                    outputs.append(folder / args[args.index("--output") + 1])
                    args += ["--metrics", "mmd", "--bootstrap", "0", "--permutations", "0"]
                script(name, *args, cwd=folder)
    return outputs


def distance(output):
    """‖mean x − mean y‖² of voxels in [0, 1], per voxel, and the warnings of the report."""
    content = json.loads((output / "metrics.json").read_text())
    return content["metrics"]["mmd_linear"]["value"] / SIZE ** 3, " ".join(content["warnings"])


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def assert_turned_volumes_are_noticed(warnings):
    """The oracle sees what it should: no order of axes fits better than the one that was read."""
    assert "look turned" not in warnings and "--synthetic-axes" not in warnings


def test_ha_gan(world):
    folder, cubes, scans = world
    (folder / "hagan").mkdir()
    for k, scan in enumerate(scans):
        x_rand = (2 * scan.transpose(2, 1, 0) - 1).astype(np.float32)     # what the network gives
        np.save(folder / "hagan" / f"sample{k}.npy", 0.5 * x_rand + 0.5)
    for k, cube in enumerate(cubes):
        x_rand = (2 * (cube / 255).transpose(2, 1, 0) - 1).astype(np.float32)
        save(folder / "hagan-nifti" / f"sample{k}.nii.gz", 0.5 * x_rand + 0.5, np.eye(4))
    affine = next(block for block in section("HA-GAN") if block.startswith("0 0 1 0"))
    (folder / "zyx.txt").write_text("\n".join(affine.splitlines()[:4]) + "\n")
    arrays, niftis = run_section("HA-GAN", folder)
    for output in (arrays, niftis):
        value, warnings = distance(output)
        assert value < 1e-6
        assert_turned_volumes_are_noticed(warnings)
    done = script("evaluate.py", "--real", "data/mine", "--synthetic", "hagan", "--output", "x",
                  cwd=folder, expect=2)
    assert "--affine identity" in error_line(done)     # arrays do not say where their voxels are


def test_med_ddpm(world):
    folder, cubes, _ = world
    affine = np.array([[-1, 0, 0, 80], [0, 0, 1.2, -90], [0, 1.1, 0, -70], [0, 0, 0, 1]])   # LSA
    for k, cube in enumerate(cubes):
        stored = cube[::-1].transpose(0, 2, 1)
        sample = (stored.astype(np.float32) / 255) * 2 - 1
        save(folder / "exports" / "image" / f"1_sub-{k:02d}.nii.gz", sample, affine)
        save(folder / "exports" / "mask" / f"1_sub-{k:02d}.nii.gz", (stored > 50) * 1.0, affine)
    (output,) = run_section("med-ddpm", folder)
    value, warnings = distance(output)
    assert value == 0
    assert_turned_volumes_are_noticed(warnings)
    content = json.loads((output / "metrics.json").read_text())
    assert content["sets"]["synthetic"]["n"] == len(cubes)      # no masks
    assert content["sets"]["synthetic"]["voxel_mm"] == [1.0, 1.2, 1.1]


def test_wdm_3d(world):
    folder, cubes, _ = world
    for k, cube in enumerate(cubes):
        sample = 2 * (cube[::-1, ::-1].astype(np.float32) / 255) - 1      # as BraTS: LPS
        sample[cube[::-1, ::-1] == 255] = 1.1                             # not clipped
        sample[cube[::-1, ::-1] == 0] = -1.02
        save(folder / "results" / f"sample_{k}_0.nii.gz", (sample + 1) / 2, np.eye(4))
    done = script("evaluate.py", "--real", "data/mine", "--synthetic", "results", "--output", "x",
                  cwd=folder, expect=2)
    assert "not within 0 … 1" in error_line(done)
    (output,) = run_section("wdm-3d", folder)
    value, warnings = distance(output)
    assert value == 0 and "voxel" in warnings
    assert_turned_volumes_are_noticed(warnings)


def test_nv_generate(world):
    folder, _, scans = world
    for k, scan in enumerate(scans):
        data = np.int16(np.clip(scan * 1000, 0, None))
        size, spacing = "x".join(map(str, SHAPE)), "0.80x1.00x1.00"
        name = (f"unet_3d_seed{k}_size{size}_spacing{spacing}_20260101120000_rank0_modality31")
        save(folder / "output" / f"{name}.nii.gz", data, np.diag([0.8, 1, 1, 1]))
    (output,) = run_section("NV-Generate (MAISI)", folder)
    value, warnings = distance(output)
    assert value < 1e-5         # integers are rounded down
    assert_turned_volumes_are_noticed(warnings)


def test_brain_ldm(world):
    folder, _, scans = world
    for k, scan in enumerate(scans):
        stored = np.moveaxis(scan.astype(np.float32), 0, -1)[:, :, None, :]   # (Y, Z, 1, X)
        name = f"0_sample_1200{k:02d}_01012026_0.0_0.1_0.2_0.4.nii.gz"
        save(folder / "brainldm-output" / "0" / name, stored, np.eye(4))
    (output,) = run_section("BrainLDM", folder)
    value, warnings = distance(output)
    assert value < 1e-6
    assert_turned_volumes_are_noticed(warnings)


def test_a_wrong_axis_order_is_found_to_differ(world):
    """So a small distance in the tests above means that the layout was read rightly."""
    folder, cubes, _ = world
    for k, cube in enumerate(cubes):
        save(folder / "turned" / f"v{k}.nii.gz", (cube.transpose(2, 1, 0) / 255).astype(np.float32),
             np.eye(4))
    script("evaluate.py", "--real", "data/mine", "--synthetic", "turned", "--output", "turned-e",
           "--metrics", "mmd", "--bootstrap", 0, "--permutations", 0, cwd=folder)
    assert distance(folder / "turned-e")[0] > 1e-4


def test_every_generator_of_the_table_has_a_section_and_the_published_rows_are_named():
    names = re.findall(r"^\| \[([^\]]+)\]\(#", PAGE, re.M)
    assert names == re.findall(r"^## (.+)$", PAGE, re.M) and len(names) == 5
    assert all(section(name) for name in names)
    for name in ("3D-VAE-GAN", "GAN-GP", "α-WGAN", "CCE-GAN", "HA-GAN", "3D-DPM", "cDPM"):
        assert name in PAGE
