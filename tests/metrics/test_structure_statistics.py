"""Statistics of structures against formulas that are written out, and numbers known in advance."""
import numpy as np
import pytest
from scipy import linalg, stats

from metrics import structure_statistics

RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (40, 3)) @ RNG.normal(0, 1, (3, 3)) + [10, 20, 5]
A, B = np.zeros((1, 40)), np.zeros((1, 40))
A[0, :25], B[0, 25:] = 1, 1
REAL, OTHER = X[:25], X[25:]


def test_cohens_d_is_the_textbook_formula():
    pooled = np.sqrt((24 * REAL.var(0, ddof=1) + 14 * OTHER.var(0, ddof=1)) / 38)
    expected = (OTHER.mean(0) - REAL.mean(0)) / pooled
    assert np.allclose(structure_statistics.cohens_d(A, B, X)[0], expected)


def test_weights_count_volumes_twice():
    twice = A.copy()
    twice[0, :5] = 2
    repeated = np.concatenate([X[:5], REAL])
    n, mean, squares = structure_statistics.moments(twice, X)
    assert n[0, 0] == 30 and np.allclose(mean[0], repeated.mean(0))
    assert np.allclose(squares[0], 30 * repeated.var(0))


def test_what_does_not_vary_has_no_d():
    x = X.copy()
    x[:, 1] = 7
    found = structure_statistics.cohens_d(A, B, x)[0]
    assert np.isnan(found[1]) and np.isfinite(found[[0, 2]]).all()


def test_d_given_the_others_is_a_regression():
    found = structure_statistics.d_given_the_others(A, B, X)[0]
    for k in range(3):
        others = np.delete(X, k, axis=1)
        design = np.column_stack([np.ones(40), others, B[0]])
        coefficients, residual, *_ = np.linalg.lstsq(design, X[:, k], rcond=None)
        error = np.sqrt(residual[0] / (40 - 4))
        assert found[k] == pytest.approx(coefficients[-1] / error, abs=0.01)   # the ridge


def test_d_given_the_others_is_that_of_the_volumes_that_take_part():
    """Whatever the others hold, such as what stands for volumes without a row in a table."""
    absent = np.full((30, 3), -100.0)
    found = structure_statistics.d_given_the_others(
        np.pad(A, ((0, 0), (0, 30))), np.pad(B, ((0, 0), (0, 30))), np.concatenate([X, absent]))
    assert found == pytest.approx(structure_statistics.d_given_the_others(A, B, X), rel=1e-9)


def test_d_given_the_others_needs_enough_volumes():
    few = structure_statistics.d_given_the_others(A[:, :12] * [[1] * 6 + [0] * 6], 1 - A[:, :12] *
                                                  [[1] * 6 + [0] * 6], X[:12])
    assert np.isnan(few).all()
    enough = structure_statistics.d_given_the_others(A[:, 12:26], B[:, 12:26], X[12:26])
    assert np.isfinite(enough).all()


def test_wasserstein_is_the_frechet_distance():
    within = np.sqrt((25 * REAL.var(0) + 15 * OTHER.var(0)) / 40)
    a, b = REAL / within, OTHER / within
    first, second = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    squared = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        first + second - 2 * linalg.sqrtm(first @ second).real)
    assert structure_statistics.wasserstein(A, B, X)[0] == pytest.approx(np.sqrt(squared / 3))
    assert structure_statistics.wasserstein(A, A, X)[0] == pytest.approx(0, abs=1e-6)


def test_a_shift_of_one_standard_deviation_is_one():
    x = np.concatenate([REAL, REAL + REAL.std(0)])
    a, b = np.zeros((2, 1, 50))
    a[0, :25] = b[0, 25:] = 1
    assert structure_statistics.wasserstein(a, b, x)[0] == pytest.approx(1)
    assert structure_statistics.cohens_d(a, b, x)[0] == pytest.approx([np.sqrt(24 / 25)] * 3)


def test_covariances_that_are_proportional_agree():
    x = np.concatenate([REAL, 3 * REAL + 5])
    a, b = np.zeros((2, 1, 50))
    a[0, :25] = b[0, 25:] = 1
    assert structure_statistics.covariance_agreement(a, b, x)[0] == pytest.approx(1)
    mixed = np.concatenate([REAL, RNG.permuted(REAL, axis=0)])
    assert structure_statistics.covariance_agreement(a, b, mixed)[0] < 0.97


def test_the_range_is_a_prediction_interval():
    inside = structure_statistics.within_range(A, X[:, :1], np.zeros((40, 0)))[0]
    reach = stats.t.ppf(1 - 0.01 / 2, 24) * REAL[:, 0].std(ddof=1) * np.sqrt(1 + 1 / 25)
    assert np.array_equal(inside, np.abs(X[:, 0] - REAL[:, 0].mean()) <= reach)


def test_values_that_may_be_small_are_not_outside():
    x = np.concatenate([np.zeros((40, 1)), [[-50.0]], [[50.0]]])
    x[:40, 0] = RNG.normal(0, 1, 40)
    real = np.zeros((1, 42))
    real[0, :40] = 1
    nothing = np.zeros((42, 0))
    assert structure_statistics.within_range(real, x, nothing)[0, -2:].tolist() == [False, False]
    assert structure_statistics.within_range(real, nothing, x)[0, -2:].tolist() == [True, False]


def test_alike_volumes_leave_the_range_as_rarely_as_stated():
    rng = np.random.default_rng(3)
    left = 0
    for _ in range(300):
        x = rng.normal(0, 1, (40, 17))
        real = np.zeros((1, 40))
        real[0, :16] = 1
        inside = structure_statistics.within_range(real, x[:, :15], x[:, 15:])
        left += (~inside[0, 16:]).sum()
    assert left / (300 * 24) < 0.02
