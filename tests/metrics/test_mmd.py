import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, golden

from metrics import mmd


def test_mmd_linear_is_the_references():
    g = golden("volume_metrics.npz")
    v = g["volumes"].astype(np.float32)
    assert np.isclose(mmd.mmd_linear(v[:2], v[2:]), g["mmd_linear_01"], rtol=1e-5)
    found = mmd.mmd_linear(v[:2] * 2 - 1, v[2:] * 2 - 1)
    assert np.isclose(found, g["mmd_linear_m11"], rtol=1e-5)


def test_mmd_by_hand():
    x = np.array([0.0, 2, 4, 6]).reshape(4, 1, 1, 1)
    y = np.array([1.0, 1, 1, 5, 9]).reshape(5, 1, 1, 1)
    assert np.isclose(mmd.mmd_linear(x, y), (3 - 3.4) ** 2)
    # 2 * 44 / 12 of x (0 2 + 0 4 + 0 6 + 2 4 + 2 6 + 4 6), 2 * 90 / 20 of y (3 ones, 3 * 14, 45),
    # and the product of the means
    expected = 2 * 44 / 12 + 2 * 90 / 20 - 2 * 3 * 3.4
    assert np.isclose(mmd.mmd_linear(x, y, unbiased=True), expected)
    assert np.isclose(mmd.mmd_linear(x, y, batch=2), ((1 - 1) ** 2 + (5 - 3) ** 2) / 2)
    assert mmd.mmd_linear(x, x) == 0
    u = np.array([0, 51], np.uint8).reshape(2, 1, 1, 1)  # uint8 stands for [0, 1]
    assert np.isclose(mmd.mmd_linear(u, u[:1]), 0.1 ** 2)
    with pytest.raises(ValueError, match="smaller set has 4"):
        mmd.mmd_linear(x, y, batch=5)
    with pytest.raises(ValueError, match="one size"):
        mmd.mmd_linear(x, np.zeros((2, 2, 2, 2)))


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
    value, distance = mmd.mmd_rbf(x, y)
    assert np.isclose(value, expected) and np.isclose(distance ** 2, median)
    assert np.allclose(mmd.squared_distances(mmd.gram(np.concatenate([x, y]))), d2)
    values = [mmd.mmd_rbf(*rng.normal(size=(2, 20, 2, 2, 2)))[0] for _ in range(50)]
    assert abs(np.mean(values)) < 0.01  # unbiased


@pytest.mark.parametrize("unbiased", [False, True])
def test_weights_are_repeated_volumes(unbiased):
    """Of a replicate, each kernel value is that of the set with its volumes repeated, but never of
    a volume with itself.

    The unbiased one is that of the kernel seen from the middle of the two means."""
    z = np.random.default_rng(0).normal(size=(7, 4))
    counts_a, counts_b = np.array([2, 0, 1, 3, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 2])
    i, j = (np.repeat(np.arange(7), c) for c in (counts_a, counts_b))
    z -= (z[i].mean(0) + z[j].mean(0)) / 2
    kernel = z @ z.T

    def within(k):
        values = [kernel[p, q] for p in k for q in k if p != q]
        return sum(values) / len(values)

    if unbiased:
        expected = within(i) + within(j) - 2 * kernel[np.ix_(i, j)].mean()
    else:
        expected = np.sum((z[i].mean(0) - z[j].mean(0)) ** 2)
    a, b = counts_a[None].astype(float), counts_b[None].astype(float)
    assert np.isclose(mmd.mmd_of_kernel(kernel, a, b, unbiased)[0], expected)
    elsewhere = (z + 9) @ (z + 9).T
    assert np.isclose(mmd.mmd_of_kernel(elsewhere, a, b, unbiased)[0], expected)
    if unbiased:  # volumes 0 and 2 are of one subject: the mean over pairs of two subjects
        values = [kernel[p, q] for p in i for q in i if {p, q} not in ({0, 2}, {0}, {2}, {3})]
        expected += sum(values) / len(values) - within(i)
        found = mmd.mmd_of_kernel(kernel, a, b, True, groups=[0, 1, 0, 3, 4, 5, 6])[0]
        assert np.isclose(found, expected)
    batches = [np.sum((z[i[k:k + 2]].mean(0) - z[j[k:k + 2]].mean(0)) ** 2) for k in (0, 2)]
    assert np.isclose(mmd.mmd_of_batches(kernel, i, j, 2), np.mean(batches))


def test_unbiased_mmd_counts_each_subject_once():
    """By its double sum: the mean over pairs of two subjects of the mean kernel of their scans."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(9, 4)) + 7
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5])            # set a: subjects 0, 1, 2
    a = np.array([[1.0] * 6 + [0] * 3])
    kernel = z @ z.T
    of_subjects = np.array([[kernel[np.ix_(groups == i, groups == j)].mean() for j in range(6)]
                            for i in range(6)])
    off = ~np.eye(3, dtype=bool)
    expected = (of_subjects[:3, :3][off].mean() + of_subjects[3:, 3:][off].mean()
                - 2 * of_subjects[:3, 3:].mean())
    assert np.isclose(mmd.mmd_of_kernel(kernel, a, 1 - a, True, groups)[0], expected)
    elsewhere = (z - 40) @ (z - 40).T
    assert np.isclose(mmd.mmd_of_kernel(elsewhere, a, 1 - a, True, groups)[0], expected)


def test_unbiased_mmd_is_unbiased_for_unequal_numbers_of_scans():
    """One subject with eight scans, eight with one, against 16 others of the same distribution:
    0 on average, where the kernel relative to the middle of the means gives 0.06 of the trace."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(9), [8] + [1] * 8)
    groups = np.concatenate([subjects, 9 + np.arange(16)])
    a = np.pad(np.ones((1, 16)), ((0, 0), (0, 16)))
    found = []
    for _ in range(1500):
        x = np.sqrt(0.9) * rng.normal(size=(9, 20))[subjects]
        x += np.sqrt(0.1) * rng.normal(size=x.shape)
        z = np.concatenate([x, rng.normal(size=(16, 20))]) + 1
        found.append(mmd.mmd_of_kernel(z @ z.T, a, 1 - a, True, groups)[0] / 20)
    assert abs(np.mean(found)) < 4 * np.std(found) / 1500 ** 0.5 < 0.02


def test_mean_pair_distance_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(7, 5))
    squares = ((z[:, None] - z) ** 2).sum(-1)
    groups = np.array([0, 0, 1, 2, 3, 4, 5])
    a = np.array([[1.0, 1, 1, 1, 0, 0, 0]])
    found = mmd.mean_pair_distance(z @ z.T, groups, a, 1 - a)
    assert np.isclose(found[0], squares[:4, 4:].mean())
    within = [squares[i, j] for i in range(4) for j in range(4) if i != j and {i, j} != {0, 1}]
    assert np.isclose(mmd.mean_pair_distance(z @ z.T, groups, a, a)[0], np.mean(within))
    counts = np.array([[2.0, 0, 3, 1, 0, 0, 0], [1.0, 0, 0, 0, 0, 0, 0]])   # of replicates
    found = mmd.mean_pair_distance(z @ z.T, groups, counts, counts)
    pairs = [squares[i, j] * counts[0, i] * counts[0, j] for i in (0, 2, 3) for j in (0, 2, 3)]
    assert np.isclose(found[0], sum(pairs) / (6 ** 2 - 4 - 9 - 1)) and np.isnan(found[1])
    copies = np.ones((4, 5))
    assert mmd.mean_pair_distance(copies @ copies.T, np.arange(4), a[:, 1:5], 1 - a[:, 1:5]) == 0


def test_gram_streams_and_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (9, 8, 8, 8)).astype(np.uint8)
    y = rng.integers(0, 256, (4, 8, 8, 8)).astype(np.uint8)
    rows_x, rows_y = x.reshape(9, -1) / 255.0, y.reshape(4, -1) / 255.0
    done = []
    voxels_per_block = 200
    found = mmd.gram(x, memory_gb=9 * (8 + 1) * voxels_per_block / 1e9, callback=done.append)
    assert np.allclose(found, rows_x @ rows_x.T, rtol=1e-13)
    assert done == [200, 200, 112]
    assert np.array_equal(found, mmd.gram(x))       # whole numbers: the blocks do not matter
    assert np.array_equal(found, found.T)
    assert np.allclose(mmd.gram(y, x), rows_y @ rows_x.T, rtol=1e-13)
    assert np.allclose(mmd.gram(y / 255.0, x), rows_y @ rows_x.T, rtol=1e-13)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=x.shape)
    mapped[:] = x
    assert np.array_equal(mmd.gram(mapped), mmd.gram(x))


def test_gram_of_many_volumes_in_pieces():
    """More volumes than one matrix product takes; the triangle that is not computed is mirrored."""
    x = np.random.default_rng(0).integers(0, 256, (600, 3, 3, 3)).astype(np.uint8)
    rows = x.reshape(600, -1).astype(np.int64)
    assert np.array_equal(mmd.gram(x), (rows @ rows.T) / 255 ** 2)


def test_gram_of_many_volumes_is_bounded():
    """The blocks in memory obey the bound: 64 volumes of 64 cubed are 134 MB in float64, and at
    most 40 MB may be taken."""
    code = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from metrics import mmd
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 64), dtype=np.uint8)
mmd.gram(x[:2, :16, :16, :16])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mmd.gram(x, memory_gb=0.04)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True,
                          check=True)
    assert float(done.stdout) < 60
