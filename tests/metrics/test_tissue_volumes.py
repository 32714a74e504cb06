"""Volumes of tissues by intensity."""
import numpy as np

from metrics import tissue_volumes


def test_three_classes_of_known_size():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(400), rng.normal(50, 4, 100), rng.normal(120, 5, 300),
                             rng.normal(200, 5, 200)]).round().astype(np.uint8)
    volume = rng.permutation(values).reshape(10, 10, 10)
    found = tissue_volumes.tissue_volumes(volume, (2.0, 2.0, 2.5))
    assert np.allclose(found, np.array([100, 300, 200]) * 10 / 1000)


def test_thresholds_maximize_the_variance_between_classes():
    counts = np.random.default_rng(1).integers(0, 20, 12)
    values = np.repeat(np.arange(12), counts)

    def between(first, second):
        classes = [values[values < first], values[(values >= first) & (values < second)],
                   values[values >= second]]
        if min(map(len, classes)) == 0:
            return -np.inf
        return sum(len(c) * (c.mean() - values.mean()) ** 2 for c in classes)

    best = max((between(i, j), i, j) for i in range(1, 12) for j in range(i + 1, 12))
    found = tissue_volumes._thresholds(counts)
    assert np.isclose(between(*found), best[0])


def test_a_volume_of_two_values_has_no_three_tissues():
    volume = np.zeros((4, 4, 4), np.uint8)
    volume[:2] = 200
    volume[0] = 100
    assert np.isnan(tissue_volumes.tissue_volumes(volume, (1, 1, 1))).all()
