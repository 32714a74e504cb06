"""Pairs of two subjects."""
import itertools

import numpy as np

from metrics import subject_pairs


def test_pairs_of_two_groups_are_counted_not_listed():
    """Those of itertools.combinations without the pairs within a group, in the same order."""
    rng = np.random.default_rng(0)
    for groups in (np.arange(6), np.zeros(4, int), rng.integers(0, 5, 30), np.array([0, 1, 0, 0])):
        expected = [(i, j) for i, j in itertools.combinations(range(len(groups)), 2)
                    if groups[i] != groups[j]]
        partners = subject_pairs.Partners(groups)
        assert partners.count == len(expected)
        found = partners.pairs(np.arange(partners.count))
        assert found.tolist() == [list(pair) for pair in expected]
        some = np.array([len(expected) // 2, 0] if expected else [], int)
        assert partners.pairs(some).tolist() == [list(expected[k]) for k in some]
    partners = subject_pairs.Partners(np.arange(10_000))
    assert partners.count == 49_995_000
    assert partners.pairs(np.array([0, 49_994_999])).tolist() == [[0, 1], [9998, 9999]]
