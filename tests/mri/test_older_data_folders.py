"""Data and samples folders of an earlier version (tests/golden/v2, see make.py there) are read."""
import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers import GOLDEN, script
from PIL import Image

from mri import geometry, manifest, mosaic, mosaic_files

V2 = GOLDEN / "v2"
IDS = [f"sub-{i:02d}_T1w" for i in range(5)]


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The same scans preprocessed by this version, with the flags of make.py."""
    folder = tmp_path_factory.mktemp("again")
    script("preprocess.py", "--input", V2 / "scans", "--output", folder / "data", "--size", 16,
           "--split", "3:2", "--workers", 1, "--labels", V2 / "labels.tsv",
           "--label-column", "group", "--crop", "brain")
    return folder / "data"


def test_the_manifests_values():
    header, entries = manifest.read_manifest(V2 / "data")
    assert header == {
        "size": 16, "layout": "rgb", "grid": 3, "fit": "stretch", "window_percentiles": [0.0, 99.9],
        "affine": [[1.6875, 0, 0, -13.90625], [0, 1.5625, 0, -11.84375], [0, 0, 2, -16],
                   [0, 0, 0, 1]],
        "source_shape": [18, 20, 16],
        "source_affine": [[1.5, 0, 0, -14], [0, 1.25, 0, -12], [0, 0, 2, -16], [0, 0, 0, 1]],
        "classes": ["AD", "CN"], "preparation": {"crop": "brain", "crop_margin": 5.0}}
    assert [v["id"] for v in entries] == IDS
    assert [v["class"] for v in entries] == [1, 0, 1, 0, 1]
    assert [v["split"] for v in entries].count("train") == 3
    assert entries[0] == {
        "id": "sub-00_T1w", "subject": "sub-00", "source": "/tmp/v2/scans/sub-00_T1w.nii.gz",
        "shape": [18, 20, 16], "affine": header["source_affine"],
        "window": [0.0, 651.2050000000045], "crop": [[0, 18], [0, 20], [0, 16]], "outside": 0.0,
        "class": 1, "split": "test"}


def test_the_same_scans_give_the_same_folder(again):
    header, entries = manifest.read_manifest(V2 / "data")
    new_header, new_entries = manifest.read_manifest(again)
    assert new_header == header
    # the split is by another rule now: by a hash of seed and subject
    assert ([{**v, "source": None, "split": None} for v in new_entries]
            == [{**v, "source": None, "split": None} for v in entries])
    assert [v["id"] for v in new_entries if v["split"] == "test"] == ["sub-00_T1w", "sub-02_T1w"]
    old = mosaic_files.read_mosaics(V2 / "data", header, entries)
    assert np.array_equal(mosaic_files.read_mosaics(again, new_header, new_entries), old)
    for i, v in enumerate(entries):
        with Image.open(V2 / "data" / "mosaics" / f"{v['id']}.png") as image:
            assert np.array_equal(np.asarray(image), old[i])
    table = (V2 / "data" / "qc" / "qc.tsv").read_text()
    assert (again / "qc" / "qc.tsv").read_text() == table


@pytest.mark.parametrize("options", [(), ("--restore-shape",)])
def test_postprocess(again, tmp_path, options):
    script("postprocess.py", "--input", V2 / "data", "--output", tmp_path / "old", *options)
    script("postprocess.py", "--input", again, "--output", tmp_path / "new", *options)
    for name in IDS:
        path = tmp_path / "old" / f"{name}.nii.gz"
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()
        image = nib.load(path)
        source = nib.load(V2 / "scans" / path.name)
        if options:
            assert image.shape == source.shape and np.allclose(image.affine, source.affine)
            restored, array = image.get_fdata(), source.get_fdata()
            assert np.corrcoef(restored.ravel(), array.ravel())[0, 1] > 0.96
        else:
            assert image.shape == (16, 16, 16)


def test_a_samples_folder(tmp_path):
    header, entries = manifest.read_manifest(V2 / "samples")
    data_header, _ = manifest.read_manifest(V2 / "data")
    assert entries == []
    assert header == {key: data_header[key] for key in header}
    assert set(header) - {"preparation"} == set(manifest.HEADER_KEYS)
    shutil.copytree(V2 / "samples", tmp_path / "samples")
    script("postprocess.py", "--input", tmp_path / "samples", "--output", tmp_path / "n")
    for name in ("000000", "000001"):
        pixels = mosaic_files.read_mosaic(
            mosaic_files.mosaic_path(V2 / "samples", name), header)
        image = nib.load(tmp_path / "n" / f"{name}.nii.gz")
        cube = mosaic.untile(pixels, header["size"], header["layout"])
        assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), cube)
        assert np.allclose(geometry.voxel_sizes(image.affine), [1.6875, 1.5625, 2])
        written = nib.load(V2 / "samples" / "nifti" / f"{name}.nii.gz")
        assert np.array_equal(written.get_fdata(), image.get_fdata())
