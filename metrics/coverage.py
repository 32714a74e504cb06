"""Density and coverage, precision and recall of sets of feature vectors.

A vector's *neighborhood* is the ball around it that reaches to the k-th nearest other subject of
its own set: two scans of one subject are near each other, however sparse the set.

    density     neighborhoods of real subjects that a synthetic volume lies in, mean, over k
    coverage    share of real volumes with a synthetic volume in their neighborhood
    precision   share of synthetic volumes in a neighborhood of a real one
    recall      share of real volumes in a neighborhood of a synthetic one

Density and coverage: Naeem et al. 2020 (arXiv 2002.09797), eq. 3 and 5. Precision and recall:
Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2.
"""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from metrics.mmd import squared_distances
from metrics.statistic import Statistic

SMALLEST_RADIUS = 1e-12     # of a neighborhood: where volumes are equal, it has none


@dataclass(frozen=True)
class Measure:
    """One of the four numbers.

    :param k: which nearest neighbor a neighborhood reaches to, as the source recommends
    :param around_real: whether neighborhoods are those of real volumes
    :param of_ratios: (centers, others) distances over radii; (centers,) weight of each volume
        among those of its subject; k -> the number
    :param axis: over which the nearest neighborhood is taken; None: there is no such thing
    """
    name: str
    definition: str
    k: int
    around_real: bool
    of_ratios: Callable
    axis: int | None
    tail: str

    def of_sets(self, distances, groups, a, b):
        """The number for weighted sets.

        :param distances: (N, N) of the pool's feature vectors
        :param groups: (N,) group of each volume, such as its subject
        :param a, b: (R, N) weights of the real and the synthetic set, 0 or 1
        :return: (R,); NaN where a set has no k-th neighbor
        """
        return self._each(distances, groups, a, b, self.of_ratios)

    def order_of_sets(self, distances, groups, a, b):
        """The number, with ties broken by how far the nearest neighborhoods are.

        A share of 32 volumes takes few values, so a test that counts ties as extreme would find
        little. Parameters as `of_sets` takes them; what is added is less than one step of a share.
        """
        if self.axis is None:
            return self.of_sets(distances, groups, a, b)

        def with_ties_broken(ratios, weights, k):
            nearest = np.maximum(ratios.min(self.axis), SMALLEST_RADIUS)
            return (self.of_ratios(ratios, weights, k)
                    + expit(-np.log(nearest).mean()) / len(nearest))

        return self._each(distances, groups, a, b, with_ties_broken)

    def _each(self, distances, groups, a, b, function):
        values = np.empty(len(a))
        for r, (real, synthetic) in enumerate(zip(a, b)):
            real, synthetic = np.flatnonzero(real), np.flatnonzero(synthetic)
            sets = (real, synthetic) if self.around_real else (synthetic, real)
            ratios, weights = distances_over_radii(distances, groups, *sets, self.k)
            missing = np.isnan(ratios).any()
            values[r] = np.nan if missing else function(ratios, weights, self.k)
        return values


def distances_over_radii(distances, groups, centers, others, k):
    """Distances from the centers of neighborhoods over their radii: up to 1 is inside.

    :param distances: (N, N)
    :param groups: (N,)
    :param centers, others: indices of two sets
    :return: (C, O), NaN where there are no k other groups; (C,) 1 over the centers of each group
    """
    _, own, counts = np.unique(groups[centers], return_inverse=True, return_counts=True)
    weights = 1 / counts[own]
    if len(counts) <= k:
        return np.full((len(centers), len(others)), np.nan), weights
    order = np.argsort(own, kind="stable")
    first = np.cumsum(counts) - counts
    to_groups = np.minimum.reduceat(distances[np.ix_(centers, centers[order])], first, axis=1)
    to_groups[np.arange(len(centers)), own] = np.inf
    radius = np.maximum(np.partition(to_groups, k - 1, axis=1)[:, k - 1], SMALLEST_RADIUS)
    return distances[np.ix_(centers, others)] / radius[:, None], weights


def _density(ratios, weights, k):
    return (weights @ (ratios <= 1)).mean() / k


def _share_of_centers(ratios, weights, k):
    return (ratios.min(1) <= 1).mean()


def _share_of_others(ratios, weights, k):
    return (ratios.min(0) <= 1).mean()


MEASURES = (
    Measure("density", "real subjects whose neighborhood a synthetic volume lies in, mean, over k",
            5, True, _density, None, "both"),
    Measure("coverage", "share of real volumes with a synthetic volume in their neighborhood",
            5, True, _share_of_centers, 1, "lower"),
    Measure("precision", "share of synthetic volumes in the neighborhood of a real one",
            3, True, _share_of_others, 0, "lower"),
    Measure("recall", "share of real volumes in the neighborhood of a synthetic one",
            3, False, _share_of_others, 0, "lower"),
)


def expected_coverage(real, synthetic, k):
    """Coverage of a perfect generator (Naeem et al. 2020, eq. 9).

    :param real, synthetic: numbers of volumes, of different subjects
    """
    steps = np.arange(1, k + 1)
    return 1 - float(np.prod((real - steps) / (synthetic + real - steps)))


# -------------------------------------------------------------------------------------- statistic

def coverage_statistics(space, products, pool, details):
    """The four numbers in one space of features.

    :param space: feature_space.FeatureSpace of the pool
    :param products: its inner products, (N, N)
    :param pool: statistic.Pool
    :param details: for metrics.json
    """
    distances = np.sqrt(squared_distances(products))
    n = [len(set(pool.sets[name].subjects)) for name in ("real", "synthetic")]
    for measure in MEASURES:
        target, text = "1", "compare it with the floor: with few volumes, less than 1 is usual"
        if measure.name == "density":
            text = "1 on average for a perfect generator"
        if measure.name == "coverage" and min(n) > measure.k:
            target = f"{expected_coverage(*n, measure.k):.3g}"
            text = "the target is what a perfect generator has on average with as many volumes"
        yield Statistic(
            key=f"{measure.name}_{space.key}", name=f"{measure.name}, {space.name}",
            definition=f"{measure.definition}; k = {measure.k} nearest other subjects, "
                       f"Euclidean distances of {space.definition}; {text}",
            target=target, has_interval=False, test=measure.tail,
            compute=functools.partial(measure.of_sets, distances, pool.groups),
            order=functools.partial(measure.order_of_sets, distances, pool.groups),
            details={**details, "k": measure.k})
