"""Mask, crop, bias correction and contact sheets: what preprocess.py does by hand's habit, recorded and undone."""
import csv
import importlib.util
import os
import sys

import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, centroid, oblique, turned
from helpers import AFFINE, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine
from PIL import Image

from mri import geometry, manifest
from mri import preparation as prep
from mri import quality_control as qc
from utils.errors import UserError

needs_itk = pytest.mark.skipif(importlib.util.find_spec("SimpleITK") is None, reason="needs SimpleITK (requirements-extra.txt)")


def ball(shape, centre, radius):
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (((ijk - centre) / radius) ** 2).sum(-1) < 1


def head(seed=0, shape=(24, 28, 26)):
    """A noisy head of 100 with a brain of texture in it, and the brain's mask."""
    rng = np.random.default_rng(seed)
    mask = ball(shape, (12, 13, 14), (7, 8, 6))
    array = np.abs(rng.normal(0, 4, shape)) + np.where(ball(shape, (12, 14, 13), (10, 12, 11)), 100, 0)
    return np.where(mask, 300 + brain(shape, seed) / 4, array).astype(np.float32), mask


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three heads in three axis orders, and masks beside them, one of these in another axis order than its scan."""
    folder = tmp_path_factory.mktemp("heads")
    for i in range(3):
        array, mask = head(i)
        there, affine = turned(array, oblique(AFFINE), *ORIENTATIONS[13 * i])
        save_nifti(folder / "in" / f"sub-{i}.nii.gz", there, affine, np.float32)
        mask_there, mask_affine = turned(mask, oblique(AFFINE), *ORIENTATIONS[13 * i if i else 7])
        save_nifti(folder / "masks" / f"sub-{i}_mask.nii.gz", mask_there, mask_affine, np.uint8)
    return folder


def restored(folder, scan):
    """Source and restored array of a scan, both in RAS order."""
    return (nib.as_closest_canonical(nib.load(p)).get_fdata() for p in (scan, folder / scan.name))


@pytest.mark.parametrize("fit", geometry.FITS)
def test_mask_and_crop_there_and_back(heads, tmp_path, fit):
    script("preprocess.py", "--input", heads / "in", "--mask", "{dir}/../masks/{name}_mask.nii.gz", "--crop", "brain", "--crop-margin", 3,
           "--fit", fit, "--size", 32, "--window", 0, 100, "--output", tmp_path / "d", "--workers", 1)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back", "--restore-shape")
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["preparation"] == {"mask": "{dir}/../masks/{name}_mask.nii.gz", "crop": "brain", "crop_margin": 3.0}
    # the mask's box, 13 x 15 x 11 voxels, and 3 mm more: 2, 3 and 2 voxels of 1.5, 1.25 and 2 mm
    assert [v["crop"] for v in entries] == [[[4, 21], [3, 24], [7, 22]]] * 3 and {v["outside"] for v in entries} == {0.0}
    assert header["source_shape"] == [17, 21, 15]
    for i, v in enumerate(entries):
        assert v["mask"] == str((heads / "masks" / f"sub-{i}_mask.nii.gz").resolve())
        scan = heads / "in" / f"sub-{i}.nii.gz"
        source, back = restored(tmp_path / "back", scan)
        masked = np.where(head(i)[1], source, 0)
        assert np.allclose(nib.load(scan).affine, nib.load(tmp_path / "back" / scan.name).affine, atol=1e-4)
        assert np.corrcoef(masked.ravel(), back.ravel())[0, 1] > 0.99
        outside = np.ones(back.shape, bool)
        outside[4:21, 3:24, 7:22] = False
        assert (back[outside] == 0).all() and abs(back[head(i)[1]].mean() - masked[head(i)[1]].mean()) < 0.05 * masked.max()
        cube = nib.load(tmp_path / "cubes" / scan.name)
        affine = nib.as_closest_canonical(nib.load(scan)).affine
        assert np.linalg.norm(centroid(cube.get_fdata(), cube.affine) - centroid(masked, affine)) < 0.2
        if fit == "stretch":  # the cube's edges are the box's
            assert np.allclose(apply_affine(cube.affine, [-0.5] * 3), apply_affine(affine, [3.5, 2.5, 6.5]), atol=1e-3)
        else:
            assert np.allclose(geometry.voxel_sizes(cube.affine), 30 / 32, atol=1e-4)  # the longest edge: 15 voxels of 2 mm


def test_a_skull_stripped_scan_needs_no_mask_to_be_cropped(heads, tmp_path):
    stripped = np.where(head()[1], head()[0], -7)
    save_nifti(tmp_path / "in" / "stripped.nii.gz", stripped, AFFINE, np.float32)
    save_nifti(tmp_path / "in" / "whole.nii.gz", head()[0], AFFINE, np.float32)
    done = script("preprocess.py", "--input", tmp_path / "in", "--crop", "brain", "--size", 32, "--output", tmp_path / "d", "--workers", 1,
                  expect=1)
    assert "whole.nii.gz: --crop brain: its background is not of one value" in done.stderr and "give --mask" in done.stderr
    entry, = manifest.read_manifest(tmp_path / "d")[1]
    assert entry["crop"] == [[2, 23], [2, 25], [6, 23]] and entry["outside"] == -7      # 5 mm: 4, 4 and 3 voxels
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n", "--restore-shape")
    back = nib.load(tmp_path / "n" / "stripped.nii.gz").get_fdata()
    assert back[0, 0, 0] == -7 and np.corrcoef(back.ravel(), stripped.ravel())[0, 1] > 0.99


def test_crop_and_its_inverse_by_hand():
    array = np.zeros((6, 7, 8), np.float32)
    array[2:4, 3:6, 1:8] = 5
    assert prep.brain_box(array, (1, 1, 1), 0) == [[2, 4], [3, 6], [1, 8]]
    assert prep.brain_box(array, (1, 2, 0.5), 1.5) == [[0, 6], [2, 7], [0, 8]]
    assert np.array_equal(prep.uncrop(prep.crop(array, [[2, 4], [3, 6], [1, 8]]), [[2, 4], [3, 6], [1, 8]], (6, 7, 8), 0), array)
    one = np.zeros((6, 7, 8), bool)
    one[5, 3, 0] = True
    assert prep.brain_box(array, (1, 1, 1), 0, one) == [[4, 6], [3, 5], [0, 2]]        # two voxels at least
    dark = prep.apply_mask(np.full((2, 2, 2), -3, np.float32), np.eye(2, dtype=bool)[None].repeat(2, 0))
    assert (dark == -3).all() and (prep.apply_mask(np.full((2, 2, 2), 3, np.float32), np.eye(2, dtype=bool)[None].repeat(2, 0)) >= 0).all()


def test_masks_that_do_not_fit_are_refused(heads, tmp_path):
    def refused(mask, words, n=3):
        done = script("preprocess.py", "--input", heads / "in", "--mask", mask, "--size", 16, "--output", tmp_path / "o", "--workers", 1,
                      expect=2)
        assert done.stderr.count("skipped: ") == n and words in done.stderr and "none of 3 scans" in error_line(done)
        assert not (tmp_path / "o").exists()

    refused(tmp_path / "none.nii.gz", "none.nii.gz: no such file")
    refused(save_nifti(tmp_path / "small.nii.gz", head()[1][:20], oblique(AFFINE), np.uint8), "resample the mask to the scan's grid")
    away = oblique(AFFINE)
    away[0, 3] += 1
    refused(save_nifti(tmp_path / "away.nii.gz", head()[1], away, np.uint8), "voxels up to 1 mm away")
    refused(save_nifti(tmp_path / "faint.nii.gz", head()[1] * 0.4, oblique(AFFINE), np.float32), "an empty mask")
    done = script("preprocess.py", "--input", heads / "in", "--mask", "{subj}.nii", "--output", tmp_path / "o", expect=2)
    assert "--mask {subj}.nii: knows {id}, {subject}, {name}, {dir}" in error_line(done)
    done = script("preprocess.py", "--input", heads / "in", "--crop-margin", "-1", "--output", tmp_path / "o", expect=2)
    assert "--crop-margin" in error_line(done)


# ------------------------------------------------------------------------------------------------------------- N4

@needs_itk
def test_n4_takes_a_known_bias_field_out_and_postprocess_puts_it_back(tmp_path):
    shape = (40, 44, 40)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = ball(shape, (20, 22, 20), (15, 17, 15))
    rng = np.random.default_rng(0)
    clean = np.where(mask, np.where(ball(shape, (20, 22, 20), (9, 10, 9)), 900, 600) + rng.normal(0, 10, shape), 0)
    bias = np.exp(0.4 * x + 0.3 * y * y - 0.3 * z)
    save_nifti(tmp_path / "in" / "a.nii.gz", clean * bias, AFFINE, np.float32)
    save_nifti(tmp_path / "a_mask.nii.gz", mask, AFFINE, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--n4", "--mask", tmp_path / "{id}_mask.nii.gz", "--size", 48, "--output",
           tmp_path / "d", "--workers", 1)
    header, (entry,) = manifest.read_manifest(tmp_path / "d")
    assert entry["n4"] is True and header["preparation"]["n4"].startswith("SimpleITK ")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    cube = nib.load(tmp_path / "cubes" / "a.nii.gz")
    inner = ball((48,) * 3, (24, 24, 24), (9, 9, 9))                                   # of one tissue
    before = geometry.resample((clean * bias).astype(np.float32), (48,) * 3)[inner]
    after = cube.get_fdata()[inner]
    assert before.std() / before.mean() > 0.08 and after.std() / after.mean() < 0.02
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back", "--restore-shape")
    back = nib.load(tmp_path / "back" / "a.nii.gz").get_fdata()
    assert np.corrcoef(back.ravel(), (clean * bias).ravel())[0, 1] > 0.99
    assert np.abs(back - clean * bias)[ball(shape, (20, 22, 20), (7, 7, 7))].mean() < 0.02 * (clean * bias).max()
    (tmp_path / "d" / "bias" / "a.nii.gz").unlink()
    done = script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "o", "--restore-shape", expect=2)
    assert "bias/a.nii.gz: no such file" in error_line(done) and not (tmp_path / "o").exists()


@needs_itk
def test_n4_refuses_negative_intensities():
    with pytest.raises(UserError, match="N4 takes their logarithm"):
        prep.bias_field(brain() - 1000, (1, 1, 1))


def test_n4_without_simpleitk_is_one_line(heads, tmp_path):
    (tmp_path / "without" / "SimpleITK").mkdir(parents=True)
    (tmp_path / "without" / "SimpleITK" / "__init__.py").write_text("raise ImportError('no SimpleITK here')")
    done = script("preprocess.py", "--input", heads / "in", "--n4", "--output", tmp_path / "o", expect=2,
                  fresh=True,
                  env={"PYTHONPATH": os.pathsep.join([str(tmp_path / "without"), *sys.path])})
    assert "--n4: needs SimpleITK; pip install -r requirements-extra.txt" in error_line(done)


# -------------------------------------------------------------------------------------------------- quality control

def table(folder):
    with open(folder / "qc" / "qc.tsv", newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f, delimiter="\t")}


def test_the_bad_scan_is_found_in_the_table(tmp_path):
    shape = (20, 26, 22)
    array = np.where(brain() > 20, brain(), 0)                                         # skull-stripped: 0 all around
    array[:, 14:, :10] = 0                                                             # as a face is not at the back of a head
    for i in range(26):                                                                # two pages
        save_nifti(tmp_path / "in" / f"good{i:02d}.nii.gz", array * (1 + 0.01 * i), AFFINE, np.float32)

    def add(name, a, affine=AFFINE):
        save_nifti(tmp_path / "in" / f"z_{name}.nii.gz", a, affine, np.float32)

    add("empty", np.where(ball(shape, (10, 13, 11), (2, 2, 2)), array, 0))
    add("functional", array, AFFINE @ np.diag([2.4, 2.4, 2.4, 1]))
    add("thick", array, AFFINE @ np.diag([1, 1, 3, 1]))
    add("noisy", array + 60 + np.abs(np.random.default_rng(0).normal(0, 5, shape)))
    add("dark", array ** 3)
    add("grey", np.where(array > 0, array - 600, 0))
    upside_down = np.diag([1.5, 1.25, -2.0, 1])
    add("upside_down", array, upside_down)
    add("constant", np.ones(shape))
    done = script("preprocess.py", "--input", tmp_path / "in", "--size", 16, "--output", tmp_path / "d", "--workers", 2, expect=1)
    rows = table(tmp_path / "d")
    good = [r["warnings"] for i, r in rows.items() if i.startswith("good")]
    assert len(rows) == 34 and good == [""] * 26
    assert rows["good00"] == {"id": "good00", "page": "1", "shape": "20x26x22", "spacing_mm": "1.5x1.25x2", "orientation": "RAS",
                              "window": rows["good00"]["window"], "background": rows["good00"]["background"],
                              "mean": rows["good00"]["mean"], "masked": "yes", "warnings": ""}
    lo, hi = map(float, rows["good00"]["window"].split(".."))
    assert np.allclose([lo, hi], np.percentile(array, [0, 99.9]), rtol=1e-4)
    assert abs(float(rows["good00"]["background"]) - (array < 0.05 * hi).mean()) < 0.05
    for name, words in {"empty": "nearly empty", "functional": "looks like a 4D mean", "thick": "thick slices: voxels of 1.5 x 1.25 x 6 mm",
                        "noisy": "not masked, most are", "dark": "outlier against the cohort in mean", "grey": "background is not dark",
                        "upside_down": "looks turned", "constant": "skipped: "}.items():
        assert words in rows[f"z_{name}"]["warnings"], (name, rows[f"z_{name}"])
        assert name == "constant" or f"warning: z_{name}: " in done.stderr
    assert "outlier against the cohort in histogram" in rows["z_dark"]["warnings"] and "read as RAI" in rows["z_upside_down"]["warnings"]
    assert rows["z_upside_down"]["orientation"] == "RAI" and rows["z_constant"]["shape"] == ""
    pages = sorted(p.name for p in (tmp_path / "d" / "qc").glob("*.png"))
    assert pages == ["page-001.png", "page-002.png"] and {r["page"] for r in rows.values()} == {"1", "2", ""}
    first, second = (np.array(Image.open(tmp_path / "d" / "qc" / p)) for p in pages)
    red = [255, 70, 50]
    assert not (first == red).all(-1).any() and (second == red).all(-1).any()           # the frames are on the odd scans' page


def test_pictures_are_upright_and_left_is_left():
    cube = np.zeros((16, 16, 16), np.uint8)
    cube[:8, 8:, 8:] = 200                                                             # left, anterior, superior
    seen = qc.look(cube, (1, 1, 1), True)
    axial, coronal, sagittal = seen["views"]
    half = qc.VIEW // 2

    def bright(view):
        quarters = [view[:half, :half], view[:half, half:], view[half:, :half], view[half:, half:]]
        return [bool(q.mean() > 100) for q in quarters]

    assert bright(axial) == bright(coronal) == [True, False, False, False]             # up and left
    assert bright(sagittal) == [False] * 4 and bright(qc.look(cube[::-1], (1, 1, 1), True)["views"][2]) == [False, True, False, False]
    assert seen["background"] == 7 / 8 and seen["mean"] == 200 and seen["level"] == 0
    wide = qc.look(cube, (1, 2, 1), True)["views"]
    assert [v.shape for v in wide] == [(112, 56), (56, 56), (56, 112)]                  # true to the voxels' proportions


def test_already_masked_before_a_mask_beside_the_scan(tmp_path):
    array, mask = head()
    save_nifti(tmp_path / "in" / "a.nii.gz", np.where(mask, array, 0), AFFINE, np.float32)
    save_nifti(tmp_path / "in" / "a_mask.nii.gz", mask, AFFINE, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--mask", "{dir}/{name}_mask.nii.gz", "--size", 16, "--output", tmp_path / "d")
    assert len(table(tmp_path / "d")) == 1                                             # the mask is no scan
    assert table(tmp_path / "d")["a"]["warnings"] == "already masked, before --mask"


def test_a_cohort_of_large_voxels_is_named_once(tmp_path):
    for i in range(6):
        save_nifti(tmp_path / "in" / f"s{i}.nii.gz", brain((14, 16, 14), seed=0), np.diag([3.0, 3, 3, 1]))
    done = script("preprocess.py", "--input", tmp_path / "in", "--size", 16, "--output", tmp_path / "d", "--workers", 1)
    assert "warning: most scans have voxels of 2.4 mm or more" in done.stderr
    assert not any("4D mean" in r["warnings"] for r in table(tmp_path / "d").values())
