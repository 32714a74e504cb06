"""Samples as files, written in a thread."""
import nibabel as nib
import numpy as np
import pytest

from mri import mosaic, mosaic_files, sample_writer
from mri.manifest import HEADER_KEYS

HEADER = dict.fromkeys(HEADER_KEYS) | {"size": 16, "layout": "rgb", "affine": np.diag([2, 2, 2, 1])}


def test_mosaic_and_nifti_hold_the_same_volume(tmp_path):
    (tmp_path / "mosaics").mkdir()
    (tmp_path / "nifti").mkdir()
    volumes = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16)).astype(np.uint8)
    with sample_writer.SampleWriter(tmp_path, HEADER, "made by {}".format, max_waiting=1) as writer:
        for i, volume in enumerate(volumes):
            writer.write(i, mosaic.tile(volume, "rgb"))
    for i, volume in enumerate(volumes):
        pixels = mosaic_files.read_mosaic(tmp_path / "mosaics" / f"{i:06d}.png", HEADER)
        assert np.array_equal(mosaic.untile(pixels, 16, "rgb"), volume)
        image = nib.load(sample_writer.nifti_path(tmp_path, i))
        assert np.array_equal(image.dataobj.get_unscaled(), volume)
        assert image.header["descrip"].item() == f"made by {i}".encode()


def test_an_error_in_the_thread_ends_the_work(tmp_path):
    with pytest.raises(OSError), sample_writer.SampleWriter(
            tmp_path / "none", HEADER, "", max_waiting=0) as writer:
        writer.write(0, np.zeros((48, 48, 3), np.uint8))
