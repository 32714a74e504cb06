"""Windows and percentiles: NumPy as the oracle."""
import numpy as np
import pytest
from example_scans import ORIENTATIONS

from mri import intensity


def test_window_and_its_inverse():
    array = np.arange(1001, dtype=np.float32) - 200
    window = intensity.intensity_window(array, (0, 100))
    assert window == (-200, 800)
    u = intensity.to_uint8(array, window)
    assert u[0] == 0 and u[-1] == 255 and u[500] == 128     # 127.5 rounds to even
    assert u.dtype == np.uint8
    assert np.abs(intensity.from_uint8(u, window) - array).max() <= 1000 / 255 / 2 + 1e-3
    assert intensity.to_uint8(array, (0, 100))[[0, -1]].tolist() == [0, 255]   # clipped
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(intensity.to_uint8(intensity.from_uint8(levels), (0, 1)), levels)
    with pytest.raises(ValueError, match="are both 0"):
        intensity.intensity_window(np.r_[np.zeros(99), 1], (0, 50))


@pytest.mark.parametrize("q", [0, 0.1, 1, 2.5, 37, 50, 75, 99, 99.5, 99.9, 99.99, 100])
def test_percentile_is_bitwise_identical_to_numpys(q):
    rng = np.random.default_rng(0)
    scan = np.where(rng.random(200_000) < 0.6, 0, rng.gamma(4, 90, 200_000)).astype(np.float32)
    ascending = np.sort(scan)
    two_values = np.r_[np.zeros(150_000), np.full(50_000, 7.5)].astype(np.float32)[::-1].copy()
    for values in (scan, ascending, ascending[::-1].copy(), two_values, -scan, scan[:1], scan[:2],
                   scan[:30], np.rint(scan)):
        assert intensity.percentile(values, q) == np.percentile(values, [q])[0], len(values)


def test_a_window_is_the_same_in_any_memory_order():
    array = np.random.default_rng(0).random((20, 26, 22), dtype=np.float32)
    window = intensity.intensity_window(array, (3, 99))
    for order, flips in ORIENTATIONS:
        flipped = [axis for axis in range(3) if flips[axis] < 0]
        stored = np.flip(array, flipped).transpose(order).copy()
        view = np.flip(stored.transpose(np.argsort(order)), flipped)
        assert intensity.intensity_window(view, (3, 99)) == window
