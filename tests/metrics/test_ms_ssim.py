import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, golden, related
from scipy import ndimage

from metrics import gaussian_filter, ms_ssim, subject_pairs, threads
from metrics.options import MetricOptions
from metrics.statistic import Pool
from metrics.volume_sets import VolumeSet


def by_scipy(x, y, protocol, length):
    """MS-SSIM of one pair straight from its formula, in float64."""
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2

    def smooth(v):
        return ndimage.gaussian_filter(v, 1.5, mode="reflect", truncate=4.0)  # radius 6

    def halve(v):
        n = len(v) // 2 * 2
        return v[:n, :n, :n].reshape(n // 2, 2, n // 2, 2, n // 2, 2).mean((1, 3, 5))

    cs = []
    for level in range(5):
        mx, my = smooth(x), smooth(y)
        vx, vy = smooth(x * x) - mx * mx, smooth(y * y) - my * my
        structure = (2 * (smooth(x * y) - mx * my) + c2) / (vx + vy + c2)
        cs.append(structure.mean())
        ssim = ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean()
        if level < 4:
            x, y = halve(x), halve(y)
    first = np.prod([c ** w for c, w in zip(cs[:4], weights[:4], strict=True)])
    return first * ssim ** (weights[4] * (4 if protocol == "kwon2019" else 1))


def test_ms_ssim_is_the_references():
    g = golden("volume_metrics.npz")
    volumes = g["volumes"].astype(np.float32)
    assert np.array_equal(g["pairs"], list(itertools.combinations(range(4), 2)))
    found = ms_ssim.ms_ssim_pairs(volumes, "kwon2019", data_range=1.0)
    assert np.abs(found - g["ms_ssim_01"]).max() < 1e-4
    found = ms_ssim.ms_ssim_pairs(volumes * 2 - 1, "kwon2019")
    assert np.abs(found - g["ms_ssim_m11"]).max() < 1e-4


@pytest.mark.parametrize("side", [16, 33, 48])
@pytest.mark.parametrize("protocol, length", [("kwon2019", 1), ("wang2003", 2)])
def test_ms_ssim_is_its_formula(side, protocol, length):
    volumes = 2 * related(3, side) - 1
    expected = [by_scipy(volumes[i], volumes[j], protocol, length)
                for i, j in itertools.combinations(range(3), 2)]
    assert np.allclose(ms_ssim.ms_ssim_pairs(volumes, protocol), expected, atol=1e-9)
    single = ms_ssim.ms_ssim_pairs(volumes.astype(np.float32), protocol)
    assert np.allclose(single, expected, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 40])
def test_gaussian_filter_is_scipys(n):
    rng = np.random.default_rng(n)
    x, y = rng.random((2, n, n, n))
    smooth = gaussian_filter.GaussianFilter(n, 1.5, 6, "cpu", torch.float64)
    found = smooth(torch.from_numpy(x))
    assert np.allclose(found, ndimage.gaussian_filter(x, 1.5, mode="reflect", truncate=4.0))
    constant = torch.tensor(0.25, dtype=torch.float64)
    found = smooth(torch.from_numpy(x), torch.from_numpy(y), constant)
    expected = ndimage.gaussian_filter(0.25 + x * y, 1.5, mode="reflect", truncate=4.0)
    assert np.allclose(found, expected)


def test_ms_ssim_does_not_depend_on_blocks_or_order():
    volumes = (related(5, 20) * 255).astype(np.uint8)
    whole = ms_ssim.ms_ssim_pairs(volumes)
    one_volume_per_block = ms_ssim.ms_ssim_pairs(volumes, memory_gb=1e-9)
    assert np.array_equal(one_volume_per_block, whole)
    assert np.array_equal(ms_ssim.ms_ssim_pairs(volumes, memory_gb=6e-4), whole)
    some = ms_ssim.ms_ssim_pairs(volumes, pairs=[(4, 1), (0, 0), (2, 3)])
    order = list(itertools.combinations(range(5), 2))
    expected = [whole[order.index((1, 4))], 1, whole[order.index((2, 3))]]
    assert np.allclose(some, expected, atol=1e-6)
    # uint8 stands for [-1, 1] here
    assert np.allclose(ms_ssim.ms_ssim_pairs(volumes / 127.5 - 1), whole, atol=1e-5)
    done = []
    ms_ssim.ms_ssim_pairs(volumes, callback=done.append)
    assert sum(done) == 10


def test_ms_ssim_of_opposites_is_zero_not_nan():
    x = related(1, 16)[0] - 0.5
    assert ms_ssim.ms_ssim_pairs(np.stack([x, -x]))[0] == 0


def test_ms_ssim_errors():
    for shape, words in (((2, 15, 15, 15), "at least 16"), ((2, 16, 16, 17), "must be"),
                         ((16, 16, 16), "must be")):
        with pytest.raises(ValueError, match=words):
            ms_ssim.ms_ssim_pairs(np.zeros(shape))
    with pytest.raises(ValueError, match="out of range"):
        ms_ssim.ms_ssim_pairs(np.zeros((2, 16, 16, 16)), pairs=[(0, 2)])


def test_ms_ssim_of_floats_in_another_range_is_refused():
    """The protocols are for [-1, 1]; [0, 1] would silently give other numbers."""
    volumes = (related(2, 16) * 255).astype(np.uint8)
    expected = ms_ssim.ms_ssim_pairs(volumes)
    unit = volumes / 255.0
    for wrong in (unit, unit.astype(np.float32), volumes.astype(np.float64), unit - 2):
        with pytest.raises(ValueError, match=r"the protocols are for \[-1, 1\]"):
            ms_ssim.ms_ssim_pairs(wrong)
    assert np.allclose(ms_ssim.ms_ssim_pairs(2 * unit - 1), expected, atol=1e-5)
    taken_as_they_are = ms_ssim.ms_ssim_pairs(unit, data_range=1.0)
    assert abs(taken_as_they_are - expected)[0] > 0.1


def test_mean_of_pairs_by_hand():
    """Of repeated volumes, each pair counts, but never a volume with itself."""
    z = np.random.default_rng(0).normal(size=(7, 4))
    kernel, counts = z @ z.T, np.array([2, 0, 1, 3, 0, 0, 0])
    i = np.repeat(np.arange(7), counts)
    order = ms_ssim.all_pairs(7)
    values = kernel[order[:, 0], order[:, 1]]
    expected = np.mean([kernel[p, q] for n, p in enumerate(i) for q in i[:n] if p != q])
    weights = np.stack([counts.astype(float), np.ones(7), np.eye(7)[0]])
    assert np.allclose(ms_ssim.mean_of_pairs(values, order, weights),
                       [expected, values.mean(), np.nan], equal_nan=True)


@pytest.mark.parametrize("bound", [0.05, 0.1])
def test_ms_ssim_memory_is_bounded(bound):
    """Statistics of 24 volumes of 96 cubed are 290 MB; bounds of 50 and 100 MB hold, up to what
    the allocator keeps."""
    code = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from metrics import ms_ssim
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 96), dtype=np.uint8)
ms_ssim.ms_ssim_pairs(x[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ms_ssim.ms_ssim_pairs(x, pairs=ms_ssim.all_pairs(24)[::5], memory_gb=float(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT, str(bound)], capture_output=True,
                          text=True, check=True)
    assert float(done.stdout) < 1.5 * 1000 * bound


def test_few_pairs_wait_for_a_thread(monkeypatch):
    """However many pairs there are, and with the same values."""
    waiting = []

    class Executor(threads.ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            waiting.append(self._work_queue.qsize())
            return super().submit(*args, **kwargs)

    volumes = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 16), dtype=np.uint8)
    expected = ms_ssim.ms_ssim_pairs(volumes)
    monkeypatch.setattr(threads, "ThreadPoolExecutor", Executor)
    monkeypatch.setattr(ms_ssim, "PAIRS_AT_ONCE", 50)
    assert np.array_equal(ms_ssim.ms_ssim_pairs(volumes), expected)
    assert len(waiting) == 40 + 780 and max(waiting) < 50


def test_ctrl_c_drops_the_pairs_that_wait(monkeypatch):
    computed = []
    one_pair = ms_ssim._ms_ssim

    def counted(*args):
        computed.append(1)
        return one_pair(*args)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ms_ssim, "_ms_ssim", counted)
    volumes = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 32), dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt):
        ms_ssim.ms_ssim_pairs(volumes, callback=interrupt)
    assert len(computed) < 100      # of 435


@pytest.mark.slow
def test_a_million_pairs_take_little_memory():
    """As many futures at once took 2 GB. The similarity itself is left out, as only its number
    matters: it would take ten minutes."""
    code = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from metrics import ms_ssim
ms_ssim._ms_ssim = lambda first, second, *_: 0.5
volumes = np.random.default_rng(0).integers(0, 256, (1414, 16, 16, 16), dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = ms_ssim.ms_ssim_pairs(volumes, memory_gb=0.2)
assert len(values) == 998991 and (values == 0.5).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5     # GB, most of it indices of pairs and pyramids
    print(f"\n{done.stdout.strip()} GB for 998,991 pairs")


@pytest.mark.parametrize("pairs, counts, words", [
    (3, [3, 3], "6 pairs of volumes (random ones: 3 of 10 in real, 3 of 6 in synthetic; --pairs all"
                " takes all)"),
    (8, [8, 6], "14 pairs of volumes (random ones: 8 of 10 in real; --pairs all takes all)"),
    (None, [10, 6], "16 pairs of volumes; --pairs takes fewer")])
def test_sampled_pairs_are_said(pairs, counts, words, capsys):
    pool = Pool(*(VolumeSet(flag, "folder", None, ids, ids, 16, np.ones(3), read=None)
                  for flag, ids in (("--real", list("abcde")), ("--synthetic", list("fghi")))))
    pool.volumes = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 16), np.uint8)
    within, _ = ms_ssim.similarity_statistics(pool, MetricOptions(pairs=pairs))
    assert f"MS-SSIM: {words}\n" in capsys.readouterr().err
    assert list(within.details["pairs"].values()) == counts
    assert within.details["available_pairs"] == {"real": 10, "synthetic": 6}
    assert ("random pairs (seed 0; " in within.definition) == bool(pairs)


def test_pairs_of_sets_are_as_those_of_one_call_bitwise():
    """Also where another synthetic set takes the first one's place, and little memory is used."""
    arrays = np.random.default_rng(0).integers(0, 256, (15, 16, 16, 16), np.uint8)
    real, first, second = (
        VolumeSet(flag, "folder", None, ids, ids, 16, np.ones(3), read=arrays[start:].__getitem__)
        for flag, start, ids in (("--real", 0, list("abcde")), ("--synthetic", 5, list("fghi")),
                                 ("--synthetic", 9, list("jklmno"))))
    pool = Pool(real, first)
    pool.load(1, None)
    options = MetricOptions(memory_gb=1e-9)
    for synthetic in (first, second):
        if synthetic is second:
            pool.replace_synthetic(second, 1, None)
        pairs, available = subject_pairs.pairs_within_sets(pool, None, seed=0)
        found = ms_ssim._values_of_pairs(pool, pairs, available, options)
        whole = ms_ssim.ms_ssim_pairs(pool.volumes, pairs=np.concatenate(list(pairs.values())))
        assert len(found) == 10 + len(pairs["synthetic"]) and np.array_equal(found, whole)


def test_20000_pairs_are_the_default():
    assert MetricOptions().pairs == 20_000
