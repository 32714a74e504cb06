"""Features of a pool."""
import numpy as np

from metrics.feature_space import FeatureSpace


def test_inner_products_are_those_of_centered_features():
    values = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])     # mean 2, 2
    found = FeatureSpace("key", "name", "definition", values, {}).products()
    assert np.allclose(found, [[5, 3, -8], [3, 5, -8], [-8, -8, 16]])
