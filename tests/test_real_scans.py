"""Real scans of other people's tools, there and back; nibabel is the oracle of their geometry."""
import nibabel as nib
import numpy as np
import pytest
from example_scans import centroid
from helpers import SHARED, script

from mri import manifest

FOLDER = SHARED / "scans"
SCANS = {   # shape, voxel sizes in mm, directions of the axes
    "BraTS2021_01306_t1": ((192, 192, 144), (1, 1, 1), "LPS"),
    "antspy_ch2": ((181, 217, 181), (1, 1, 1), "RAS"),
    "medddpm_sample_3": ((128, 128, 128), (1.5, 1.5, 1.5), "RAS"),
    "niivue_norm": ((256, 256, 256), (1, 1, 1), "LIA"),
    "nl_chris_PD": ((191, 256, 54), (0.8579, 0.8594, 2.4), "RAS"),
    "nl_spm152": ((207, 256, 215), (0.7375, 0.7375, 0.7375), "RAS"),
    "spm_single_subj_T1": ((91, 109, 91), (2, 2, 2), "LAS"),
}
SIDE = 48

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"{FOLDER} is absent: seven real scans, which are not ours to ship")


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory):
    """A data folder of the scans, cubes of it, and restored volumes."""
    folder = tmp_path_factory.mktemp("real")
    script("preprocess.py", "--input", FOLDER, "--output", folder / "data", "--size", SIDE,
           "--workers", 1)
    for name, flags in (("cubes", ()), ("restored", ("--restore-shape",))):
        script("postprocess.py", "--input", folder / "data", "--output", folder / name, *flags)
    return folder


def source_of(name):
    (path,) = FOLDER.glob(f"{name}.*")
    return nib.load(path)


def test_all_are_used(there_and_back):
    _, entries = manifest.read_manifest(there_and_back / "data")
    assert [entry["id"] for entry in entries] == sorted(SCANS)


@pytest.mark.parametrize("name", SCANS)
def test_shape_voxels_orientation_and_place_are_restored(there_and_back, name):
    source = source_of(name)
    restored = nib.load(there_and_back / "restored" / f"{name}.nii.gz")
    shape, sizes, codes = SCANS[name]
    assert restored.shape == shape == tuple(source.shape)
    assert np.allclose(restored.affine, source.affine, atol=1e-4)
    assert np.allclose(nib.affines.voxel_sizes(restored.affine), sizes, atol=1e-4)
    assert "".join(nib.aff2axcodes(restored.affine)) == codes
    array, back = (np.asarray(image.dataobj, np.float32) for image in (source, restored))
    agreement = correlation(array, back)
    assert agreement > 0.85                     # 48 voxels a side, of up to 256
    assert all(correlation(array, np.flip(back, axis)) < agreement for axis in range(3))


@pytest.mark.parametrize("name", SCANS)
def test_a_cube_lies_where_its_scan_lies(there_and_back, name):
    """The same field of view, and the same center of mass in world coordinates."""
    source = source_of(name)
    cube = nib.load(there_and_back / "cubes" / f"{name}.nii.gz")
    assert cube.shape == (SIDE,) * 3 and nib.aff2axcodes(cube.affine) == tuple("RAS")
    fields = [np.sort(bounds(image), axis=0) for image in (source, cube)]
    assert np.allclose(*fields, atol=1e-3)
    array, small = (np.asarray(image.dataobj, np.float32) for image in (source, cube))
    array = array - array.min()
    distance = np.linalg.norm(centroid(array, source.affine) - centroid(small, cube.affine))
    assert distance < 0.5 * max(nib.affines.voxel_sizes(cube.affine))


def correlation(a, b):
    return np.corrcoef(a[::3, ::3, ::3].ravel(), b[::3, ::3, ::3].ravel())[0, 1]


def bounds(image):
    """Two opposite corners of the field of view, mm, (2, 3)."""
    corners = np.array([[-0.5] * 3, np.array(image.shape) - 0.5])
    return nib.affines.apply_affine(image.affine, corners)
