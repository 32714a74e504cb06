import numpy as np
import pytest

from metrics.psnr import psnr, slice_psnr


def test_psnr_is_symmetric_and_has_no_cap():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
    direct = -10 * np.log10(np.mean((a / 255 - b / 255) ** 2))
    assert psnr(a, b) == pytest.approx(direct) == psnr(b, a)
    assert psnr(a, a) == float("inf")


def test_slice_psnr_leaves_out_empty_and_exact_slices():
    real, fake = np.zeros((2, 3, 4, 4), np.uint8)
    real[1], fake[1] = 100, 100
    real[2], fake[2] = 100, 110
    fake[0] = 9  # of a slice that is empty in the real volume
    assert slice_psnr(real, fake, 0) == pytest.approx(20 * np.log10(25.5))
    assert slice_psnr(real[:2], real[:2], 0) == float("inf")
