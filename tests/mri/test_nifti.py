"""NIfTI files: written as others read them, and bad ones refused in one line."""
import gzip

import nibabel as nib
import numpy as np
import pytest
from example_scans import bad_files, oblique, sheared
from helpers import AFFINE, brain, save_nifti

from mri import geometry, intensity, nifti, scan_formats, scan_stream
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


def test_a_sform_of_zeros_gives_way_to_a_valid_qform(tmp_path):
    path = save_nifti(tmp_path / "a.nii", brain(), AFFINE)
    raw = bytearray(path.read_bytes())
    raw[280:328] = bytes(48)                                       # the sform's three rows
    path.write_bytes(raw)
    assert int(nib.load(path).header["sform_code"]) == 1
    scan = nifti.read_volume(path)
    assert np.allclose(scan.affine, AFFINE, atol=1e-4) and scan.codes == (1, 1)
    assert scan.warnings == (
        "its sform is all zeros, although its code is 1; the qform is used",)
    raw[252:254] = bytes(2)                                        # qform code 0
    path.write_bytes(raw)
    with pytest.raises(UserError, match="singular"):
        nifti.read_volume(path)


@pytest.mark.parametrize("junk", [b"\r\n", b"junk" * 1000, bytes(range(1, 256)) * 2 ** 14])
def test_junk_after_the_gzip_stream_is_a_warning(tmp_path, junk):
    array = brain((40, 44, 40)).astype(np.int16)
    path = save_nifti(tmp_path / "a.nii.gz", array, AFFINE)
    good = path.read_bytes()
    path.write_bytes(good + junk)
    scan = nifti.read_volume(path)
    assert np.array_equal(scan.array, array)
    assert scan.warnings == (
        f"{len(junk)} bytes after its gzip stream are not gzip and were not read",)
    path.write_bytes(good + bytes(1024))                           # padding, as of a tape
    assert nifti.read_volume(path).warnings == ()
    damaged = bytearray(good)
    damaged[-8] ^= 1                                               # the checksum
    path.write_bytes(damaged + junk)
    with pytest.raises(UserError, match="truncated or damaged"):
        nifti.read_volume(path)
    path.write_bytes(good[:-9])
    with pytest.raises(UserError, match="truncated or damaged"):
        nifti.read_volume(path)


def test_streams_in_several_parts_are_one_file(tmp_path):
    array = brain((40, 44, 40)).astype(np.int16)
    path = save_nifti(tmp_path / "a.nii", array, AFFINE)
    plain = path.read_bytes()
    parts = [gzip.compress(plain[i:i + 30_000]) for i in range(0, len(plain), 30_000)]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(parts))
    scan = nifti.read_volume(tmp_path / "b.nii.gz")
    assert np.array_equal(scan.array, array) and scan.warnings == ()
    for block_bytes in (1, 700, 2 ** 20):
        blocks = scan_stream.GzipBlocks(tmp_path / "b.nii.gz", block_bytes)
        if block_bytes > 1:
            assert b"".join(blocks) == plain and blocks.junk_bytes == 0
    assert scan_stream.read_beginning(tmp_path / "b.nii.gz", 540) == plain[:540]


@pytest.mark.parametrize("endian", ["<", ">"])
def test_analyze_files_need_a_stated_orientation(tmp_path, endian):
    array = brain().astype(np.int16)
    header = nib.AnalyzeImage.header_class(endianness=endian)
    header.set_data_dtype(array.dtype.newbyteorder(endian))
    header.set_data_shape(array.shape)
    header.set_zooms((1.5, 1.25, 2))
    nib.save(nib.AnalyzeImage(array, None, header), tmp_path / "a.img")
    with pytest.raises(UserError, match="does not say where left is; .*--orientation LAS"):
        scan_formats.read_scan(tmp_path / "a.hdr")
    scan = scan_formats.read_scan(tmp_path / "a.hdr", orientation="LAS")
    assert np.array_equal(scan.array, array) and scan.codes == (2, 2)
    assert nib.aff2axcodes(scan.affine) == tuple("LAS")
    assert np.allclose(geometry.voxel_sizes(scan.affine), [1.5, 1.25, 2])
    center = scan.affine @ [9.5, 12.5, 10.5, 1]
    assert np.allclose(center, [0, 0, 0, 1])
    save_nifti(tmp_path / "b.nii", array, AFFINE)                  # which says so itself
    assert np.allclose(scan_formats.read_scan(tmp_path / "b.nii", orientation="LAS").affine, AFFINE)
