"""Pairs of two subjects within a set, all of them or a random selection.

Two volumes of one subject are no pair: they are alike, however diverse the set.
"""
from collections import defaultdict

import numpy as np


def pairs_within_sets(pool, count, seed):
    """{set: (P, 2) indices into the pool}, all pairs of a set or a random selection; and how many
    each set has.

    :param count: largest number of pairs of a set; None: all pairs
    """
    rng = np.random.default_rng(seed)
    pairs, available = {}, {}
    for name in pool.sets:
        index = pool.index(name)
        partners = Partners(pool.groups[index])
        available[name] = partners.count
        if count and count < partners.count:
            chosen = np.sort(rng.choice(partners.count, count, replace=False))
        else:
            chosen = np.arange(partners.count)
        pairs[name] = index[0] + partners.pairs(chosen)
    return pairs, available


class Partners:
    """The pairs i < j of two groups, in the order of itertools.combinations.

    They are counted, not listed: 10,000 volumes have 50 million.

    :param groups: (N,) of each volume
    """

    def __init__(self, groups):
        count = len(groups)
        self._members = defaultdict(list)       # {group: its volumes, ascending}
        partners = np.zeros(count, np.int64)    # of each volume, with a higher number
        for i in reversed(range(count)):
            same = self._members[groups[i]]
            partners[i] = count - 1 - i - len(same)
            same.insert(0, i)
        self._groups = groups
        self._has_company = np.array([len(self._members[group]) > 1 for group in groups])
        self._ends = np.cumsum(partners)
        self._begins = self._ends - partners
        self.count = int(partners.sum())

    def pairs(self, numbers):
        """The pairs of these numbers, 0…count - 1.

        :param numbers: (P,)
        :return: (P, 2)
        """
        first = np.searchsorted(self._ends, numbers, side="right")
        second = first + 1 + numbers - self._begins[first]
        for k in np.flatnonzero(self._has_company[first]):
            for member in self._members[self._groups[first[k]]]:
                second[k] += first[k] < member <= second[k]
        return np.stack([first, second], axis=1)
