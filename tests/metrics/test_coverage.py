"""Density, coverage, precision and recall against loops written from their definitions."""
import numpy as np
import pytest

from metrics import coverage, mmd

OF = {measure.name: measure for measure in coverage.MEASURES}


def sets_of(pool, first):
    """Weights of the first vectors of a pool, and of the others."""
    a = (np.arange(len(pool)) < first).astype(float)[None]
    return a, 1 - a


def value_of(name, real, synthetic, groups=None):
    pool = np.concatenate([real, synthetic])
    distances = np.sqrt(mmd.squared_distances(pool @ pool.T))
    groups = np.arange(len(pool)) if groups is None else groups
    return OF[name].of_sets(distances, groups, *sets_of(pool, len(real)))[0]


def brute_force(name, real, synthetic):
    """The four numbers, volume by volume."""
    k = 5 if name in ("density", "coverage") else 3

    def radius(x, others):
        return sorted(np.linalg.norm(x - y) for y in others)[k]     # the first is x itself

    def inside(x, center, others):
        return np.linalg.norm(x - center) <= radius(center, others)

    if name == "density":
        return sum(inside(s, r, real) for s in synthetic for r in real) / (k * len(synthetic))
    if name == "coverage":
        return np.mean([any(inside(s, r, real) for s in synthetic) for r in real])
    if name == "precision":
        return np.mean([any(inside(s, r, real) for r in real) for s in synthetic])
    return np.mean([any(inside(r, s, synthetic) for s in synthetic) for r in real])


@pytest.mark.parametrize("name", OF)
@pytest.mark.parametrize("shift", [0, 1.5])
def test_against_loops(name, shift):
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(14, 3)), rng.normal(size=(11, 3)) + shift
    assert value_of(name, real, synthetic) == pytest.approx(brute_force(name, real, synthetic))


def test_by_hand():
    """On a line, k = 5: each of 0, 1, …, 6 reaches to its fifth nearest."""
    real = np.arange(7.0)[:, None]
    synthetic = np.array([[9.0], [6.5]])
    # radii 5, 4, 3, 3, 3, 4, 5: the neighborhoods of 5 and 6 hold 9, those of 4, 5 and 6 hold 6.5
    assert value_of("density", real, synthetic) == pytest.approx((2 + 3) / (5 * 2))
    assert value_of("coverage", real, synthetic) == pytest.approx(3 / 7)


def test_a_mode_that_is_dropped_lowers_coverage_and_not_density():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0] * 4, [20.0] * 4])
    real = rng.normal(size=(40, 4)) + modes[np.arange(40) % 2]
    synthetic = rng.normal(size=(40, 4))
    assert value_of("coverage", real, synthetic) == pytest.approx(0.5, abs=0.03)
    assert value_of("density", real, synthetic) > 0.9
    assert value_of("precision", real, synthetic) > 0.8
    assert value_of("recall", real, synthetic) <= 0.5


@pytest.mark.parametrize("name", OF)
def test_a_second_scan_of_each_subject_changes_nothing(name):
    """As it is next to the first one: neighborhoods reach to the k-th nearest other subject."""
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    twice = np.concatenate([real, real + 1e-9])
    groups = np.concatenate([np.arange(12), np.arange(12), 100 + np.arange(12)])
    expected = brute_force(name, real, synthetic)
    assert value_of(name, twice, synthetic, groups) == pytest.approx(expected)
    if name != "recall":
        assert value_of(name, twice, synthetic) != pytest.approx(expected)


def test_too_few_volumes_have_no_value():
    rng = np.random.default_rng(0)
    assert np.isnan(value_of("coverage", rng.normal(size=(5, 2)), rng.normal(size=(8, 2))))
    assert np.isfinite(value_of("precision", rng.normal(size=(5, 2)), rng.normal(size=(8, 2))))


@pytest.mark.parametrize("name", OF)
def test_ties_are_broken_within_a_step(name):
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(24, 3))
    distances, groups = np.sqrt(mmd.squared_distances(pool @ pool.T)), np.arange(24)
    values, orders = [], []
    for _ in range(40):
        chosen = rng.permutation(24)
        a = np.isin(np.arange(24), chosen[:12]).astype(float)[None]
        values.append(OF[name].of_sets(distances, groups, a, 1 - a)[0])
        orders.append(OF[name].order_of_sets(distances, groups, a, 1 - a)[0])
    values, orders = np.array(values), np.array(orders)
    assert (np.round(orders - values, 12) >= 0).all() and (orders - values < 1 / 12).all()
    if name != "density":
        assert len(set(orders)) == 40 > len(set(values))


def test_expected_coverage():
    """Of simulated sets of one distribution."""
    rng = np.random.default_rng(0)
    found = [value_of("coverage", rng.normal(size=(12, 2)), rng.normal(size=(9, 2)))
             for _ in range(300)]
    assert np.mean(found) == pytest.approx(coverage.expected_coverage(12, 9, 5), abs=0.02)
