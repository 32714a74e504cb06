"""What is checked of every scan: enough values, no NaN."""
import numpy as np
import pytest
from helpers import AFFINE, brain, save_nifti

from mri import scan_formats, scan_volume
from utils.errors import UserError


@pytest.mark.parametrize("values, poor", [((0, 1), True), ((0, 1, 2), True), ((0, 1, 2, 4), False)])
def test_files_of_two_or_three_values_are_no_scans(values, poor):
    array = np.random.default_rng(0).choice(values, (30, 40, 20)).astype(np.float32)
    assert scan_volume.has_few_values(array) is poor
    assert scan_volume.has_few_values(array[::-1].transpose(2, 0, 1)) is poor
    assert scan_volume.has_few_values(brain()) is False


def test_values_that_a_sample_misses_count():
    array = np.zeros((60, 60, 60), np.float32)
    array[1, 2, 3] = 1
    assert scan_volume.has_few_values(array) is True
    array[5, 5, 1:4] = 2, 3, 4
    assert scan_volume.has_few_values(array) is False


def test_nan_is_refused_or_zero(tmp_path):
    array = brain()
    array[0, 0, :5] = np.nan
    path = save_nifti(tmp_path / "a.nii.gz", array, AFFINE, np.float32)
    with pytest.raises(UserError, match="5 voxels are NaN .*; preprocess.py --nan zero sets"):
        scan_formats.read_scan(path)
    scan = scan_formats.read_scan(path, nan_to_zero=True)
    assert np.array_equal(scan.array, np.nan_to_num(array))
    assert scan.warnings == ("5 voxels were NaN, now 0 (--nan zero)",)
    array[1, 1, 1] = np.inf
    save_nifti(path, array, AFFINE, np.float32)
    with pytest.raises(UserError, match="1 voxels are NaN or infinite .*replace them first"):
        scan_formats.read_scan(path, nan_to_zero=True)
