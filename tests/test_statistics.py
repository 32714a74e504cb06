"""What the numbers of an evaluation are worth: coverage, false alarms and power, by simulation.

Volumes are stood in for by vectors of 60 values whose variances fall as those of brains do, two
scans of a subject by vectors that correlate by 0.9. The slow part prints the tables that
docs/evaluation.md quotes: `pytest -s -m slow tests/test_statistics.py`.
"""
import numpy as np
import pytest
import two_sets
from scipy import stats

from metrics import (
    inception,
    memorization,
    mmd,
    ms_ssim,
    permutation,
    resampling,
    statistic,
    uncertainty,
)
from metrics.smoothness import energy_ratio
from metrics.volume_sets import VolumeSet

VALUES = 60
SCALE = 1 / np.arange(1, VALUES + 1) ** 0.7
TRACE = (SCALE ** 2).sum()
RELATED = 0.9  # correlation of two scans of a subject


def scans(rng, subjects, each=1, shift=0.0, scale=1.0):
    """Vectors (subjects * each, 60); `shift`: squared, as a share of the trace."""
    person = np.repeat(rng.normal(size=(subjects, VALUES)), each, axis=0)
    own = rng.normal(size=person.shape)
    related = RELATED if each > 1 else 1.0
    z = np.sqrt(related) * person + np.sqrt(1 - related) * own
    return scale * z * SCALE + np.sqrt(shift * TRACE / VALUES)


def distances_of(z):
    """{name: (distance of two weighted sets, tail of its test)} of a pool of vectors."""
    products = z @ z.T
    kernel, _ = mmd.gaussian_kernel(products)
    centered = z - z.mean(0)
    energy = np.square(z).sum(1)[:, None]
    return {
        "MMD, linear": (lambda a, b: mmd.mmd_of_kernel(products, a, b, False), "upper"),
        "MMD, unbiased": (lambda a, b: mmd.mmd_of_kernel(products, a, b, True), "upper"),
        "MMD, Gaussian": (lambda a, b: mmd.mmd_of_kernel(kernel, a, b, True), "upper"),
        "FID": (lambda a, b: inception.frechet(centered @ centered.T, a, b), "upper"),
        "energy ratio": (lambda a, b: energy_ratio(energy, 0, a, b), "both")}


def p_values(rng, n, permutations, each=1, shift=0.0, names=None):
    """{name: p} of one evaluation; the real set has `each` scans a subject."""
    real, synthetic = scans(rng, n, each), scans(rng, n, 1, shift)
    return two_sets.p_values(distances_of(np.concatenate([real, synthetic])),
                             np.repeat(np.arange(n), each), n, permutations, rng, names)


def assert_uniform(found, at_least):
    for name, p in found.items():
        assert stats.kstest(p, "uniform").pvalue > at_least, name


def test_p_is_uniform_at_the_null():
    rng = np.random.default_rng(0)
    sets = [p_values(rng, 8, 59, each=2) for _ in range(60)]
    assert_uniform({name: [p[name] for p in sets] for name in sets[0]}, at_least=0.01)


def test_p_finds_what_differs():
    rng = np.random.default_rng(0)
    sets = [p_values(rng, 16, 99, shift=0.5, names=("MMD, unbiased", "FID")) for _ in range(20)]
    assert np.mean([p["MMD, unbiased"] <= 0.05 for p in sets]) > 0.8


def test_floor_of_a_perfect_generator_is_matched_by_subjects():
    """Two scans a subject, almost equal: real against as few synthetic subjects is the floor. As
    many volumes as a half holds would give 3/4 of it, as they are of twice as many subjects."""
    rng = np.random.default_rng(0)
    ratios = []
    for seed in range(60):
        vectors = np.concatenate([np.repeat(rng.normal(size=(16, 20)), 2, axis=0),
                                  rng.normal(size=(32, 20))])
        real = a_set([f"s{i // 2}" for i in range(32)])
        pool = statistic.Pool(real, a_set([f"v{i}" for i in range(32)]))
        resampled = resampling.resamples(pool, 0, seed)
        products = vectors @ vectors.T
        floor, matched = (mmd.mmd_of_kernel(products, *sets, unbiased=False).mean()
                          for sets in (resampled.halves, resampled.matched))
        ratios.append(matched / floor)
    assert abs(np.mean(ratios) - 1) < 0.08


def a_set(subjects):
    return VolumeSet("--real", "folder", None, [f"v{i}" for i in range(len(subjects))], subjects, 2,
                     np.ones(3), read=None)


# ------------------------------------------------------------------------------------- slow part

@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("each", [1, 2])
def test_p_is_uniform(n, each):
    rng = np.random.default_rng([n, each])
    sets = [p_values(rng, n, 199, each) for _ in range(200)]
    found = {name: np.array([p[name] for p in sets]) for name in sets[0]}
    print(f"\nN = {n}, {each} scans a subject: share of p <= 0.05",
          {name: round(float((p <= 0.05).mean()), 3) for name, p in found.items()})
    assert_uniform(found, at_least=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2])
def test_p_at_eight_subjects_is_small_as_rarely_as_it_says(each):
    """Of many more sets: 200 alone have given 0.085 by chance."""
    rng = np.random.default_rng([1, each, 99])
    names = ("MMD, linear", "MMD, unbiased", "MMD, Gaussian", "energy ratio")
    sets = [p_values(rng, 8, 199, each, names=names) for _ in range(1500)]
    for name in names:
        rate = np.mean([p[name] <= 0.05 for p in sets])
        print(f"\nN = 8, {each} scans a subject, {name}: p <= 0.05 in {rate:.4f} of 1500", end="")
        assert abs(rate - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 1500), name


def means_of(pool):
    """{name: number of weighted sets} of those that have an interval."""
    pairs = ms_ssim.all_pairs(len(pool))
    similarity = np.exp(-mmd.squared_distances(pool @ pool.T) / 5)[tuple(pairs.T)]
    energy = np.exp(0.25 * pool[:, :1])        # varies by 25% between scans
    skewed = np.exp(0.5 * pool[:, 1] / SCALE[1])

    def mean(a, b):
        return b @ skewed / b.sum(1)

    return {"MS-SSIM difference": lambda a, b: (ms_ssim.mean_of_pairs(similarity, pairs, b)
                                                - ms_ssim.mean_of_pairs(similarity, pairs, a)),
            "energy ratio": lambda a, b: energy_ratio(energy, 0, a, b),
            "mean, skewed": mean}


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_coverage(n, each, scale):
    """The 95% interval holds what one gets on average with as many subjects."""
    rng = np.random.default_rng([n, each])
    subjects = np.concatenate([np.repeat(np.arange(n), each), 1000 + np.arange(n)])
    found = {}
    for trial in range(300):
        pool = np.concatenate([scans(rng, n, each), scans(rng, n, 1, scale=scale)])
        for name, compute in means_of(pool).items():
            found.setdefault(name, []).append(
                two_sets.interval_of(compute, subjects, n * each, 300, trial))
    for name, intervals in found.items():
        expected = np.mean([value for _, value in intervals])
        covered = np.mean([low <= expected <= high for (low, high), _ in intervals])
        print(f"\nN = {n}, {each} scans a subject, scale {scale}, {name}: {covered:.3f}", end="")
        assert covered >= (0.86 if name == "mean, skewed" else 0.90), name


@pytest.mark.slow
@pytest.mark.parametrize("m", [8, 16, 32, 60])
def test_share_interval_misses_its_target_as_rarely_as_it_says(m):
    """Of values drawn alike, with the interpolated threshold that the report uses."""
    rng = np.random.default_rng(m)
    n, target = 32, max(memorization.CLOSE_SHARE, 1 / (m + 1))
    ends = {k: uncertainty.share_interval(k / n, n, m) for k in range(n + 1)}
    counts = []
    for _ in range(4000):
        threshold = memorization.close_threshold(rng.random(m))
        counts.append(int((rng.random(n) < threshold).sum()))
    above = np.mean([ends[k][0] > target for k in counts])
    print(f"\nN_real = {m}: lower end above the target in {100 * above:.1f}%")
    assert above <= 0.025 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n, trials", [(16, 300), (32, 300), (100, 60), (500, 20)])
def test_power(n, trials):
    """Differences of the mean by 2, 5, 10 and 20% of the trace."""
    rng = np.random.default_rng(n)
    power = []
    for shift in (0.0, 0.02, 0.05, 0.1, 0.2):
        found = [p_values(rng, n, 99, 1, shift, ("MMD, unbiased",))["MMD, unbiased"] <= 0.05
                 for _ in range(trials)]
        power.append(float(np.mean(found)))
    print(f"\nN = {n}: MMD p <= 0.05 at shifts of 0, 2, 5, 10, 20% of the trace: {power}")
    assert power[0] < 0.05 + 4 * np.sqrt(0.05 / trials) and power[-1] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 32, 100, 500])
def test_fid_of_one_distribution_is_mostly_bias(n):
    """FID and FID∞ of two sets of one distribution, in 2,048 dimensions, over the trace."""
    rng = np.random.default_rng(n)
    scale = 1 / np.arange(1, 2049) ** 0.7
    plain, limit = [], []
    for seed in range(10 if n < 500 else 2):
        z = rng.normal(size=(2 * n, 2048)) * scale
        products = z @ z.T / (scale ** 2).sum()
        a = (np.arange(2 * n) < n)[None] * 1.0
        plain.append(inception.frechet(products, a, 1 - a)[0])
        found = inception.frechet_infinity(products, np.arange(n), n + np.arange(n), seed, draws=5)
        limit.append(found["value"])
    print(f"\nN = {n}: FID {np.mean(plain):.3f}, FID∞ {np.min(limit):.3f} to {np.max(limit):.3f}")
    assert np.mean(plain) > np.mean(limit) and np.mean(limit) > -0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 32])
def test_adjusted_p_rarely_misses_in_a_report(n):
    """A perfect generator's report: any p below 0.05, and any adjusted one."""
    rng = np.random.default_rng(n)
    sets = [list(p_values(rng, n, 199).values()) for _ in range(200)]
    plain = np.mean([min(p) <= 0.05 for p in sets])
    adjusted = np.mean([permutation.holm(p).min() <= 0.05 for p in sets])
    print(f"\nN = {n}: any of 5 p <= 0.05 in {plain:.3f}, any adjusted one in {adjusted:.3f}")
    assert adjusted <= 0.05 + 4 * np.sqrt(0.05 / 200) and adjusted < plain
