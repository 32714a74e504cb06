import numpy as np
import pytest

from metrics import permutation


def test_p_by_hand():
    assert permutation.p_value([3, 1, 2, 3, 4], "upper") == 3 / 5
    assert permutation.p_value([9, 1, 2, 3, 4], "upper") == 1 / 5
    assert permutation.p_value([1, 1, 2, 3, 4], "both") == 4 / 5   # twice the lower tail
    assert permutation.p_value([2, 2, 2, 2], "both") == 1
    assert permutation.p_value([1, 1 + 1e-12, 0.5], "upper") == 1 / 3 * 2  # equal up to rounding
    assert permutation.p_value([1, np.nan], "upper") is None


def test_holm_is_stepwise():
    """By hand: 4 * 0.01, 3 * 0.02, then 2 * 0.03 = 0.06, and 0.5; in the order that was given."""
    assert np.allclose(permutation.holm([0.03, 0.5, 0.01, 0.02]), [0.06, 0.5, 0.04, 0.06])
    assert permutation.holm([0.4, 0.9]).tolist() == [0.8, 0.9]
    assert permutation.holm([0.9, 0.9]).tolist() == [1, 1] and len(permutation.holm([])) == 0


def test_permutations_keep_sizes_and_use_each_subject_once():
    subjects = ["a", "a", "b", "c", "c", "c"]
    chosen = [permutation.one_volume_per_subject(subjects, seed) for seed in range(60)]
    assert all(len(c) == 3 and [subjects[i] for i in c] == ["a", "b", "c"] for c in chosen)
    assert {tuple(c) for c in chosen} == {(i, 2, j) for i in (0, 1) for j in (3, 4, 5)}
    a, b = permutation.permuted_sets(np.array([0, 2]), np.array([4, 5, 6]), 8, 300, seed=0)
    assert a[0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0] and b[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert (a.sum(1) == 2).all() and (b.sum(1) == 3).all()
    assert np.array_equal(a + b, np.tile([1, 0, 1, 0, 1, 1, 1, 0], (301, 1)))
    assert len(np.unique(a, axis=0)) == 10  # all ways to choose 2 of 5
    assert np.array_equal(a, permutation.permuted_sets(
        np.array([0, 2]), np.array([4, 5, 6]), 8, 300, seed=0)[0])


@pytest.mark.parametrize("shift, low, high", [(0, 0.0, 0.12), (1.5, 0.6, 1)])
def test_p_is_small_only_where_the_sets_differ(shift, low, high):
    rng = np.random.default_rng(0)
    a, b = permutation.permuted_sets(np.arange(8), np.arange(8, 16), 16, 199, seed=1)
    found = []
    for _ in range(100):
        x = rng.normal(size=16)
        x[8:] += shift
        found.append(permutation.p_value((b - a) @ x, "both") <= 0.05)
    assert low <= np.mean(found) <= high


def test_the_lower_tail_counts_small_values():
    values = [0.2, 0.1, 0.2, 0.5, 0.9]
    assert permutation.p_value(values, "lower") == 3 / 5
    assert permutation.p_value(values, "upper") == 4 / 5
