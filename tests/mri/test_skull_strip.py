"""Skull stripping: the conformed head, the mask on the scan's grid, the folder that holds it."""
import numpy as np
import pytest

from mri import skull_strip


def test_volume_of_a_mask():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:3, 1:3, 1:4] = True
    assert skull_strip.volume_ml(mask, np.diag([-2, 3, 5, 1])) == pytest.approx(0.36)
