"""How certain a number is: intervals over subjects, and halves of the real set as a floor.

Replicates and halves are weights, (R, N): how often each of N volumes counts in each of R draws.
"""
import numpy as np
from scipy import optimize, stats

MIN_SUBJECTS = 4  # in a set; with fewer, nothing can be said about how much the set varies
FEW_SUBJECTS = 50  # in the smaller set; below, bootstrap intervals are too short


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


def leave_one_out_weights(subjects):
    """The set without each of its subjects, for the jackknife.

    :param subjects: one name per volume, (N,)
    :return: (S, N) of 0 and 1, S different subjects
    """
    names, index = np.unique(subjects, return_inverse=True)
    return 1.0 - np.eye(len(names))[:, index]


def standard_error(left_out):
    """Jackknife standard error of a number and its degrees of freedom (Welch 1947).

    Efron and Tibshirani 1993, eq. 11.5, summed over independent sets.

    :param left_out: for each set, values (S,) without each of its S subjects
    :return: standard error, degrees of freedom; NaN for both if a value is not finite
    """
    variances = np.array([(len(x) - 1) * np.var(x) for x in left_out])
    total = variances.sum()
    if not np.isfinite(total):
        return np.nan, np.nan
    if total == 0:
        return 0.0, 1.0
    freedom = np.array([len(x) - 1 for x in left_out])
    return float(np.sqrt(total)), float(total ** 2 / (variances ** 2 / freedom).sum())


def t_interval(value, left_out, level=0.95, lowest=None):
    """Student's t interval with the jackknife's standard error, for few subjects.

    :param left_out: as `standard_error` takes it
    :param lowest: smallest possible value; None: there is none
    :return: [low, high], or None if there is no standard error
    """
    error, freedom = standard_error(left_out)
    if not np.isfinite(error) or not np.isfinite(value):
        return None
    reach = error * stats.t.ppf((1 + level) / 2, freedom)
    ends = [float(value - reach), float(value + reach)]
    if lowest is None:
        return ends
    return [max(end, lowest) for end in ends]


def t_test(difference, left_out):
    """Two-sided p of a difference from 0 by Student's t with the jackknife's standard error.

    :param left_out: as `standard_error` takes it
    :return: p; None if there is no standard error
    """
    error, freedom = standard_error(left_out)
    if not np.isfinite(error) or not np.isfinite(difference) or error == 0:
        return None
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def share_interval(share, n, m, level=0.95):
    """Interval of a share of n values below a threshold that m other values determine.

    If all are drawn alike, the chance to lie below an order statistic has a beta distribution with
    parameters that sum to m + 1, so the count below it is beta-binomial. This is the set of means
    of that distribution which the count does not reject in either tail, as Clopper and Pearson's
    is for a known threshold. So it is exact if the n values are drawn like the m.

    :param share: of the n values
    :param n: number of independent values, such as subjects
    :param m: number of independent values that the threshold was taken from
    :return: [low, high], which hold `share`
    """
    count = int(round(share * n))

    def at_least(mean):
        return stats.betabinom.sf(count - 1, n, mean * (m + 1), (1 - mean) * (m + 1))

    def at_most(mean):
        return stats.betabinom.cdf(count, n, mean * (m + 1), (1 - mean) * (m + 1))

    tail = (1 - level) / 2
    ends, smallest = [0.0, 1.0], 1e-9
    if count > 0:
        ends[0] = optimize.brentq(lambda x: at_least(x) - tail, smallest, 1 - smallest)
    if count < n:
        ends[1] = optimize.brentq(lambda x: at_most(x) - tail, smallest, 1 - smallest)
    return [float(min(ends[0], share)), float(max(ends[1], share))]


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
