import numpy as np
import pytest
from scipy import ndimage

from metrics import memorization, statistic
from metrics.options import MetricOptions
from metrics.volume_sets import VolumeSet


def test_correlations_and_shares():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 5, 5, 5)).astype(np.uint8)
    y = rng.integers(0, 256, (4, 5, 5, 5)).astype(np.uint8)
    y[2] = x[1]
    c = memorization.correlations(x, y)
    assert np.allclose(c, np.corrcoef(x.reshape(3, -1), y.reshape(4, -1))[:3, 3:])
    assert np.isclose(c[1, 2], 1)
    distance = np.array([1.0, 2, 3, 4, 0.5, 1.1, 9, 2.5])
    a = np.array([[1.0] * 4 + [0] * 4, [2.0, 0, 0, 2] + [0] * 4])
    b = np.array([[0.0] * 4 + [1] * 4, [0.0] * 4 + [1, 3, 0, 0]])
    # number 0.3 (4 + 1) = 1.5 of 1 2 3 4 in order: 1.5; of 1 1 4 4: 1. The 5th percentile of so
    # few is the smallest of them
    found = memorization.share_closer(distance, distance, a, b, 0.3)
    assert np.allclose(found, [2 / 4, 1 / 4])
    found = memorization.share_closer(distance, distance, a, b)
    assert np.allclose(found, [1 / 4, 1 / 4])


def test_share_of_a_similar_set_is_the_target():
    """Volumes that are as far from the training set as real ones: 5% of them are closer than the
    threshold, or 1 in n + 1 if there are few real ones."""
    rng = np.random.default_rng(0)
    for n in (4, 32):
        a = np.pad(np.ones((1, n)), ((0, 0), (0, 50)))
        shares = [memorization.share_closer(d, d, a, 1 - a)[0] for d in rng.random((2000, n + 50))]
        assert np.isclose(np.mean(shares), max(0.05, 1 / (n + 1)), atol=0.012)


def smooth_volumes(n, seed):
    noise = np.random.default_rng(seed).normal(size=(n, 16, 16, 16))
    x = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    return np.clip(128 + 40 * x / x.std(), 0, 255).astype(np.uint8)


def copies_entry(real, synthetic, train):
    """What the report says of copies, of volumes r0, r1, …, s0, … and t0, …"""
    def a_set(volumes, letter):
        ids = [f"{letter}{i}" for i in range(len(volumes))]
        return VolumeSet("--real", "folder", None, ids, ids, 16, np.ones(3), volumes.__getitem__)

    pool = statistic.Pool(a_set(real, "r"), a_set(synthetic, "s"), a_set(train, "t"))
    pool.load(1, None)
    return memorization._copies_statistic(pool, MetricOptions()).details


@pytest.mark.parametrize("trained_on", [0, 2, 6])
def test_real_volumes_that_were_trained_on_are_named_and_hide_no_copy(trained_on):
    """Mirrored ones too, which no comparison of voxels finds."""
    train, real, synthetic = smooth_volumes(8, 0), smooth_volumes(6, 1), smooth_volumes(6, 2)
    real[:trained_on] = train[:trained_on, ::-1]
    synthetic[3] = np.roll(train[7, :, ::-1], 2, axis=2)
    found = copies_entry(real, synthetic, train)
    (copy,) = found["flagged"]
    assert (copy["volume"], copy["source"], copy["shift"]) == ("s3", "t7", [0, 0, 2])
    moved = np.roll(np.flip(train[7], copy["mirrored_axes"]), copy["shift"], (0, 1, 2))
    assert copy["mirrored"] == "anterior-posterior" and np.array_equal(moved, synthetic[3])
    assert found["threshold"] > 0.4 and found["planted_found"] == found["planted"] == 8
    if trained_on == 0:
        assert found["warnings"] == []
        return
    (warning,) = found["warnings"]
    assert warning.startswith(f"{trained_on} of 6 real volumes match a training volume as only a "
                              "copy or another scan of the same person does: r0, r1")
    assert ("takes its highest threshold, 0.6" in warning) == (trained_on == 6)
