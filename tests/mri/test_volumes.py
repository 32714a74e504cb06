
import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, bad_files, blob, centroid, oblique, turned
from helpers import AFFINE, brain, save_nifti
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry, intensity, nifti, scans
from utils.errors import UserError


@pytest.mark.parametrize("fit", geometry.FITS)
@pytest.mark.parametrize("order, flips", ORIENTATIONS)
def test_a_world_point_stays_where_it_was(order, flips, fit):
    base = oblique(AFFINE)
    point = apply_affine(base, [8, 14, 10])
    array, affine = turned(blob((20, 26, 22), base, point), base, order, flips)
    ras, ras_affine = geometry.to_ras(array, affine)
    assert nib.aff2axcodes(ras_affine) == ("R", "A", "S")
    assert np.allclose(geometry.ras_grid(array.shape, affine)[1], ras_affine) and geometry.ras_grid(array.shape, affine)[0] == ras.shape
    cube, cube_affine = geometry.to_cube(ras, ras_affine, 24, fit), geometry.cube_affine(ras.shape, ras_affine, 24, fit)
    half = geometry.voxel_sizes(cube_affine).min() / 2
    assert np.linalg.norm(centroid(cube, cube_affine) - point) < half / 5
    back = geometry.from_ras(geometry.from_cube(cube, ras.shape, ras_affine, fit), affine)
    assert back.shape == array.shape
    assert np.linalg.norm(centroid(back, affine) - point) < half / 5
    assert np.corrcoef(back.ravel(), array.ravel())[0, 1] > 0.99


def test_axis_order_is_undone_to_the_bit():
    array = brain()
    for order, flips in ORIENTATIONS:
        there, affine = turned(array, AFFINE, order, flips)
        ras, ras_affine = geometry.to_ras(there, affine)
        assert np.array_equal(ras, array) and np.allclose(ras_affine, AFFINE)
        assert np.array_equal(geometry.from_ras(ras, affine), there)


@pytest.mark.parametrize("shape, size", [((144, 176, 144), 128), ((20, 26, 22), 33)])
def test_stretch_is_scipys_zoom_with_aligned_edges(shape, size):
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    theirs = ndimage.zoom(array, np.array([size] * 3) / shape, order=1, mode="nearest", grid_mode=True)
    assert np.abs(geometry.to_cube(array, np.eye(4), size, "stretch") - theirs).max() < 1e-5
    affine = geometry.cube_affine(shape, np.eye(4), size, "stretch")
    assert np.allclose(geometry.voxel_sizes(affine), np.array(shape) / size)
    assert np.allclose(apply_affine(affine, [-0.5] * 3), -0.5)                              # first edges meet
    assert np.allclose(apply_affine(affine, [size - 0.5] * 3), np.array(shape) - 0.5)       # last edges meet


def test_the_papers_voxels():
    affine = geometry.cube_affine((144, 176, 144), np.eye(4), 128, "stretch")
    assert np.allclose(geometry.voxel_sizes(affine), [1.125, 1.375, 1.125])


def test_pad_keeps_voxels_cubic_and_equals_an_affine_resampling():
    array = brain()
    affine = geometry.cube_affine(array.shape, AFFINE, 30, "pad")
    assert np.allclose(geometry.voxel_sizes(affine), 44 / 30)                # the longest edge: 22 voxels of 2 mm
    to_scan = np.linalg.inv(AFFINE) @ affine
    theirs = ndimage.affine_transform(array, to_scan[:3, :3], to_scan[:3, 3], (30, 30, 30), order=1, mode="grid-constant")
    assert np.abs(geometry.to_cube(array, AFFINE, 30, "pad") - theirs).max() < 0.05  # of 900: float32 positions


def test_window_and_its_inverse():
    array = np.arange(1001, dtype=np.float32) - 200
    window = intensity.intensity_window(array, (0, 100))
    assert window == (-200, 800)
    u = intensity.to_uint8(array, window)
    assert u[0] == 0 and u[-1] == 255 and u[500] == 128 and u.dtype == np.uint8  # 127.5 rounds to even
    assert np.abs(intensity.from_uint8(u, window) - array).max() <= 1000 / 255 / 2 + 1e-3
    assert intensity.to_uint8(array, (0, 100))[[0, -1]].tolist() == [0, 255]   # clipped
    assert np.array_equal(intensity.to_uint8(intensity.from_uint8(np.arange(256, dtype=np.uint8)), (0, 1)), np.arange(256))
    with pytest.raises(ValueError, match="are both 0"):
        intensity.intensity_window(np.r_[np.zeros(99), 1], (0, 50))


@pytest.mark.parametrize("q", [0, 0.1, 1, 2.5, 37, 50, 75, 99, 99.5, 99.9, 99.99, 100])
def test_percentile_is_numpys_to_the_bit(q):
    rng = np.random.default_rng(0)
    brain = np.where(rng.random(200_000) < 0.6, 0, rng.gamma(4, 90, 200_000)).astype(np.float32)
    sorted_up = np.sort(brain)
    lumpy = np.r_[np.zeros(150_000), np.full(50_000, 7.5)].astype(np.float32)[::-1].copy()
    for values in (brain, sorted_up, sorted_up[::-1].copy(), lumpy, -brain, brain[:1], brain[:2], brain[:30], np.rint(brain)):
        assert intensity.percentile(values, q) == np.percentile(values, [q])[0], len(values)


def test_arrays_are_the_same_however_they_lie_in_memory():
    array, target = np.random.default_rng(0).random((20, 26, 22), dtype=np.float32), (16, 12, 14)
    whole = geometry.resample(array, target), geometry.resample(array, target, (1.2, 1, 0.8), "border")
    for order, flips in ORIENTATIONS:
        flipped = [axis for axis in range(3) if flips[axis] < 0]
        view = np.flip(np.flip(array, flipped).transpose(order).copy().transpose(np.argsort(order)), flipped)
        assert np.array_equal(view, array)
        flat = geometry.in_memory_order(view)[0]
        assert flat.flags.c_contiguous and np.shares_memory(flat, view)
        assert intensity.intensity_window(view, (3, 99)) == intensity.intensity_window(array, (3, 99))
        for theirs, args in zip(whole, ((), ((1.2, 1, 0.8), "border"))):
            assert np.abs(geometry.resample(view, target, *args) - theirs).max() < 1e-5


def test_cohort_grid_is_the_median_about_the_median_centre():
    shapes = [(10, 10, 10), (20, 20, 20), (20, 20, 40)]
    affines = [np.diag([1, 1, 1, 1.0]), np.diag([2, 2, 2, 1.0]), np.diag([2, 2, 2, 1.0])]
    cube, shape, affine = geometry.cohort_grid(shapes, affines, 10, "stretch")
    assert shape == (20, 20, 20) and np.allclose(geometry.voxel_sizes(affine), 2) and np.allclose(geometry.voxel_sizes(cube), 4)
    assert np.allclose(apply_affine(cube, [4.5] * 3), 19) and np.allclose(apply_affine(affine, [9.5] * 3), 19)


def test_written_nifti(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (7, 8, 9)).astype(np.uint8)
    affine = oblique(AFFINE)
    path = tmp_path / "a.nii.gz"
    nifti.write_nifti(path, volume, affine)
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), volume)
    assert image.get_data_dtype() == np.uint8 and np.isclose(image.dataobj.slope, 1 / 255) and image.dataobj.inter == 0
    assert np.array_equal(intensity.to_uint8(image.get_fdata(), (0, 1)), volume)
    assert np.allclose(image.get_sform(), affine, atol=1e-5) and np.allclose(image.get_qform(), affine, atol=1e-4)
    assert image.header["sform_code"] == image.header["qform_code"] == 1 and image.header.get_xyzt_units()[0] == "mm"
    first = path.read_bytes()
    nifti.write_nifti(path, volume, affine)
    assert path.read_bytes() == first
    nifti.write_nifti(path, intensity.from_uint8(volume, (-3, 9)), affine)
    assert nib.load(path).get_data_dtype() == np.float32
    assert np.allclose(nib.load(path).get_fdata(), volume / 255 * 12 - 3, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]




def test_bad_files_are_named_in_one_line(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=words) as e:
            nifti.read_nifti(tmp_path / name)
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="no such file"):
        nifti.read_nifti(tmp_path / "missing.nii")
    array, affine = nifti.read_nifti(tmp_path / "good.nii.gz")
    assert array.dtype == np.float32 and np.array_equal(array, brain().astype(np.int16)) and np.allclose(affine, AFFINE)


def test_one_volume_of_four_dimensions_is_a_scan(tmp_path):
    path = save_nifti(tmp_path / "a.nii", brain()[..., None], AFFINE)
    assert nifti.read_nifti(path)[0].shape == (20, 26, 22)


def touch(*paths):
    for p in paths:
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(b"")


def test_find_scans_in_a_bids_tree(tmp_path):
    touch(*(tmp_path / p for p in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz",
                                   "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii", "derivatives/x/sub-01_desc-a_T1w.nii.gz",
                                   "sub-02/func/sub-02_bold.nii.gz")))
    found = scans.find_scans(tmp_path)
    assert [(s.id, s.subject) for s in found] == [("sub-01_T1w", "sub-01"), ("sub-02_ses-1_T1w", "sub-02")]


def test_find_scans_in_a_folder_by_glob_and_by_tsv(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "a.nii.gz", tmp_path / "x" / "c.nii.gz", tmp_path / "notes.txt", tmp_path / "._a.nii.gz")
    assert [(s.id, s.subject) for s in scans.find_scans(tmp_path)] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert [s.id for s in scans.find_scans(tmp_path / "*.nii*")] == ["a", "b"]
    assert [s.id for s in scans.find_scans(tmp_path / "a.nii.gz")] == ["a"]
    (tmp_path / "list.tsv").write_text("path\tid\tparticipant_id\na.nii.gz\tone\tp1\nx/c.nii.gz\ttwo\tp1\n")
    found = scans.find_scans(tmp_path / "list.tsv")
    assert [(s.id, s.subject, s.path) for s in found] == [("one", "p1", tmp_path / "a.nii.gz"), ("two", "p1", tmp_path / "x" / "c.nii.gz")]


def test_find_scans_errors(tmp_path):
    with pytest.raises(UserError, match="no .nii or .nii.gz"):
        scans.find_scans(tmp_path)
    with pytest.raises(UserError, match="no .nii or .nii.gz"):
        scans.find_scans(tmp_path / "none*")
    touch(tmp_path / "p" / "scan.nii", tmp_path / "q" / "scan.nii")
    with pytest.raises(UserError, match="has the id 'scan' of .*TSV"):
        scans.find_scans(tmp_path)
    (tmp_path / "l.tsv").write_text("file\nx\n")
    with pytest.raises(UserError, match="no column `path`"):
        scans.find_scans(tmp_path / "l.tsv")
    (tmp_path / "l.tsv").write_text("path\tid\na.nii\t../../evil\n")
    with pytest.raises(UserError, match="cannot name a file"):
        scans.find_scans(tmp_path / "l.tsv")
    with pytest.raises(UserError, match="no such file"):
        scans.find_scans(tmp_path / "none.tsv")
