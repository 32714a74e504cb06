import numpy as np

from metrics import memorization


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
