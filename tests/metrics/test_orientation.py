"""Volumes that lie otherwise than the real ones."""
import numpy as np
import pytest
from helpers import brain

from metrics.orientation import orientation_warnings
from metrics.statistic import Pool
from metrics.volume_sets import VolumeSet

SIDE = 16


def volumes(count, first):
    """Brains of one cohort, brighter in front and above, narrow from left to right."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    shape = (np.abs(x) < 0.6) * (z > -0.6) * (1 + 0.6 * y) * (1 + 0.6 * z)
    made = np.stack([shape * brain((SIDE,) * 3, seed=first + i) for i in range(count)])
    return np.clip(made / 2000 * 255, 0, 255).astype(np.uint8)


def warnings(tmp_path, synthetic):
    def a_set(flag, array):
        ids = [str(i) for i in range(len(array))]
        return VolumeSet(flag, "folder", None, ids, ids, SIDE, np.ones(3), array.__getitem__)

    pool = Pool(a_set("--real", volumes(6, 0)), a_set("--synthetic", synthetic))
    pool.load(1, tmp_path)
    return orientation_warnings(pool)


def test_volumes_that_lie_alike(tmp_path):
    assert warnings(tmp_path, volumes(6, 50)) == []


@pytest.mark.parametrize("turn, name", [
    (lambda v: v.transpose(0, 3, 2, 1), "zyx"),
    (lambda v: v.transpose(0, 2, 3, 1), "yzx"),
    (lambda v: v[:, :, :, ::-1], "RAI"),
    (lambda v: v.transpose(0, 3, 2, 1)[:, ::-1], "IAR")])
def test_the_order_that_fits_is_named(tmp_path, turn, name):
    (line,) = warnings(tmp_path, np.ascontiguousarray(turn(volumes(6, 50))))
    assert line.startswith("the synthetic volumes look turned: their mean agrees with the real one "
                           "by 0.")
    assert line.endswith(f"with --synthetic-axes {name}")
