import numpy as np
import pytest
from scipy import stats

from metrics import inception, mmd, ms_ssim, uncertainty


def test_bootstrap_draws_subjects_whole():
    subjects = ["a", "a", "b", "c", "c", "c", "d"]
    w = uncertainty.bootstrap_weights(subjects, 500, seed=0)
    assert w.shape == (500, 7)
    assert np.array_equal(w[:, 0], w[:, 1]) and np.array_equal(w[:, 3], w[:, 5])
    drawn = w[:, [0, 2, 3, 6]]
    assert (drawn.sum(1) == 4).all() and ((drawn > 0).sum(1) >= 2).all()
    assert np.allclose(drawn.mean(0), 1, atol=0.1) and set(np.unique(drawn)) == {0, 1, 2, 3}
    assert np.array_equal(w, uncertainty.bootstrap_weights(subjects, 500, seed=0))
    assert not np.array_equal(w, uncertainty.bootstrap_weights(subjects, 500, seed=1))


def test_interval_by_hand():
    # mean 11, 2.5% at 10.05, 97.5% at 11.95
    replicates = np.concatenate([np.linspace(10, 12, 201), [np.nan]])
    assert np.allclose(uncertainty.interval(5, replicates), [5 - 0.95, 5 + 0.95])
    # mean 1: reaches 1 up and 9 down from the value
    skewed = np.array([0.0] * 90 + [10.0] * 10)
    assert np.allclose(uncertainty.interval(5, skewed), [5 - 9, 5 + 1])
    assert uncertainty.interval(5, skewed, lowest=0) == [0, 6]
    assert uncertainty.interval(-3, skewed, lowest=0) == [0, 0]
    assert uncertainty.interval(5, np.array([np.nan, 1])) is None
    assert uncertainty.interval(np.nan, skewed) is None


def test_share_interval():
    """Of a threshold that is known, it is Clopper and Pearson's: quantiles of beta distributions.
    0 of 32 still has a width."""
    for count in (0, 7, 32):
        found = uncertainty.share_interval(count / 32, 32, 10 ** 8)
        expected = [stats.beta(count, 33 - count).ppf(0.025) if count else 0,
                    stats.beta(count + 1, 32 - count).ppf(0.975) if count < 32 else 1]
        assert np.allclose(found, expected, atol=1e-6)
    # a threshold of 16 values is uncertain itself
    known, unknown = (uncertainty.share_interval(7 / 32, 32, m) for m in (10 ** 8, 16))
    assert unknown[0] < known[0] and unknown[1] > known[1]


@pytest.mark.parametrize("m", [8, 16, 32])
def test_share_interval_is_exact_for_values_drawn_alike(m):
    """Share of 32 below the smallest of m, both from one distribution: in at most 2.5% of sets the
    interval lies above 1 / (m + 1), the chance to be the smallest."""
    chance = stats.betabinom(32, 1, m)
    above = [uncertainty.share_interval(k / 32, 32, m)[0] > 1 / (m + 1)
             for k in range(33)]
    missed = chance.pmf(np.arange(33)) @ np.array(above)
    assert 0.005 < missed <= 0.025


def test_t_interval_by_hand():
    """The jackknife's standard error of a mean is the mean's: s / sqrt(n)."""
    x = np.array([1.0, 2, 4, 9, 3, 5])
    left_out = uncertainty.leave_one_out_weights(range(6)) @ x / 5
    reach = stats.t.ppf(0.975, 5) * x.std(ddof=1) / np.sqrt(6)
    assert np.allclose(uncertainty.t_interval(4, [left_out]), [4 - reach, 4 + reach])
    assert uncertainty.t_interval(4, [left_out], lowest=3.9)[0] == 3.9
    y = np.array([2.0, 3, 8, 1])
    left_out_y = uncertainty.leave_one_out_weights(range(4)) @ y / 3
    p = uncertainty.t_test(x.mean() - y.mean(), [left_out, left_out_y])
    assert p == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
    subjects = ["a", "a", "b", "c"]
    expected = [[0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert uncertainty.leave_one_out_weights(subjects).tolist() == expected
    assert uncertainty.t_interval(np.nan, [left_out]) is None
    assert uncertainty.t_interval(1.0, [np.array([np.nan, 1])]) is None


def test_halves_are_split_by_subject():
    first, second = uncertainty.halves(["a", "a", "b", "c", "d"], 50, seed=0)
    assert np.array_equal(first + second, np.ones((50, 5)))
    assert np.array_equal(first[:, 0], first[:, 1])
    assert (first[:, [0, 2, 3, 4]].sum(1) == 2).all()
    assert len(np.unique(first, axis=0)) == 6  # all ways to halve four
    for few in (["a", "a"], ["a", "b", "c", "c"]):  # too few to say how such a set varies
        with pytest.raises(ValueError):
            uncertainty.halves(few, 1, seed=0)
        with pytest.raises(ValueError):
            uncertainty.bootstrap_weights(few, 5, seed=0)


def test_intervals_do_not_depend_on_the_origin():
    """A constant added to all volumes changes neither an unbiased MMD nor its replicates."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(16, 20)), rng.normal(size=(16, 20)) + 0.3])
    a, b = replicates_of_two(16, 100, [0, 1])
    near, far = (mmd.mmd_of_kernel(x @ x.T, a, b, unbiased=True) for x in (z, z + 7))
    assert np.allclose(near, far) and near.std() > 0.1


def replicates_of_two(n, replicates, seeds):
    """Weights of two sets of n volumes, each its own subject, over the pool of both."""
    return [np.pad(uncertainty.bootstrap_weights(range(n), replicates, seed),
                   ((0, 0), (k * n, n - k * n))) for k, seed in enumerate(seeds)]


@pytest.mark.slow
def test_intervals_cover():
    """Sets of 16 drawn again and again: how often the 95% interval holds what one gets on average
    with 16.

    The percentile interval, which takes replicates as they are, does not: repeated volumes raise
    a distance.
    """
    rng = np.random.default_rng(0)
    n, d, trials = 16, 60, 300
    scale = 1 / np.arange(1, d + 1) ** 0.7
    one = (np.arange(2 * n) < n)[None] * 1.0
    found, held, plain = {}, {}, {}
    for trial in range(trials):
        z = rng.normal(size=(2 * n, d)) * scale
        z[n:] = z[n:] * 1.15 + 0.1
        a, b = replicates_of_two(n, 200, [[trial, 0], [trial, 1]])
        for name, f in distances_of(z @ z.T).items():
            value, replicates = f(one, 1 - one)[0], f(a, b)
            found.setdefault(name, []).append(value)
            held.setdefault(name, []).append(uncertainty.interval(value, replicates))
            plain.setdefault(name, []).append(np.percentile(replicates, [2.5, 97.5]))

    def coverage(intervals, expected):
        return np.mean([low <= expected <= high for low, high in intervals])

    for name, values in found.items():
        assert 0.88 <= coverage(held[name], np.mean(values)) <= 1, name
    assert coverage(plain["frechet"], np.mean(found["frechet"])) < 0.75


def distances_of(products):
    """{name: function of two weighted sets}, from inner products."""
    pairs = ms_ssim.all_pairs(len(products))
    similarity = np.exp(-mmd.squared_distances(products) / 5)[tuple(pairs.T)]
    return {"frechet": lambda a, b: inception.frechet(products, a, b),
            "linear": lambda a, b: mmd.mmd_of_kernel(products, a, b, False),
            "unbiased": lambda a, b: mmd.mmd_of_kernel(products, a, b, True),
            "pairs": lambda a, b: ms_ssim.mean_of_pairs(similarity, pairs, b)}
