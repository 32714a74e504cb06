"""False alarms and power of coverage, Fréchet distance and MMD of 3D features, on demo brains.

`pytest -s -m slow tests/test_statistics_of_features.py` prints the tables of docs/evaluation.md.
One draw takes two disjoint sets of subjects from 200. *Two modes*: every other brain
has the contrast of a second scanner (a gamma of 0.5); a set that dropped a mode has only the first.
*Blurred*: with a standard deviation of 0.4 voxels.
"""
import brain_cohorts
import numpy as np
import pytest
import two_sets

from metrics import coverage, inception, mmd, random_features, volume_features

SUBJECTS = 200
SEED = 5
DRAWS = 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Of each brain, of the same with the second contrast, and blurred, (200, F) each."""
    first = brain_cohorts.read_volumes(
        brain_cohorts.demo_brains(tmp_path_factory.mktemp("demo"), SUBJECTS, SEED))
    second = np.rint(255 * (first / 255) ** 0.5).astype(np.uint8)
    blurred = np.stack([brain_cohorts.blurred(v) for v in first])
    network = random_features.RandomNetwork()
    return {name: volume_features.features(network, volumes) for name, volumes in
            (("first", first), ("second", second), ("blurred", blurred))}


def draw(features, rng, n, kind):
    """Features of n real, then n synthetic brains."""
    chosen = rng.choice(SUBJECTS, 2 * n, replace=False)
    both = features["first"][chosen]
    if kind in ("two modes", "a mode dropped"):
        second = np.arange(2 * n) % 2 == 1
        if kind == "a mode dropped":
            second[n:] = False
        both[second] = features["second"][chosen[second]]
    elif kind == "blurred":
        both[n:] = features["blurred"][chosen[n:]]
    return both


def distances_of(found, n):
    """{name: (number of two weighted sets, tail of its test)}, as the report computes them."""
    values = volume_features.scaled(found, np.arange(2 * n))
    values = values - values.mean(0)
    products, groups = values @ values.T, np.arange(2 * n)
    kernel, _ = mmd.gaussian_kernel(products)
    distances = np.sqrt(mmd.squared_distances(products))
    numbers = {
        "Fréchet distance": (lambda a, b: inception.frechet(products, a, b), "upper"),
        "MMD": (lambda a, b: mmd.mmd_of_kernel(kernel, a, b, True), "upper")}
    for measure in coverage.MEASURES:
        numbers[measure.name] = (
            lambda a, b, measure=measure: measure.order_of_sets(distances, groups, a, b),
            measure.tail)
    return numbers


def table(features, n, kind, draws):
    """{name: p of each draw}, {name: mean value}."""
    rng = np.random.default_rng([n, len(kind)])
    found, values = {}, {}
    sets = np.repeat(np.eye(2), n, axis=1)[:, None]
    for _ in range(draws):
        numbers = distances_of(draw(features, rng, n, kind), n)
        for name, p in two_sets.p_values(numbers, np.arange(n), n, 199, rng).items():
            found.setdefault(name, []).append(p)
            values.setdefault(name, []).append(numbers[name][0](*sets)[0])
    shares = {name: float(np.mean(np.array(p) <= 0.05)) for name, p in found.items()}
    means = {name: float(np.mean(v)) for name, v in values.items()}
    for name, share in shares.items():
        print(f"\nN = {n}, {kind}, {name}: {means[name]:.3g}, p <= 0.05 in {share:.3f}", end="")
    return shares, means


@pytest.mark.parametrize("n", [16, 32])
def test_false_alarms(features, n):
    shares, _ = table(features, n, "alike", DRAWS)
    for name, share in shares.items():
        assert share <= 0.09, name      # 0.05 and 2.6 standard errors of 200 draws


def test_a_dropped_mode_lowers_coverage_and_not_density(features):
    _, whole = table(features, 32, "two modes", 50)
    shares, dropped = table(features, 32, "a mode dropped", 50)
    assert dropped["coverage"] < whole["coverage"] - 0.2
    assert dropped["density"] > whole["density"] - 0.1
    assert shares["coverage"] > 0.8


def test_a_blur_is_found(features):
    shares, _ = table(features, 32, "blurred", 50)
    assert max(shares.values()) > 0.5
