"""Axis orders, cubes and resampling: world points stay in place, and SciPy as the oracle."""
import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, blob, centroid, oblique, turned
from helpers import AFFINE, brain
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry


@pytest.mark.parametrize("fit", geometry.FITS)
@pytest.mark.parametrize("order, flips", ORIENTATIONS)
def test_a_world_point_stays_in_place(order, flips, fit):
    base = oblique(AFFINE)
    point = apply_affine(base, [8, 14, 10])
    array, affine = turned(blob((20, 26, 22), base, point), base, order, flips)
    ras, ras_affine = geometry.to_ras(array, affine)
    assert nib.aff2axcodes(ras_affine) == ("R", "A", "S")
    grid_shape, grid_affine = geometry.ras_grid(array.shape, affine)
    assert np.allclose(grid_affine, ras_affine) and grid_shape == ras.shape
    cube = geometry.to_cube(ras, ras_affine, 24, fit)
    cube_affine = geometry.cube_affine(ras.shape, ras_affine, 24, fit)
    half_voxel = geometry.voxel_sizes(cube_affine).min() / 2
    assert np.linalg.norm(centroid(cube, cube_affine) - point) < half_voxel / 5
    back = geometry.from_ras(geometry.from_cube(cube, ras.shape, ras_affine, fit), affine)
    assert back.shape == array.shape
    assert np.linalg.norm(centroid(back, affine) - point) < half_voxel / 5
    assert np.corrcoef(back.ravel(), array.ravel())[0, 1] > 0.99


def test_axis_order_is_undone_exactly():
    array = brain()
    for order, flips in ORIENTATIONS:
        there, affine = turned(array, AFFINE, order, flips)
        ras, ras_affine = geometry.to_ras(there, affine)
        assert np.array_equal(ras, array) and np.allclose(ras_affine, AFFINE)
        assert np.array_equal(geometry.from_ras(ras, affine), there)


@pytest.mark.parametrize("shape, size", [((144, 176, 144), 128), ((20, 26, 22), 33)])
def test_stretch_is_scipys_zoom_with_aligned_edges(shape, size):
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    theirs = ndimage.zoom(array, np.array([size] * 3) / shape, order=1, mode="nearest",
                          grid_mode=True)
    assert np.abs(geometry.to_cube(array, np.eye(4), size, "stretch") - theirs).max() < 1e-5
    affine = geometry.cube_affine(shape, np.eye(4), size, "stretch")
    assert np.allclose(geometry.voxel_sizes(affine), np.array(shape) / size)
    # first and last edges meet
    assert np.allclose(apply_affine(affine, [-0.5] * 3), -0.5)
    assert np.allclose(apply_affine(affine, [size - 0.5] * 3), np.array(shape) - 0.5)


def test_the_papers_voxels():
    affine = geometry.cube_affine((144, 176, 144), np.eye(4), 128, "stretch")
    assert np.allclose(geometry.voxel_sizes(affine), [1.125, 1.375, 1.125])


def test_pad_keeps_voxels_cubic_and_equals_an_affine_resampling():
    array = brain()
    affine = geometry.cube_affine(array.shape, AFFINE, 30, "pad")
    # the longest edge: 22 voxels of 2 mm
    assert np.allclose(geometry.voxel_sizes(affine), 44 / 30)
    to_scan = np.linalg.inv(AFFINE) @ affine
    theirs = ndimage.affine_transform(array, to_scan[:3, :3], to_scan[:3, 3], (30, 30, 30),
                                      order=1, mode="grid-constant")
    # of 900: float32 positions
    assert np.abs(geometry.to_cube(array, AFFINE, 30, "pad") - theirs).max() < 0.05


def test_beyond_a_padded_scan_is_the_intensity_asked_for():
    cube = geometry.to_cube(np.ones((4, 8, 8), np.float32) * 5, np.eye(4), 8, "pad", outside=-1)
    assert cube[0, 4, 4] == -1 and cube[4, 4, 4] == 5


def test_arrays_are_the_same_in_any_memory_order():
    array = np.random.default_rng(0).random((20, 26, 22), dtype=np.float32)
    target = (16, 12, 14)
    variants = ((), ((1.2, 1, 0.8), "border"))
    whole = [geometry.resample(array, target, *args) for args in variants]
    for order, flips in ORIENTATIONS:
        flipped = [axis for axis in range(3) if flips[axis] < 0]
        stored = np.flip(array, flipped).transpose(order).copy()
        view = np.flip(stored.transpose(np.argsort(order)), flipped)
        assert np.array_equal(view, array)
        flat, axes, reverse = geometry.in_memory_order(view)
        assert flat.flags.c_contiguous and np.shares_memory(flat, view)
        assert np.array_equal(np.flip(flat, reverse).transpose(np.argsort(axes)), array)
        for theirs, args in zip(whole, variants):
            assert np.abs(geometry.resample(view, target, *args) - theirs).max() < 1e-5


def test_cohort_grid_is_the_median_about_the_median_center():
    shapes = [(10, 10, 10), (20, 20, 20), (20, 20, 40)]
    affines = [np.diag([1, 1, 1, 1.0]), np.diag([2, 2, 2, 1.0]), np.diag([2, 2, 2, 1.0])]
    cube, shape, affine = geometry.cohort_grid(shapes, affines, 10, "stretch")
    assert shape == (20, 20, 20)
    assert np.allclose(geometry.voxel_sizes(affine), 2)
    assert np.allclose(geometry.voxel_sizes(cube), 4)
    assert np.allclose(apply_affine(cube, [4.5] * 3), 19)
    assert np.allclose(apply_affine(affine, [9.5] * 3), 19)


def test_corner_distance():
    moved = AFFINE.copy()
    moved[:3, 3] += [3, 0, 4]
    assert geometry.max_corner_distance((20, 26, 22), AFFINE, moved) == 5
    mirrored = np.diag([-1, 1, 1, 1]) @ AFFINE          # x = -14…14.5 mm becomes 14…-14.5
    assert geometry.max_corner_distance((20, 26, 22), AFFINE, mirrored) == 29


def test_views_show_left_on_the_left_and_anterior_or_superior_up():
    assert list(geometry.VIEWS) == ["axial", "coronal", "sagittal"]
    volume = np.zeros((4, 5, 6))
    volume[1, 3, 4] = 1                                  # left, anterior, superior
    for view, depth, place in (("axial", 0.7, (1, 1)), ("coronal", 0.6, (1, 1)),
                               ("sagittal", 0.3, (1, 3))):
        image = geometry.view_slice(volume, view, depth)
        assert np.argwhere(image).tolist() == [list(place)], view
    assert geometry.view_slice(volume, "axial", 1.0).shape == (5, 4)


def test_affines_of_a_stated_orientation():
    for code in ("RAS", "LAS", "PIR", "SAL"):
        affine = geometry.affine_of_orientation((4, 6, 8), (1, 2, 3), code)
        assert nib.aff2axcodes(affine) == tuple(code)
        assert np.allclose(geometry.voxel_sizes(affine), [1, 2, 3])
        assert np.allclose(affine @ [1.5, 2.5, 3.5, 1], [0, 0, 0, 1])
    assert all(map(geometry.is_orientation, ("LAS", "las", "PIR")))
    assert not any(map(geometry.is_orientation, ("", "LA", "LRS", "LASS", "XYZ", "LAA")))


def test_axes_that_shrink_by_more_than_two_are_antialiased():
    """A pattern finer than the new grid disappears; it does not come out as a coarser one."""
    x = np.arange(128)
    wave = np.sin(2 * np.pi * x / 3)                               # 3 voxels a period
    array = np.broadcast_to(wave[:, None, None], (128, 16, 16)).astype(np.float32)
    cube = geometry.to_cube(array, np.diag([1, 8, 8, 1]), 16, "stretch")
    assert np.abs(cube[1:-1]).max() < 0.01                         # the ends see less of the wave
    assert np.abs(geometry.resample(array, (16,) * 3)).max() > 0.4
    smooth = np.broadcast_to(np.linspace(0, 1, 128)[:, None, None], array.shape)
    cube = geometry.to_cube(smooth, np.eye(4), 16, "stretch")
    assert np.allclose(cube[1:-1, 0, 0], geometry.resample(smooth, (16,) * 3)[1:-1, 0, 0],
                       atol=1e-3)


def test_axes_that_shrink_by_two_at_most_are_as_before():
    array = np.random.default_rng(0).random((32, 30, 20)).astype(np.float32)
    for fit in geometry.FITS:
        cube = geometry.to_cube(array, np.eye(4), 16, fit)
        expected = geometry.resample(array, (16,) * 3,
                                     geometry.cube_scale(array.shape, np.eye(4), fit))
        assert np.array_equal(cube, expected)


# --------------------------------------------------------------------------------------- any grid

def test_any_grid_is_the_cube_where_the_axes_agree():
    array = brain((40, 44, 36))
    grid = geometry.cube_affine(array.shape, AFFINE, 30, "stretch")
    cube = geometry.to_cube(array, AFFINE, 30, "stretch")
    assert np.abs(geometry.to_grid(array, AFFINE, (30,) * 3, grid) - cube).max() < 0.01
    # axes that shrink by more than 2 are smoothed in the same way
    grid = geometry.cube_affine(array.shape, AFFINE, 12, "stretch")
    cube = geometry.to_cube(array, AFFINE, 12, "stretch")
    assert np.abs(geometry.to_grid(array, AFFINE, (12,) * 3, grid) - cube).max() < 0.01


def test_a_world_point_stays_in_place_on_any_grid_and_back():
    point = apply_affine(AFFINE, [9, 14, 10])
    array = blob((20, 26, 22), AFFINE, point) + 2
    turned_grid = oblique(AFFINE, 25) @ np.diag([0.8, 0.9, 0.6, 1])
    turned_grid[:3, 3] += point - apply_affine(turned_grid, [14, 15, 16])
    there = geometry.to_grid(array, AFFINE, (28, 30, 32), turned_grid, outside=2)
    assert np.linalg.norm(centroid(there - 2, turned_grid) - point) < 0.1
    back = geometry.from_grid(there, turned_grid, array.shape, AFFINE, outside=2)
    assert np.linalg.norm(centroid(back - 2, AFFINE) - point) < 0.1
    assert back[0, 0, 0] == 2 and np.abs(back - array).max() < 0.15
