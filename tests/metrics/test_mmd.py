import itertools
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, golden, related
from scipy import linalg, ndimage, stats

from metrics import inception, intensity, memorization, ms_ssim, smoothness
from metrics import mmd as metrics


def by_scipy(x, y, protocol, length):
    """MS-SSIM of one pair straight from its formula, in float64."""
    weights, cs = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333], []
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2

    def smooth(v):
        return ndimage.gaussian_filter(v, 1.5, mode="reflect", truncate=4.0)  # radius 6

    for level in range(5):
        mx, my = smooth(x), smooth(y)
        vx, vy, vxy = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
        structure = (2 * vxy + c2) / (vx + vy + c2)
        cs.append(structure.mean())
        ssim = ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean()
        n = len(x) // 2 * 2
        x, y = (v[:n, :n, :n].reshape(n // 2, 2, n // 2, 2, n // 2, 2).mean((1, 3, 5)) for v in (x, y)) if level < 4 else (x, y)
    first = np.prod([c ** w for c, w in zip(cs[:4], weights[:4], strict=True)])
    return first * ssim ** (weights[4] * (4 if protocol == "kwon2019" else 1))


def test_ms_ssim_is_the_references():
    g = golden("volume_metrics.npz")
    volumes = g["volumes"].astype(np.float32)
    assert np.array_equal(g["pairs"], list(itertools.combinations(range(4), 2)))
    assert np.abs(ms_ssim.ms_ssim_pairs(volumes, "kwon2019") - g["ms_ssim_01"]).max() < 1e-4
    assert np.abs(ms_ssim.ms_ssim_pairs(volumes * 2 - 1, "kwon2019") - g["ms_ssim_m11"]).max() < 1e-4


@pytest.mark.parametrize("side", [16, 33, 48])
@pytest.mark.parametrize("protocol, length", [("kwon2019", 1), ("wang2003", 2)])
def test_ms_ssim_is_its_formula(side, protocol, length):
    volumes = 2 * related(3, side) - 1
    expected = [by_scipy(volumes[i], volumes[j], protocol, length) for i, j in itertools.combinations(range(3), 2)]
    assert np.allclose(ms_ssim.ms_ssim_pairs(volumes, protocol), expected, atol=1e-9)
    assert np.allclose(ms_ssim.ms_ssim_pairs(volumes.astype(np.float32), protocol), expected, atol=1e-5)


def test_ms_ssim_does_not_depend_on_blocks_or_order():
    volumes = (related(5, 20) * 255).astype(np.uint8)
    whole = ms_ssim.ms_ssim_pairs(volumes)
    assert np.array_equal(ms_ssim.ms_ssim_pairs(volumes, memory_gb=1e-9), whole)        # one volume a block
    assert np.array_equal(ms_ssim.ms_ssim_pairs(volumes, memory_gb=6e-4), whole)
    pairs = [(4, 1), (0, 0), (2, 3)]
    some = ms_ssim.ms_ssim_pairs(volumes, pairs=pairs)
    order = list(itertools.combinations(range(5), 2))
    assert np.allclose(some, [whole[order.index((1, 4))], 1, whole[order.index((2, 3))]], atol=1e-6)
    assert np.allclose(ms_ssim.ms_ssim_pairs(volumes / 127.5 - 1), whole, atol=1e-5)     # uint8 stands for [-1, 1] here
    done = []
    ms_ssim.ms_ssim_pairs(volumes, callback=done.append)
    assert sum(done) == 10


def test_ms_ssim_of_opposites_is_zero_not_nan():
    x = related(1, 16)[0] - 0.5
    assert ms_ssim.ms_ssim_pairs(np.stack([x, -x]))[0] == 0


def test_ms_ssim_errors():
    for shape, words in (((2, 15, 15, 15), "at least 16"), ((2, 16, 16, 17), "must be"), ((16, 16, 16), "must be")):
        with pytest.raises(ValueError, match=words):
            ms_ssim.ms_ssim_pairs(np.zeros(shape))
    with pytest.raises(ValueError, match="out of range"):
        ms_ssim.ms_ssim_pairs(np.zeros((2, 16, 16, 16)), pairs=[(0, 2)])


def test_mmd_linear_is_the_references():
    g = golden("volume_metrics.npz")
    v = g["volumes"].astype(np.float32)
    assert np.isclose(metrics.mmd_linear(v[:2], v[2:]), g["mmd_linear_01"], rtol=1e-5)
    assert np.isclose(metrics.mmd_linear(v[:2] * 2 - 1, v[2:] * 2 - 1), g["mmd_linear_m11"], rtol=1e-5)


def test_mmd_by_hand():
    x = np.array([0.0, 2, 4, 6]).reshape(4, 1, 1, 1)
    y = np.array([1.0, 1, 1, 5, 9]).reshape(5, 1, 1, 1)
    assert np.isclose(metrics.mmd_linear(x, y), (3 - 3.4) ** 2)
    # 2 * 44 / 12 of x (0 2 + 0 4 + 0 6 + 2 4 + 2 6 + 4 6), 2 * 90 / 20 of y (3 ones, 3 * 14, 45), and the product of the means
    assert np.isclose(metrics.mmd_linear(x, y, unbiased=True), 2 * 44 / 12 + 2 * 90 / 20 - 2 * 3 * 3.4)
    assert np.isclose(metrics.mmd_linear(x, y, batch=2), ((1 - 1) ** 2 + (5 - 3) ** 2) / 2)
    assert metrics.mmd_linear(x, x) == 0
    u = np.array([0, 51], np.uint8).reshape(2, 1, 1, 1)  # uint8 stands for [0, 1]
    assert np.isclose(metrics.mmd_linear(u, u[:1]), 0.1 ** 2)
    with pytest.raises(ValueError, match="smaller set has 4"):
        metrics.mmd_linear(x, y, batch=5)
    with pytest.raises(ValueError, match="one size"):
        metrics.mmd_linear(x, np.zeros((2, 2, 2, 2)))


def test_mmd_rbf_by_its_double_sums():
    rng = np.random.default_rng(0)
    x, y = rng.random((5, 3, 3, 3)), rng.random((4, 3, 3, 3)) + 0.3
    z = np.concatenate([x, y]).reshape(9, -1)
    d2 = ((z[:, None] - z[None]) ** 2).sum(-1)
    median = np.median([d2[i, j] for i in range(9) for j in range(i)])
    k = np.exp(-d2 / median)
    expected = (sum(k[i, j] for i in range(5) for j in range(5) if i != j) / 20
                + sum(k[i, j] for i in range(5, 9) for j in range(5, 9) if i != j) / 12
                - 2 * sum(k[i, j] for i in range(5) for j in range(5, 9)) / 20)
    value, distance = metrics.mmd_rbf(x, y)
    assert np.isclose(value, expected) and np.isclose(distance ** 2, median)
    assert np.allclose(metrics.squared_distances(metrics.gram(np.concatenate([x, y]))), d2)
    assert abs(np.mean([metrics.mmd_rbf(*rng.normal(size=(2, 20, 2, 2, 2)))[0] for _ in range(50)])) < 0.01  # unbiased


@pytest.mark.parametrize("unbiased", [False, True])
def test_weights_are_repeated_volumes(unbiased):
    """Of a replicate, each kernel value is that of the set with its volumes repeated, but never of a volume with itself.

    The unbiased one is that of the kernel seen from the middle of the two means."""
    z = np.random.default_rng(0).normal(size=(7, 4))
    counts_a, counts_b = np.array([2, 0, 1, 3, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 2])
    i, j = (np.repeat(np.arange(7), c) for c in (counts_a, counts_b))
    z -= (z[i].mean(0) + z[j].mean(0)) / 2
    kernel = z @ z.T
    if unbiased:
        def within(k):
            values = [kernel[p, q] for p in k for q in k if p != q]
            return sum(values) / len(values)
        expected = within(i) + within(j) - 2 * kernel[np.ix_(i, j)].mean()
    else:
        expected = np.sum((z[i].mean(0) - z[j].mean(0)) ** 2)
    a, b = counts_a[None].astype(float), counts_b[None].astype(float)
    assert np.isclose(metrics.mmd_of_kernel(kernel, a, b, unbiased)[0], expected)
    assert np.isclose(metrics.mmd_of_kernel((z + 9) @ (z + 9).T, a, b, unbiased)[0], expected)  # wherever the origin is
    if unbiased:  # volumes 0 and 2 are of one subject: the mean over pairs of two subjects
        values = [kernel[p, q] for p in i for q in i if {p, q} not in ({0, 2}, {0}, {2}, {3})]
        expected += sum(values) / len(values) - within(i)
        assert np.isclose(metrics.mmd_of_kernel(kernel, a, b, True, groups=[0, 1, 0, 3, 4, 5, 6])[0], expected)
    assert np.isclose(metrics.mmd_of_batches(kernel, i, j, 2), np.mean([np.sum((z[i[k:k + 2]].mean(0) - z[j[k:k + 2]].mean(0)) ** 2)
                                                                         for k in (0, 2)]))
    order = ms_ssim.all_pairs(7)
    values = kernel[order[:, 0], order[:, 1]]
    expected = np.mean([kernel[p, q] for n, p in enumerate(i) for q in i[:n] if p != q])
    assert np.allclose(ms_ssim.mean_of_pairs(values, order, np.stack([a[0], np.ones(7), np.eye(7)[0]])),
                       [expected, values.mean(), np.nan], equal_nan=True)


def test_gram_streams_and_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (9, 8, 8, 8)).astype(np.uint8), rng.integers(0, 256, (4, 8, 8, 8)).astype(np.uint8)
    direct = (x.reshape(9, -1) / 255.0) @ (x.reshape(9, -1) / 255.0).T
    done = []
    assert np.allclose(metrics.gram(x, memory_gb=3 * 512 * 8 * 2 / 1e9, callback=done.append), direct, rtol=1e-13)  # two a block
    assert done == [2, 2, 2, 2, 1]
    assert np.allclose(metrics.gram(y, x), (y.reshape(4, -1) / 255.0) @ (x.reshape(9, -1) / 255.0).T, rtol=1e-13)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=x.shape)
    mapped[:] = x
    assert np.array_equal(metrics.gram(mapped), metrics.gram(x))


def test_gram_of_many_volumes_is_bounded():
    """The blocks in memory obey the bound: 64 volumes of 64 cubed are 134 MB in float64, and at most 40 MB may be taken."""
    code = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from metrics import mmd as metrics
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 64), dtype=np.uint8)
metrics.gram(x[:2, :16, :16, :16])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics.gram(x, memory_gb=0.04)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


@pytest.mark.parametrize("bound", [0.05, 0.1])
def test_ms_ssim_memory_is_bounded(bound):
    """Statistics of 24 volumes of 96 cubed are 290 MB; a bound of 50 or 100 MB holds but for the allocator's rest."""
    code = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from metrics import mmd as metrics
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 96), dtype=np.uint8)
ms_ssim.ms_ssim_pairs(x[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ms_ssim.ms_ssim_pairs(x, pairs=ms_ssim.all_pairs(24)[::5], memory_gb=float(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT, str(bound)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5 * 1000 * bound


@pytest.mark.parametrize("n, m, d", [(6, 9, 40), (30, 20, 5)])
def test_frechet_is_the_formula(n, m, d):
    """Fewer vectors than dimensions, and more: against the matrix square root."""
    rng = np.random.default_rng(n)
    f, g = rng.normal(size=(n, d)), rng.normal(size=(m, d)) @ np.diag(rng.uniform(0.5, 2, d)) + 0.3
    z = np.concatenate([f, g])
    z = z - z.mean(0)
    s, t = np.cov(f, rowvar=False), np.cov(g, rowvar=False)
    root = np.sqrt(np.clip(linalg.eigvals(s @ t).real, 0, None)).sum()
    expected = ((f.mean(0) - g.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    a = np.arange(n + m)[None] < n
    done = []
    assert np.isclose(inception.frechet(z @ z.T, 1.0 * a, 1.0 - a, done.append)[0], expected, rtol=1e-5) and done == [1]
    # a replicate is the set with its vectors repeated
    counts = np.array([2, 1, 0] + [1] * (n - 3))
    again = np.cov(np.repeat(f, counts, axis=0), rowvar=False)
    root = np.sqrt(np.clip(linalg.eigvals(again @ t).real, 0, None)).sum()
    expected = ((np.repeat(f, counts, axis=0).mean(0) - g.mean(0)) ** 2).sum() + np.trace(again) + np.trace(t) - 2 * root
    assert np.isclose(inception.frechet(z @ z.T, np.pad(counts, (0, m))[None] * 1.0, 1.0 - a)[0], expected, rtol=1e-5)


def test_frechet_infinity_removes_the_bias():
    """Two samples of one distribution: the distance falls as 1/N, and extrapolates to nearly nothing."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(800, 6))
    products, i, j = z @ z.T, np.arange(400), np.arange(400, 800)
    a = (np.arange(800) < 400)[None] * 1.0
    found = inception.frechet_infinity(products, i, j, seed=0)
    plain = inception.frechet(products, a, 1 - a)[0]
    assert np.isclose(found["fid"][-1], plain) and found["n"][0] == 100 and found["n"][-1] == 400
    assert abs(found["value"]) < plain / 3 and found["r2"] > 0.9
    slope, intercept = np.polyfit(1 / np.array(found["n"]), found["fid"], 1)
    assert np.isclose(found["value"], intercept)
    assert inception.frechet_infinity(products, i[:7], j, seed=0) is None
    twice = np.repeat(np.repeat(products, 2, axis=0), 2, axis=1)  # each vector twice, as two equal slices of a volume
    again = inception.frechet_infinity(twice, i, j, seed=0, each=2)
    assert again["n"] == found["n"] and again["value"] == pytest.approx(found["value"], abs=plain / 10)


def test_gradient_energy_by_hand():
    volume = np.zeros((6, 6, 6), np.uint8)
    volume[:, :, 3:] = 51                      # one step of 0.2 between slices 2 and 3: from the first rgb tile to the second
    assert np.allclose(smoothness.gradient_energy(volume), [0, 0, 0.04 / 5, 0, 0.04])
    volume[:, :, 3:] = 0
    volume[4:] = 102                           # a step of 0.4 along the first axis
    assert np.allclose(smoothness.gradient_energy(volume), [0.16 / 5, 0, 0, 0, 0])
    volume[:] = 0
    volume[:, :, 1] = 255                      # inside a tile: two steps of 1 among its four
    assert np.allclose(smoothness.gradient_energy(volume), [0, 0, 2 / 5, 2 / 4, 0])
    assert np.allclose(smoothness.gradient_energy(volume / 255.0), smoothness.gradient_energy(volume))


def test_histogram_distance_is_wasserstein():
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 256, (5, 6, 6, 6)).astype(np.uint8)
    volumes[3:] //= 2
    h = np.stack([intensity.intensity_histogram(v) for v in volumes])
    assert np.allclose(h.sum(1), 1) and h[0, volumes[0, 0, 0, 0]] >= 1 / 216
    a, b = np.array([[1.0, 1, 1, 0, 0]]), np.array([[0, 0, 0, 2.0, 1]])
    first, second = volumes[:3].reshape(-1) / 255, np.concatenate([volumes[3], volumes[3], volumes[4]]).reshape(-1) / 255
    assert np.isclose(intensity.histogram_distance(h, a, b)[0], stats.wasserstein_distance(first, second))
    bright = [v[v > 0.05] for v in (first, second)]
    assert np.isclose(intensity.histogram_distance(h, a, b, above=0.05)[0], stats.wasserstein_distance(*bright))
    assert intensity.histogram_distance(h, a, a)[0] == 0


def test_correlations_and_shares():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (3, 5, 5, 5)).astype(np.uint8), rng.integers(0, 256, (4, 5, 5, 5)).astype(np.uint8)
    y[2] = x[1]
    c = memorization.correlations(x, y)
    assert np.allclose(c, np.corrcoef(x.reshape(3, -1), y.reshape(4, -1))[:3, 3:]) and np.isclose(c[1, 2], 1)
    distance = np.array([1.0, 2, 3, 4, 0.5, 1.1, 9, 2.5])
    a, b = np.array([[1.0] * 4 + [0] * 4, [2.0, 0, 0, 2] + [0] * 4]), np.array([[0.0] * 4 + [1] * 4, [0.0] * 4 + [1, 3, 0, 0]])
    # number 0.3 (4 + 1) = 1.5 of 1 2 3 4 in order: 1.5; of 1 1 4 4: 1. The 5th percentile of so few is the least of them
    assert np.allclose(memorization.share_closer(distance, distance, a, b, 0.3), [2 / 4, 1 / 4])
    assert np.allclose(memorization.share_closer(distance, distance, a, b), [1 / 4, 1 / 4])


def test_share_of_a_set_alike_is_the_aim():
    """Volumes that are as far from the training set as real ones: 5 % of them come nearer, or 1 in n + 1 when real ones are few."""
    rng = np.random.default_rng(0)
    for n in (4, 32):
        a = np.pad(np.ones((1, n)), ((0, 0), (0, 50)))
        shares = [memorization.share_closer(d, d, a, 1 - a)[0] for d in rng.random((2000, n + 50))]
        assert np.isclose(np.mean(shares), max(0.05, 1 / (n + 1)), atol=0.012)
