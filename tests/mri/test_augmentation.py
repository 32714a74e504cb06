"""Variants of volumes: each property by itself, exact where that is possible."""
import numpy as np
import pytest
from helpers import related
from scipy import ndimage

from mri import augmentation, mosaic
from mri.augmentation import Augmentation, augment

SIZES = (1.0, 2.0, 0.5)     # voxels, mm


class Draws:
    """A generator whose uniform draws are given."""

    def __init__(self, flip=1.0, angles=(0, 0, 0), scales=(0, 0, 0), shift=(0, 0, 0), gamma=0.0):
        self._flip = flip
        self._draws = [np.array(angles, float), np.array(scales, float), np.array(shift, float),
                       gamma]

    def random(self):
        return self._flip

    def uniform(self, low, high, count=None):
        assert (low, high) == (-1, 1)
        return self._draws.pop(0)


@pytest.fixture
def volume():
    return np.rint(255 * related(1, 16)[0]).astype(np.uint8)


def test_nothing_changes_without_ranges(volume):
    assert Augmentation().is_identity
    assert np.array_equal(augment(volume, SIZES, Augmentation(), np.random.default_rng(0)), volume)


def test_a_flip_swaps_left_and_right(volume):
    flip = Augmentation(flip=0.5)
    assert np.array_equal(augment(volume, SIZES, flip, Draws(flip=0.4)), volume[::-1])
    assert np.array_equal(augment(volume, SIZES, flip, Draws(flip=0.6)), volume)
    share = np.mean([np.array_equal(augment(volume, SIZES, flip, np.random.default_rng(i)), volume)
                     for i in range(200)])
    assert 0.4 < share < 0.6


def test_a_shift_is_in_mm(volume):
    moved = augment(volume, SIZES, Augmentation(shift=2.0), Draws(shift=(1, -1, 0.5)))
    expected = np.zeros_like(volume)
    expected[2:, :-1, 2:] = volume[:-2, 1:, :-2]    # 2 mm, -2 mm and 1 mm
    assert np.array_equal(moved, expected)


def test_a_rotation_by_a_quarter_turn_is_exact_where_voxels_are_square(volume):
    moved = augment(volume, (1, 1, 1), Augmentation(rotate=90.0), Draws(angles=(0, 0, 1)))
    # x goes to y, and y to -x
    expected = np.rot90(volume, 1, (0, 1))
    inside = (slice(1, -1),) * 3                    # at the faces rounding decides what is outside
    assert np.array_equal(moved[inside], expected[inside])


def test_a_scale_enlarges_about_the_center(volume):
    moved = augment(volume, SIZES, Augmentation(scale=0.25), Draws(scales=(1, 0, -1)))
    center = 7.5
    at = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"))
    at[0] = center + (at[0] - center) / 1.25
    at[2] = center + (at[2] - center) / 0.75
    expected = np.rint(ndimage.map_coordinates(volume.astype(np.float32), at, order=1))
    assert np.abs(moved.astype(int) - expected).max() <= 1


def test_a_rotation_keeps_lengths_in_mm():
    """A rod of 20 mm along the second axis (2 mm voxels) becomes one along the first (1 mm)."""
    rod = np.zeros((33, 33, 33), np.uint8)
    rod[16, 11:22, 16] = 200
    moved = augment(rod, SIZES, Augmentation(rotate=90.0), Draws(angles=(0, 0, 1)))
    along = np.flatnonzero(moved[:, 16, 16] > 100)
    assert along.min() == 6 and along.max() == 26


def test_gamma_keeps_black_and_white(volume):
    volume[0, 0, :2] = 0, 255
    brighter = augment(volume, SIZES, Augmentation(gamma=np.log(2)), Draws(gamma=-1))
    assert np.array_equal(brighter, np.rint(255 * np.sqrt(volume / 255)))
    assert list(brighter[0, 0, :2]) == [0, 255]


def test_the_mosaic_of_a_variant_depends_on_its_seed(volume):
    header = {"size": 16, "layout": "rgb", "affine": np.diag([*SIZES, 1]).tolist()}
    ranges = Augmentation(flip=0.5, rotate=10, scale=0.1, shift=2, gamma=0.2)
    pixels = mosaic.tile(volume, "rgb")
    one, again, other = (augmentation.augmented_mosaic(pixels, header, ranges, [3, k])
                         for k in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(mosaic.untile(one, 16, "rgb"),
                          augment(volume, SIZES, ranges, np.random.default_rng([3, 1])))
    assert "0.1" in ranges.key and ranges.key != Augmentation().key
