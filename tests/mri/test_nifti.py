"""NIfTI files: written as others read them, and bad ones refused in one line."""
import nibabel as nib
import numpy as np
import pytest
from example_scans import bad_files, oblique, sheared
from helpers import AFFINE, brain, save_nifti

from mri import intensity, nifti
from utils.errors import UserError


def test_written_nifti(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (7, 8, 9)).astype(np.uint8)
    affine = oblique(AFFINE)
    path = tmp_path / "a.nii.gz"
    nifti.write_nifti(path, volume, affine)
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), volume)
    assert image.get_data_dtype() == np.uint8
    assert np.isclose(image.dataobj.slope, 1 / 255) and image.dataobj.inter == 0
    assert np.array_equal(intensity.to_uint8(image.get_fdata(), (0, 1)), volume)
    assert np.allclose(image.get_sform(), affine, atol=1e-5)
    assert np.allclose(image.get_qform(), affine, atol=1e-4)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    first = path.read_bytes()
    nifti.write_nifti(path, volume, affine)
    assert path.read_bytes() == first
    nifti.write_nifti(path, intensity.from_uint8(volume, (-3, 9)), affine)
    assert nib.load(path).get_data_dtype() == np.float32
    assert np.allclose(nib.load(path).get_fdata(), volume / 255 * 12 - 3, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_sheared_affines_are_not_given_to_the_qform(tmp_path):
    nifti.write_nifti(tmp_path / "a.nii.gz", brain(), sheared(AFFINE), (3, 2))
    image = nib.load(tmp_path / "a.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (3, 0)
    assert np.allclose(image.affine, sheared(AFFINE), atol=1e-5)


def test_bad_files_are_named_in_one_line(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=words) as e:
            nifti.read_nifti(tmp_path / name)
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="no such file"):
        nifti.read_nifti(tmp_path / "missing.nii")
    array, affine = nifti.read_nifti(tmp_path / "good.nii.gz")
    assert array.dtype == np.float32 and np.array_equal(array, brain().astype(np.int16))
    assert np.allclose(affine, AFFINE)


def test_one_volume_of_four_dimensions_is_a_scan(tmp_path):
    path = save_nifti(tmp_path / "a.nii", brain()[..., None], AFFINE)
    assert nifti.read_nifti(path)[0].shape == (20, 26, 22)


def test_warnings_of_read_nifti_go_to_stderr(tmp_path, capsys):
    image = nib.Nifti1Image(brain(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 12.5
    image.set_sform(AFFINE, 1)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "a.nii")
    assert np.allclose(nifti.read_nifti(tmp_path / "a.nii")[1], AFFINE)
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'a.nii'}: sform and qform disagree by up to 12.5 mm; the sform is "
        "used\n")


def test_an_affine_is_read_without_the_voxels(tmp_path):
    path = save_nifti(tmp_path / "a.nii", np.stack([brain()] * 2, -1), AFFINE)
    path.write_bytes(path.read_bytes()[:400])
    affine, warnings = nifti.read_affine(path)
    assert np.allclose(affine, AFFINE) and warnings == ()
    with pytest.raises(UserError, match="truncated or damaged"):
        nifti.read_volume(path, 0)
