"""How sure a number is: the bootstrap over subjects, and halves of a set as the floor of every distance.

Both are weights, (R, N): how often each volume of a set counts in each of R replicates.
"""
import numpy as np

FEWEST = 4  # subjects of a set that can say anything on how it varies


def bootstrap_weights(subjects, replicates, seed):
    """Counts of each volume in bootstrap replicates that draw whole subjects with replacement (Efron 1979).

    :param subjects: one name a volume; volumes of one subject are drawn together, as they are not independent
    :return: (replicates, N) float64. A replicate of fewer than two subjects, in which nothing varies, is drawn again
    :raises ValueError: fewer than FEWEST subjects
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(subjects, return_inverse=True)
    if len(names) < FEWEST:
        raise ValueError(f"{len(names)} subjects")
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    while len(again := np.flatnonzero((counts > 0).sum(1) < 2)):
        counts[again] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=len(again))
    return counts[:, index].astype(float)


def interval(value, replicates, level=0.95, lowest=None):
    """Basic bootstrap interval of the expected value at this number of volumes (Davison and Hinkley 1997, section 5.2).

    A distance between small sets is biased upwards, and a replicate, which repeats volumes, still more. So the replicates say
    how far the value scatters, taken about their own mean, and not where it lies: the interval is for what one would get on average
    with as many volumes. The bias itself is told by the floor, by KID, and by FID extrapolated.

    :param replicates: (R,); NaN replicates are left out
    :param lowest: the least value there can be
    :return: [low, high], or None when fewer than two are left
    """
    r = replicates[np.isfinite(replicates)]
    if len(r) < 2 or not np.isfinite(value):
        return None
    lo, hi = np.percentile(r - r.mean(), [50 * (1 - level), 50 * (1 + level)])
    ends = [float(value - hi), float(value - lo)]
    return ends if lowest is None else [max(e, lowest) for e in ends]


def share_interval(shares, n, seed, level=0.95):
    """Interval of a share of n whose threshold is itself uncertain: Jeffreys' interval, averaged over replicates of the threshold.

    It has a width, and the right one, also where the share is none or all, where a bootstrap of the n has none.

    :param shares: (R,) shares of the n, each by the threshold of a replicate
    """
    count = np.asarray(shares) * n
    draws = np.random.default_rng(seed).beta(count + 0.5, n - count + 0.5, size=(20, len(count)))
    return [float(x) for x in np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])]


def halves(subjects, splits, seed):
    """Random halves of a set, by subject: weights (splits, N) of the first and of the second half.

    :raises ValueError: fewer than FEWEST subjects
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(subjects, return_inverse=True)
    if len(names) < FEWEST:
        raise ValueError(f"{len(names)} subjects")
    order = np.argsort(rng.random((splits, len(names))), axis=1)
    first = np.zeros((splits, len(names)))
    np.put_along_axis(first, order[:, :len(names) // 2], 1, axis=1)
    return first[:, index], 1 - first[:, index]
