import numpy as np
from scipy import stats

from metrics import intensity


def test_histogram_distance_is_wasserstein():
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 256, (5, 6, 6, 6)).astype(np.uint8)
    volumes[3:] //= 2
    h = np.stack([intensity.intensity_histogram(v) for v in volumes])
    assert np.allclose(h.sum(1), 1) and h[0, volumes[0, 0, 0, 0]] >= 1 / 216
    a, b = np.array([[1.0, 1, 1, 0, 0]]), np.array([[0, 0, 0, 2.0, 1]])
    first = volumes[:3].reshape(-1) / 255
    second = np.concatenate([volumes[3], volumes[3], volumes[4]]).reshape(-1) / 255
    expected = stats.wasserstein_distance(first, second)
    assert np.isclose(intensity.histogram_distance(h, a, b)[0], expected)
    expected = stats.wasserstein_distance(first[first > 0.05], second[second > 0.05])
    assert np.isclose(intensity.histogram_distance(h, a, b, above=0.05)[0], expected)
    assert intensity.histogram_distance(h, a, a)[0] == 0
