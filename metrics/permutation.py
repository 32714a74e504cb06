"""Permutation tests by subject: could the two sets be drawn from one distribution?

Under that hypothesis, every assignment of the subjects to two sets of the same sizes is equally
likely, so the number among its permutations gives an exact p, whatever its distribution and
however few the subjects (Fisher 1935; Phipson and Smyth 2010).
"""
import numpy as np


def one_volume_per_subject(subjects, seed):
    """Indices of one random volume of each subject, in ascending order.

    Subjects are exchangeable only if each counts once: a synthetic volume has no second scan.

    :param subjects: one name per volume, (N,)
    :return: (S,)
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(subjects))
    _, first = np.unique(np.asarray(subjects)[order], return_index=True)
    return np.sort(order[first])


def permuted_sets(i, j, size, permutations, seed):
    """Weights of the two sets as they are, and with their volumes assigned at random.

    :param i, j: indices of the independent volumes of the two sets
    :param size: N, of the pool
    :param permutations: R
    :return: two arrays (1 + R, N) of 0 and 1; the first row is the sets as they are
    """
    rng = np.random.default_rng(seed)
    both = np.concatenate([i, j])
    a, b = np.zeros((1 + permutations, size)), np.zeros((1 + permutations, size))
    a[0, i] = b[0, j] = 1
    for r in range(1, 1 + permutations):
        order = rng.permutation(both)
        a[r, order[:len(i)]] = 1
        b[r, order[len(i):]] = 1
    return a, b


def p_value(values, tail):
    """Share of the permutations that are at least as extreme as the sets themselves.

    The sets themselves count as one permutation, so that p is never 0 and never too small
    (Phipson and Smyth 2010). Values that differ by rounding errors count as equal.

    :param values: (1 + R,), the first is that of the sets themselves
    :param tail: "upper": large values speak against one distribution; "lower": small ones; "both":
        either
    :return: p, at least 1 / (1 + R); None if a value is missing
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return None
    rounding = 1e-9 * np.abs(values).max()
    upper = float(np.mean(values >= values[0] - rounding))
    if tail == "upper":
        return upper
    lower = float(np.mean(values <= values[0] + rounding))
    if tail == "lower":
        return lower
    return min(1.0, 2 * min(upper, lower))


def holm(p_values):
    """p adjusted for their number (Holm 1979).

    If everything below 0.05 after adjustment is called a difference, the chance of even one false
    alarm is at most 0.05, however the numbers depend on each other.

    :param p_values: (K,)
    :return: (K,) in the same order
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(adjusted, 1)
    return out
