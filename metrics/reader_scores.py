"""How well readers tell synthetic volumes from real ones, and how well they agree.

Ratings are 1 (definitely real) to 5 (definitely synthetic). A volume rated 4 or 5 is called
synthetic. Cases are independent, as each is of another subject. Where a function takes weights,
these say how often each case counts, (R, N): in bootstrap replicates, cases are drawn with
replacement within the real and within the synthetic ones; readers are taken as they are.
"""
import itertools

import numpy as np
from scipy import stats

from metrics import permutation

LEVELS = 5              # of a rating
CALLED_SYNTHETIC = 4    # ratings from here on
UNDECIDED = 3
LEVEL = 0.95            # of the intervals


# ----------------------------------------------------------------------------------- the numbers

def auc(real, synthetic):
    """Area under the ROC curve of ratings (Hanley and McNeil 1982).

    The chance that a synthetic case has a higher rating than a real one; equal ratings count half.

    :param real, synthetic: number of cases of each rating, (..., LEVELS)
    :return: (...)
    """
    real, synthetic = np.asarray(real, float), np.asarray(synthetic, float)
    lower = np.cumsum(real, axis=-1) - real / 2
    pairs = real.sum(-1) * synthetic.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (synthetic * lower).sum(-1) / pairs


def cohen_kappa(first, second, levels, weights=None, quadratic=False):
    """Agreement of two readers beyond chance (Cohen 1960; weighted: Cohen 1968).

    :param first, second: ratings of the same cases, (N,), from 0 to levels - 1
    :param weights: (R, N); None: each case counts once
    :param quadratic: disagreements count by their squared distance
    :return: (R,); NaN where chance alone would give full agreement
    """
    first, second = np.asarray(first), np.asarray(second)
    weights = np.ones((1, len(first))) if weights is None else weights
    difference = np.subtract.outer(np.arange(levels), np.arange(levels))
    cost = difference ** 2 if quadratic else (difference != 0)
    share = weights / weights.sum(1, keepdims=True)
    one, two = (share @ np.eye(levels)[ratings] for ratings in (first, second))
    observed = share @ cost[first, second]
    expected = np.einsum("ri,ij,rj->r", one, cost.astype(float), two)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def fleiss_kappa(ratings, levels, weights=None):
    """Agreement of several readers beyond chance (Fleiss 1971).

    :param ratings: (K, N), from 0 to levels - 1, of K readers
    :param weights: (R, N); None: each case counts once
    :return: (R,); NaN where chance alone would give full agreement
    """
    ratings = np.asarray(ratings)
    k = len(ratings)
    weights = np.ones((1, ratings.shape[1])) if weights is None else weights
    counts = np.eye(levels)[ratings].sum(0)                            # (N, levels)
    share = weights / weights.sum(1, keepdims=True)
    agreement = ((counts ** 2).sum(1) - k) / (k * (k - 1))             # of each case
    observed = share @ agreement
    expected = ((share @ counts / k) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def case_weights(is_synthetic, replicates, seed):
    """Bootstrap replicates of the cases, real and synthetic ones drawn apart.

    :param is_synthetic: (N,) bool
    :return: (replicates, N)
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((replicates, len(is_synthetic)))
    for truth in (False, True):
        where = np.flatnonzero(is_synthetic == truth)
        weights[:, where] = rng.multinomial(len(where), np.full(len(where), 1 / len(where)),
                                            size=replicates)
    return weights


# --------------------------------------------------------------------------------- all of a study

def score(truth, readers, replicates, permutations, seed):
    """Everything about a study.

    :param truth: {case: whether it is synthetic}
    :param readers: {reader: {case: rating 1 … 5}}; cases that are not rated are absent
    :param replicates: of the bootstrap; 0: no intervals by it
    :param permutations: of the truth, for the p of AUC; 0: no p
    :return: what scores.json holds
    """
    is_synthetic = np.array(list(truth.values()))
    weights = case_weights(is_synthetic, replicates, seed)
    table = np.array([[ratings.get(case, 0) for case in truth] for ratings in readers.values()])
    counts = [_counts(row, is_synthetic, weights) for row in table]
    found = [_of_reader(name, row, own, permutations, seed)
             for name, row, own in zip(readers, table, counts)]
    content = {"cases": {"real": int((~is_synthetic).sum()), "synthetic": int(is_synthetic.sum())},
               "readers": found}
    if len(table) > 1:
        content["mean_auc"] = _with_interval(np.mean([auc(*own) for own in counts], axis=0))
        content["agreement"] = _agreement(table, weights)
    return content


def _counts(ratings, is_synthetic, weights):
    """Cases of each rating, (1 + R, LEVELS), real and synthetic; the first row is as they are.

    :param ratings: (N,), 0: not rated
    """
    weights = np.vstack([np.ones(len(ratings)), weights])
    levels = ratings[:, None] == np.arange(1, LEVELS + 1)
    return tuple(weights @ (levels & (is_synthetic == truth)[:, None]) for truth in (False, True))


def _of_reader(name, ratings, counts, permutations, seed):
    real, synthetic = counts[0][0], counts[1][0]
    area = _with_interval(auc(*counts))
    area["p"] = _p_of_auc(real, synthetic, permutations, seed)
    return {"reader": name, "rated": int((ratings > 0).sum()),
            "undecided": int((ratings == UNDECIDED).sum()), "auc": area,
            "sensitivity": _share(synthetic[CALLED_SYNTHETIC - 1:].sum(), synthetic.sum()),
            "specificity": _share(real[:CALLED_SYNTHETIC - 1].sum(), real.sum())}


def _p_of_auc(real, synthetic, permutations, seed):
    """p of AUC = 0.5: how often as far from it if the truth is shuffled among the cases."""
    if permutations == 0 or real.sum() == 0 or synthetic.sum() == 0:
        return None
    totals = (real + synthetic).astype(int)
    rng = np.random.default_rng(seed)
    shuffled = rng.multivariate_hypergeometric(totals, int(real.sum()), size=permutations)
    areas = auc(np.vstack([real, shuffled]), np.vstack([synthetic, totals - shuffled]))
    return permutation.p_value(np.abs(areas - 0.5), "upper")


def _share(count, n):
    """A share with its exact interval (Clopper and Pearson 1934)."""
    if n == 0:
        return {"value": None, "interval": None}
    found = stats.binomtest(int(count), int(n)).proportion_ci(LEVEL, "exact")
    return {"value": float(count / n), "interval": [float(found.low), float(found.high)]}


def _with_interval(values):
    """A number with its bootstrap percentile interval; None where the replicates do not vary.

    :param values: (1 + R,), the first of the cases as they are
    """
    replicates = values[1:][np.isfinite(values[1:])]
    span = None
    if len(replicates) > 1 and np.ptp(replicates) > 0:
        tail = 50 * (1 - LEVEL)
        span = [float(end) for end in np.percentile(replicates, [tail, 100 - tail])]
    return {"value": float(values[0]) if np.isfinite(values[0]) else None, "interval": span}


def _agreement(table, weights):
    """Kappa of what cases are called, and of the ratings, over cases that all readers rated.

    :param table: ratings, (K, N), 0: not rated
    """
    common = (table > 0).all(0)
    if not common.any():
        return {"cases": 0}
    ratings = table[:, common] - 1
    weights = np.vstack([np.ones(common.sum()), weights[:, common]])
    weights = weights[weights.sum(1) > 0]
    calls = (ratings >= CALLED_SYNTHETIC - 1).astype(int)
    of_calls = cohen_kappa(*calls, 2, weights) if len(table) == 2 else fleiss_kappa(
        calls, 2, weights)
    of_ratings = np.mean([cohen_kappa(a, b, LEVELS, weights, quadratic=True)
                          for a, b in itertools.combinations(ratings, 2)], axis=0)
    return {"cases": int(common.sum()), "calls": _with_interval(of_calls),
            "ratings": _with_interval(of_ratings)}
