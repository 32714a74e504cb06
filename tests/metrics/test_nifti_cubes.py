"""Ranges of intensities and axis orders of cubes that other generators wrote."""
import numpy as np
import pytest
from helpers import brain

from metrics import nifti_cubes, volume_sets
from mri import nifti
from utils.errors import UserError

SIDE = 12
LEVELS = (np.clip(brain((SIDE,) * 3) / 1000, 0, 1) * 255).astype(np.uint8)


def written(folder, array, affine=None, dtype=np.float32, count=2):
    folder.mkdir()
    for i in range(count):
        nifti.write_nifti(folder / f"v{i}.nii.gz", np.asarray(array, dtype),
                          np.eye(4) if affine is None else affine)
    return folder


def reader(folder, **options):
    return nifti_cubes.CubeReader("--synthetic", folder, **options)


@pytest.mark.parametrize("lo, hi", [(0, 1), (-1, 1), (0, 255), (-1000, 3000), (0, 32767)])
def test_the_range_does_not_change_the_volume(tmp_path, lo, hi):
    array = LEVELS / 255.0 * (hi - lo) + lo
    if hi > 255:
        array = np.round(array)     # as integers of 16 bits hold it
    folder = written(tmp_path / "n", array)
    cube, _ = reader(folder, value_range=(lo, hi)).read(folder / "v0.nii.gz")
    assert cube.dtype == np.uint8 and np.array_equal(cube, LEVELS)


def test_what_hardly_exceeds_the_range_is_clipped_and_counted(tmp_path):
    array = LEVELS / 255.0
    array[0, 0, 0], array[1, 1, 1] = 1.0000001, -5e-4
    folder = written(tmp_path / "n", array)
    one = reader(folder)
    assert one.notes() == []
    cube, _ = one.read(folder / "v0.nii.gz")
    one.read(folder / "v0.nii.gz")
    one.read(folder / "v1.nii.gz")
    assert cube[0, 0, 0] == 255 and cube[1, 1, 1] == 0
    assert one.notes() == [f"--synthetic {folder}: clipped 2 volumes to 0 … 1, which they exceed "
                           "by at most 0.0005 (--synthetic-range sets the range)"]


@pytest.mark.parametrize("scale, shift, advice", [
    (2, -1, "they look like --synthetic-range -1 1"),
    (255, 0, "they look like --synthetic-range 0 255"),
    (4000, -1000, "give --synthetic-range LO HI")])
def test_another_range_is_refused_with_the_flag_that_fits(tmp_path, scale, shift, advice):
    array = LEVELS / LEVELS.max() * scale + shift
    folder = written(tmp_path / "n", array)
    with pytest.raises(UserError, match=f"v0.nii.gz: intensities .* not within 0 … 1; {advice}"):
        reader(folder).read(folder / "v0.nii.gz")


def test_just_beyond_the_tolerance(tmp_path):
    array = LEVELS / 255.0
    array[0, 0, 0] = 1.0011
    folder = written(tmp_path / "n", array)
    with pytest.raises(UserError, match="not within 0 … 1"):
        reader(folder).read(folder / "v0.nii.gz")


@pytest.mark.parametrize("pair", [(1, 0), (0, 0), (0, np.inf), (np.nan, 1)])
def test_ranges_that_are_none(pair):
    with pytest.raises(UserError, match="--real-range .*: two finite numbers, LO < HI"):
        nifti_cubes.check_range(pair, "--real-range")


def test_axes(tmp_path):
    """Arrays (z, y, x) with an affine that says nothing; sizes of voxels go with their axes."""
    stored = LEVELS.transpose(2, 1, 0)
    folder = written(tmp_path / "n", stored / 255.0, np.diag([3.0, 2.0, 1.0, 1]))
    cube, affine = reader(folder, axes="zyx").read(folder / "v0.nii.gz")
    assert np.array_equal(cube, LEVELS) and np.allclose(np.diag(affine), [1, 2, 3, 1])
    cube, affine = reader(folder).read(folder / "v0.nii.gz")
    assert np.array_equal(cube, stored) and np.allclose(np.diag(affine), [3, 2, 1, 1])


def test_what_is_no_cube_is_refused_with_the_command(tmp_path):
    header = {"size": 16, "layout": "gray", "fit": "pad", "window_percentiles": [0, 99.9]}
    folder = written(tmp_path / "n", LEVELS[:, :10] / 255.0)
    with pytest.raises(UserError, match="shape 12 x 10 x 12, not a cube; `python preprocess.py "
                       f"--input {folder} --size 16 --layout gray --fit pad --window 0 99.9 "
                       f"--output {folder}-cubes` makes cubes"):
        reader(folder, like=header).read(folder / "v0.nii.gz")
    with pytest.raises(UserError, match="--size N "):
        reader(folder).read(folder / "v0.nii.gz")


def test_arrays_are_refused_with_the_command(tmp_path):
    (tmp_path / "n").mkdir()
    for i in range(3):
        np.save(tmp_path / "n" / f"v{i}.npy", LEVELS)
    with pytest.raises(UserError, match="holds 3 .npy files, which do not say where their voxels "
                       "are; `python preprocess.py --input .* --affine identity --size N"):
        volume_sets.find_set(tmp_path / "n", None, "--synthetic")
