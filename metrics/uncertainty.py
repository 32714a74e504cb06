"""How certain a number is: the bootstrap over subjects, and halves of the real set as a floor.

Replicates and halves are weights, (R, N): how often each of N volumes counts in each of R draws.
"""
import numpy as np

MIN_SUBJECTS = 4  # in a set; with fewer, nothing can be said about how much the set varies


def bootstrap_weights(subjects, replicates, seed):
    """Counts of each volume in bootstrap replicates that draw whole subjects (Efron 1979).

    Subjects are drawn with replacement. A replicate of fewer than two different subjects, in
    which nothing varies, is drawn again.

    :param subjects: one name per volume, (N,); volumes of one subject are drawn together, as
        they are not independent
    :param replicates: R, number of replicates
    :return: (R, N) float64
    :raises ValueError: fewer than MIN_SUBJECTS subjects
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(subjects, return_inverse=True)
    _require_subjects(names)
    shares = np.full(len(names), 1 / len(names))
    counts = rng.multinomial(len(names), shares, size=replicates)
    while True:
        too_few = np.flatnonzero((counts > 0).sum(1) < 2)
        if len(too_few) == 0:
            return counts[:, index].astype(float)
        counts[too_few] = rng.multinomial(len(names), shares, size=len(too_few))


def interval(value, replicates, level=0.95, lowest=None):
    """Basic bootstrap interval of the expected value at this number of volumes.

    Davison and Hinkley 1997, section 5.2. A distance between small sets is biased upward, and its
    replicates, which repeat volumes, are biased even more. So the replicates only tell how far the
    value scatters, not where it lies: they are taken relative to their own mean. The interval is
    for the average over many evaluations with as many volumes; the bias itself shows in the floor,
    in KID, and in FID extrapolated to infinitely many volumes.

    :param replicates: (R,); NaN replicates are left out
    :param lowest: smallest possible value; None: there is none
    :return: [low, high], or None if fewer than two replicates are left
    """
    r = replicates[np.isfinite(replicates)]
    if len(r) < 2 or not np.isfinite(value):
        return None
    low, high = np.percentile(r - r.mean(), [50 * (1 - level), 50 * (1 + level)])
    ends = [float(value - high), float(value - low)]
    if lowest is None:
        return ends
    return [max(end, lowest) for end in ends]


def share_interval(shares, n, seed, level=0.95):
    """Interval of a share of n volumes whose threshold is uncertain itself.

    Jeffreys' interval, averaged over replicates of the threshold. Unlike a bootstrap of the n
    volumes, it has the right width also where the share is 0 or 1.

    :param shares: (R,) shares of the n volumes, one for the threshold of each replicate
    :return: [low, high]
    """
    count = np.asarray(shares) * n
    rng = np.random.default_rng(seed)
    draws = rng.beta(count + 0.5, n - count + 0.5, size=(20, len(count)))
    return [float(x) for x in np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])]


def halves(subjects, splits, seed):
    """Random halves of a set, split by subject.

    :param subjects: one name per volume, (N,)
    :return: weights (splits, N) of the first halves, and of the second halves
    :raises ValueError: fewer than MIN_SUBJECTS subjects
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(subjects, return_inverse=True)
    _require_subjects(names)
    order = np.argsort(rng.random((splits, len(names))), axis=1)
    first = np.zeros((splits, len(names)))
    np.put_along_axis(first, order[:, :len(names) // 2], 1, axis=1)
    return first[:, index], 1 - first[:, index]


def _require_subjects(names):
    if len(names) < MIN_SUBJECTS:
        raise ValueError(f"{len(names)} subjects: at least {MIN_SUBJECTS} are needed")
