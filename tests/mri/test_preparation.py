"""Mask, crop and bias correction: recorded by preprocess.py, and undone by postprocess.py."""
import importlib.util
import os
import sys

import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, ball, centroid, head, oblique, turned
from helpers import AFFINE, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine

from mri import geometry, manifest, preparation, scans
from utils.errors import UserError

needs_itk = pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None,
    reason="needs SimpleITK (requirements-extra.txt)")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three heads in three axis orders, and masks beside them; one mask in another axis order."""
    folder = tmp_path_factory.mktemp("heads")
    for i in range(3):
        array, mask = head(i)
        scan, affine = turned(array, oblique(AFFINE), *ORIENTATIONS[13 * i])
        save_nifti(folder / "in" / f"sub-{i}.nii.gz", scan, affine, np.float32)
        mask, mask_affine = turned(mask, oblique(AFFINE), *ORIENTATIONS[13 * i if i else 7])
        save_nifti(folder / "masks" / f"sub-{i}_mask.nii.gz", mask, mask_affine, np.uint8)
    return folder


def restored(folder, scan):
    """Source and restored array of a scan, both in RAS order."""
    return (nib.as_closest_canonical(nib.load(p)).get_fdata() for p in (scan, folder / scan.name))


@pytest.mark.parametrize("fit", geometry.FITS)
def test_mask_and_crop_and_their_inverse(heads, tmp_path, fit):
    pattern = "{dir}/../masks/{name}_mask.nii.gz"
    script("preprocess.py", "--input", heads / "in", "--mask", pattern, "--crop", "brain",
           "--crop-margin", 3, "--fit", fit, "--size", 32, "--window", 0, 100,
           "--output", tmp_path / "d", "--workers", 1)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back",
           "--restore-shape")
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["preparation"] == {"mask": pattern, "crop": "brain", "crop_margin": 3.0}
    # the mask's box, 13 x 15 x 11 voxels, and 3 mm more: 2, 3 and 2 voxels of 1.5, 1.25 and 2 mm
    assert [v["crop"] for v in entries] == [[[4, 21], [3, 24], [7, 22]]] * 3
    assert {v["outside"] for v in entries} == {0.0}
    assert header["source_shape"] == [17, 21, 15]
    for i, v in enumerate(entries):
        assert v["mask"] == str((heads / "masks" / f"sub-{i}_mask.nii.gz").resolve())
        scan = heads / "in" / f"sub-{i}.nii.gz"
        source, back = restored(tmp_path / "back", scan)
        mask = head(i)[1]
        masked = np.where(mask, source, 0)
        assert np.allclose(nib.load(scan).affine, nib.load(tmp_path / "back" / scan.name).affine,
                           atol=1e-4)
        assert np.corrcoef(masked.ravel(), back.ravel())[0, 1] > 0.99
        outside = np.ones(back.shape, bool)
        outside[4:21, 3:24, 7:22] = False
        assert (back[outside] == 0).all()
        assert abs(back[mask].mean() - masked[mask].mean()) < 0.05 * masked.max()
        cube = nib.load(tmp_path / "cubes" / scan.name)
        affine = nib.as_closest_canonical(nib.load(scan)).affine
        shift = centroid(cube.get_fdata(), cube.affine) - centroid(masked, affine)
        assert np.linalg.norm(shift) < 0.2
        if fit == "stretch":  # the cube's edges are the box's
            assert np.allclose(apply_affine(cube.affine, [-0.5] * 3),
                               apply_affine(affine, [3.5, 2.5, 6.5]), atol=1e-3)
        else:  # the longest edge: 15 voxels of 2 mm
            assert np.allclose(geometry.voxel_sizes(cube.affine), 30 / 32, atol=1e-4)


def test_a_skull_stripped_scan_needs_no_mask_to_be_cropped(heads, tmp_path):
    array, mask = head()
    stripped = np.where(mask, array, -7)
    save_nifti(tmp_path / "in" / "stripped.nii.gz", stripped, AFFINE, np.float32)
    save_nifti(tmp_path / "in" / "whole.nii.gz", array, AFFINE, np.float32)
    done = script("preprocess.py", "--input", tmp_path / "in", "--crop", "brain", "--size", 32,
                  "--output", tmp_path / "d", "--workers", 1, expect=1)
    assert "whole.nii.gz: --crop brain: its background is not of one value" in done.stderr
    assert "give --mask" in done.stderr
    entry, = manifest.read_manifest(tmp_path / "d")[1]
    # 5 mm: 4, 4 and 3 voxels
    assert entry["crop"] == [[2, 23], [2, 25], [6, 23]] and entry["outside"] == -7
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n",
           "--restore-shape")
    back = nib.load(tmp_path / "n" / "stripped.nii.gz").get_fdata()
    assert back[0, 0, 0] == -7 and np.corrcoef(back.ravel(), stripped.ravel())[0, 1] > 0.99


def test_crop_and_its_inverse_by_hand():
    array = np.zeros((6, 7, 8), np.float32)
    array[2:4, 3:6, 1:8] = 5
    box = [[2, 4], [3, 6], [1, 8]]
    assert preparation.brain_box(array, (1, 1, 1), 0) == box
    assert preparation.brain_box(array, (1, 2, 0.5), 1.5) == [[0, 6], [2, 7], [0, 8]]
    cropped = preparation.crop(array, box)
    assert np.array_equal(preparation.uncrop(cropped, box, (6, 7, 8), 0), array)
    one = np.zeros((6, 7, 8), bool)
    one[5, 3, 0] = True
    # two voxels at least
    assert preparation.brain_box(array, (1, 1, 1), 0, one) == [[4, 6], [3, 5], [0, 2]]


def test_outside_a_mask_is_dark():
    mask = np.eye(2, dtype=bool)[None].repeat(2, 0)
    below = preparation.apply_mask(np.full((2, 2, 2), -3, np.float32), mask)
    assert (below == -3).all()
    above = preparation.apply_mask(np.full((2, 2, 2), 3, np.float32), mask)
    assert (above >= 0).all()


def test_masks_that_do_not_fit_are_refused(heads, tmp_path):
    def refused(mask, words):
        done = script("preprocess.py", "--input", heads / "in", "--mask", mask, "--size", 16,
                      "--output", tmp_path / "o", "--workers", 1, expect=2)
        assert done.stderr.count("skipped: ") == 3 and words in done.stderr
        assert "none of 3 scans" in error_line(done)
        assert not (tmp_path / "o").exists()

    mask = head()[1]
    affine = oblique(AFFINE)
    refused(tmp_path / "none.nii.gz", "none.nii.gz: no such file")
    refused(save_nifti(tmp_path / "small.nii.gz", mask[:20], affine, np.uint8),
            "resample the mask to the scan's grid")
    away = affine.copy()
    away[0, 3] += 1
    refused(save_nifti(tmp_path / "away.nii.gz", mask, away, np.uint8), "voxels up to 1 mm away")
    refused(save_nifti(tmp_path / "faint.nii.gz", mask * 0.4, affine, np.float32),
            "an empty mask")
    done = script("preprocess.py", "--input", heads / "in", "--mask", "{subj}.nii",
                  "--output", tmp_path / "o", expect=2)
    assert ("--mask {subj}.nii: knows {id}, {subject}, {session}, {run}, {name}, {dir}"
            in error_line(done))
    done = script("preprocess.py", "--input", heads / "in", "--crop-margin", "-1",
                  "--output", tmp_path / "o", expect=2)
    assert "--crop-margin" in error_line(done)


# --------------------------------------------------------------------------------------------- N4

@needs_itk
def test_n4_removes_a_known_bias_field_and_postprocess_puts_it_back(tmp_path):
    shape = (40, 44, 40)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    center = (20, 22, 20)
    mask = ball(shape, center, (15, 17, 15))
    noise = np.random.default_rng(0).normal(0, 10, shape)
    clean = np.where(mask, np.where(ball(shape, center, (9, 10, 9)), 900, 600) + noise, 0)
    biased = clean * np.exp(0.4 * x + 0.3 * y * y - 0.3 * z)
    save_nifti(tmp_path / "in" / "a.nii.gz", biased, AFFINE, np.float32)
    save_nifti(tmp_path / "a_mask.nii.gz", mask, AFFINE, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--n4",
           "--mask", tmp_path / "{id}_mask.nii.gz", "--size", 48, "--output", tmp_path / "d",
           "--workers", 1)
    header, (entry,) = manifest.read_manifest(tmp_path / "d")
    assert entry["n4"] is True and header["preparation"]["n4"].startswith("SimpleITK ")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    cube = nib.load(tmp_path / "cubes" / "a.nii.gz")
    inner = ball((48,) * 3, (24, 24, 24), (9, 9, 9))    # of one tissue
    before = geometry.resample(biased.astype(np.float32), (48,) * 3)[inner]
    after = cube.get_fdata()[inner]
    assert before.std() / before.mean() > 0.08 and after.std() / after.mean() < 0.02
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back",
           "--restore-shape")
    back = nib.load(tmp_path / "back" / "a.nii.gz").get_fdata()
    assert np.corrcoef(back.ravel(), biased.ravel())[0, 1] > 0.99
    assert np.abs(back - biased)[ball(shape, center, (7, 7, 7))].mean() < 0.02 * biased.max()
    (tmp_path / "d" / "bias" / "a.nii.gz").unlink()
    done = script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "o",
                  "--restore-shape", expect=2)
    assert "bias/a.nii.gz: no such file" in error_line(done) and not (tmp_path / "o").exists()


def test_patterns_of_masks(tmp_path):
    scan = scans.Scan("i", "sub-1", tmp_path / "a" / "x_T1w.nii.gz", "ses-2", "run-3")
    pattern = str(tmp_path / "{subject}_{session}_{run}_{id}_{name}.nii")
    assert preparation.mask_paths(pattern, scan) == [
        tmp_path / "sub-1_ses-2_run-3_i_x_T1w.nii"]
    for name in ("x_desc-a_mask.nii", "x_desc-b_mask.nii"):
        save_nifti(tmp_path / "a" / name, brain(), AFFINE)
    assert preparation.find_mask("{dir}/x_*-a_mask.nii", scan) == (
        tmp_path / "a" / "x_desc-a_mask.nii")
    with pytest.raises(UserError, match=r"2 files fit \(.*desc-a.*desc-b"):
        preparation.find_mask("{dir}/x_*_mask.nii", scan)
    with pytest.raises(UserError, match="no files fit; one must"):
        preparation.find_mask("{dir}/y*.nii", scan)
    plain = scans.Scan("i", "s", tmp_path / "x.nii")
    with pytest.raises(UserError, match="the scan has no session in its name"):
        preparation.find_mask("m/{session}.nii", plain)
    assert preparation.find_mask(None, plain) is None
    listed = scans.Scan("i", "s", tmp_path / "x.nii", mask=tmp_path / "m.nii")
    assert preparation.find_mask(None, listed) == tmp_path / "m.nii"
    assert preparation.masks_of("{dir}/{name}_m.nii", [plain, listed]) == {
        tmp_path / "x_m.nii", tmp_path / "m.nii"}


@needs_itk
def test_n4_takes_slightly_negative_intensities(tmp_path):
    """The shift is for the estimate alone: the scan's own intensities are divided by the field."""
    array, mask = head(shape=(24, 28, 26))
    array[0, 0, :3] = -20
    field, shift = preparation.bias_field(array, (1, 1, 1), mask)
    expected, none = preparation.bias_field(array + np.float32(20), (1, 1, 1), mask)
    assert shift == 20 and none == 0 and np.array_equal(field, expected)
    divided = preparation.divide_bias(array, field)
    assert np.allclose(preparation.multiply_bias(divided, field), array, atol=1e-3)
    save_nifti(tmp_path / "in" / "a.nii.gz", array, AFFINE, np.float32)
    done = script("preprocess.py", "--input", tmp_path / "in", "--n4", "--size", 16,
                  "--workers", 1, "--output", tmp_path / "d")
    assert "N4 was estimated on shifted intensities of 1 scans" in done.stdout
    entry, = manifest.read_manifest(tmp_path / "d")[1]
    assert entry["n4"] is True and entry["n4_shift"] == 20
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n",
           "--restore-shape")
    back = nib.load(tmp_path / "n" / "a.nii.gz").get_fdata()
    assert np.corrcoef(back.ravel(), array.ravel())[0, 1] > 0.95


@needs_itk
def test_n4_refuses_negative_intensities():
    with pytest.raises(UserError, match="N4 takes their logarithm"):
        preparation.bias_field(brain() - 1000, (1, 1, 1))


def test_n4_without_simpleitk_is_one_line(heads, tmp_path):
    (tmp_path / "without" / "SimpleITK").mkdir(parents=True)
    (tmp_path / "without" / "SimpleITK" / "__init__.py").write_text(
        "raise ImportError('no SimpleITK here')")
    path = os.pathsep.join([str(tmp_path / "without"), *sys.path])
    done = script("preprocess.py", "--input", heads / "in", "--n4", "--output", tmp_path / "o",
                  expect=2, fresh=True, env={"PYTHONPATH": path})
    assert "--n4: needs SimpleITK; pip install -r requirements-extra.txt" in error_line(done)
