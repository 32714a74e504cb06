"""How two weighted sets of volumes differ in the volumes of their structures.

Weights are (R, N), as in `metrics.statistic`; structures are columns, (N, K).
"""
import numpy as np
from scipy import stats

SMALL_EFFECT = 0.2      # |d| below it is small (Cohen 1988)
CHANCE_OUTSIDE = 0.01   # that a volume drawn like the real ones is outside their range
RIDGE = 1e-3            # of correlations, for an inverse that rounding does not spoil
SPARE = 10              # degrees of freedom that a regression on all other structures must leave


def moments(weights, x):
    """Sizes (R, 1), means (R, K) and sums of squared deviations (R, K) of weighted sets."""
    center = x.mean(0)
    moved = x - center
    n = weights.sum(1, keepdims=True)
    mean = weights @ moved / n
    squares = np.maximum(weights @ moved ** 2 - n * mean ** 2, 0)
    return n, center + mean, squares


def cohens_d(a, b, x):
    """Difference of the means, b - a, over the pooled standard deviation (Cohen 1988).

    :return: (R, K); NaN where nothing varies
    """
    n_a, mean_a, squares_a = moments(a, x)
    n_b, mean_b, squares_b = moments(b, x)
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = np.sqrt((squares_a + squares_b) / (n_a + n_b - 2))
        return np.where(pooled > 1e-9 * np.abs(mean_a), (mean_b - mean_a) / pooled, np.nan)


def d_given_the_others(a, b, x):
    """Cohen's d of what a regression on all other structures leaves of each.

    One linear regression of both sets together, with the set as one more variable (analysis of
    covariance): is a ventricle larger than the brain around it lets expect? All coefficients and
    residual variances are read off the inverse of one covariance matrix.

    :param x: (N, K), logarithms of volumes
    :return: (R, K); NaN where fewer than K + SPARE volumes take part
    """
    both = a + b
    count, structures = both.sum(1), x.shape[1]
    taken = x[both.any(0)]      # others must not set the scale against which RIDGE is small
    spread = taken.std(0)
    x = (x - taken.mean(0)) / np.where(spread > 0, spread, 1)
    covariance = _covariances(both, x)
    p = b.sum(1) / count                                       # mean of the set: 1 in b, 0 in a
    with_set = b @ x / count[:, None] - both @ x / count[:, None] * p[:, None]
    whole = np.empty((len(a), structures + 1, structures + 1))
    whole[:, :-1, :-1] = covariance + RIDGE * np.eye(structures)
    whole[:, :-1, -1] = whole[:, -1, :-1] = with_set
    whole[:, -1, -1] = p * (1 - p)
    enough = (count >= structures + SPARE) & (p > 0) & (p < 1)
    whole[~enough] = np.eye(structures + 1)
    inverse = np.linalg.inv(whole)
    diagonal = np.diagonal(inverse, axis1=1, axis2=2)[:, :-1]
    freedom = np.sqrt(np.maximum(count - structures - 1, 1) / count)[:, None]
    found = -inverse[:, :-1, -1] / np.sqrt(diagonal) * freedom
    return np.where(enough[:, None], found, np.nan)


def wasserstein(a, b, x):
    """Wasserstein-2 distance of the Gaussians with the sets' means and covariances.

    Fréchet's distance (Dowson and Landau 1982) of the structures in units of their standard
    deviations within the sets, over the square root of their number: the root of the mean square
    shift of a structure.

    :return: (R,)
    """
    _, mean_a, _ = moments(a, x)
    _, mean_b, _ = moments(b, x)
    first, second, scale = _scaled_covariances(a, b, x)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ vectors.transpose(0, 2, 1)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum(1)
    spread = np.trace(first, axis1=1, axis2=2) + np.trace(second, axis1=1, axis2=2) - 2 * cross
    shift = (((mean_b - mean_a) / scale) ** 2).sum(1)
    return np.sqrt(np.maximum(shift + spread, 0) / x.shape[1])


def covariance_agreement(a, b, x):
    """RV coefficient of the covariances: tr(AB) / sqrt(tr(AA) tr(BB)), 1 if proportional.

    Robert and Escoufier 1976, of structures in units of their standard deviations within the sets.

    :return: (R,)
    """
    first, second, _ = _scaled_covariances(a, b, x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((first * second).sum((1, 2))
                / np.sqrt((first ** 2).sum((1, 2)) * (second ** 2).sum((1, 2))))


def _scaled_covariances(a, b, x):
    """Covariances of both sets in units of the standard deviations within them; those, (R, K)."""
    x = x - x.mean(0)
    first, second = _covariances(a, x), _covariances(b, x)
    sizes = [weights.sum(1)[:, None, None] for weights in (a, b)]
    within = (sizes[0] * first + sizes[1] * second) / (sizes[0] + sizes[1])
    scale = np.sqrt(np.diagonal(within, axis1=1, axis2=2))
    scale = np.where(scale > 0, scale, 1)
    both = scale[:, :, None] * scale[:, None, :]
    return first / both, second / both, scale


def _covariances(weights, x):
    """(R, K, K), of weights as counts."""
    n, structures = weights.sum(1), x.shape[1]
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    mean = weights @ x / n[:, None]
    found = (weights @ products / n[:, None]).reshape(-1, structures, structures)
    return found - mean[:, :, None] * mean[:, None, :]


def within_range(reference, x, upper):
    """Which volumes lie in the range of a weighted set.

    A value is in the range if it lies in the prediction interval of a further value (normal
    distribution, Student's t). With CHANCE_OUTSIDE divided among the columns, a volume that is
    drawn like those of the set is outside with at most that chance.

    :param reference: (R, N)
    :param x: (N, K) values that may be too small or too large
    :param upper: (N, L) values that may only be too large
    :return: (R, N) bool
    """
    inside = np.ones(reference.shape, bool)
    columns = x.shape[1] + upper.shape[1]
    for values, tails in ((x, 2), (upper, 1)):
        n, mean, squares = moments(reference, values)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt(squares / (n - 1) * (1 + 1 / n))
            reach = error * stats.t.ppf(1 - CHANCE_OUTSIDE / columns / tails, n - 1)
        for k in range(values.shape[1]):
            beyond = values[None, :, k] - mean[:, k, None]
            beyond = np.abs(beyond) if tails == 2 else beyond
            inside &= beyond <= reach[:, k, None] + 1e-12
    return inside
