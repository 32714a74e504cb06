import numpy as np
import pytest
import torch
from helpers import related
from scipy import linalg
from scipy.spatial import distance

from metrics import inception, mmd, resampling, statistic
from metrics.options import MetricOptions
from metrics.volume_sets import VolumeSet


def test_view_slices_are_the_three_views_upright():
    volume = np.zeros((1, 8, 8, 8), np.uint8)
    volume[0, 4, 4, 7] = 1   # top of the midline
    volume[0, 4, 7, 4] = 2   # front
    volume[0, 7, 4, 4] = 3   # right
    a, c, s = (inception.view_slices(volume, view)[0, 0]
               for view in ("axial", "coronal", "sagittal"))
    assert all(torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) for x in (a, c, s))
    assert a[0, 0, 4] == 2 and a[0, 3, 7] == 3          # anterior up, right on the right
    assert c[0, 0, 4] == 1 and c[0, 3, 7] == 3          # superior up, right on the right
    assert s[0, 0, 4] == 1 and s[0, 3, 7] == 2          # superior up, anterior on the right


def test_view_slices_around_the_middle():
    # slice k of the axial view holds k
    volume = np.broadcast_to(np.arange(8, dtype=np.uint8), (2, 8, 8, 8))
    three = inception.view_slices(volume, "axial", 3)
    assert three[1, :, 0, 0, 0].tolist() == [3, 4, 5]
    four = inception.view_slices(volume, "axial", 4)
    assert four[0, :, 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert inception.view_slices(volume, "coronal", 8).shape == (2, 8, 3, 8, 8)
    with pytest.raises(ValueError):
        inception.view_slices(volume, "axial", 9)


def test_every_slice_of_every_size_is_taken_once():
    """The slices are found by their depth, which is a rounded number."""
    for side in (16, 17, 100, 128, 255):
        volume = np.broadcast_to(np.arange(side, dtype=np.uint8), (1, 2, 2, side))
        volume = np.moveaxis(np.broadcast_to(volume[:, :1, :1], (1, side, side, side)), 3, 1)
        found = inception.view_slices(volume, "sagittal", side)[0, :, 0, 0, 0]
        assert found.tolist() == list(range(side))


def test_fid_and_kid_against_torchmetrics_and_the_formula(inception_file):
    """The whole of torchmetrics, from images, is the oracle for both; for FID, so are the
    eigenvalues of the matrix product."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    volumes = (related(8, 16) * 255).astype(np.uint8)
    volumes[4:] = 255 - volumes[4:]  # far away, so that KID exceeds torchmetrics' rounding errors
    net = inception.load_net(inception_file)
    done = []
    f = inception.features(net, volumes, "coronal", slices=2, batch=3, callback=done.append)
    assert f.shape == (8, 2, 2048) and sum(done) == 8
    images = inception.view_slices(volumes, "coronal", 2).flatten(0, 1)
    assert np.allclose(f.reshape(16, -1), net(images).numpy(), atol=1e-5)
    fid = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(inception_file))
    kid = KernelInceptionDistance(net, subsets=1, subset_size=8)
    for metric in (fid, kid):
        metric.update(images[:8], real=True)
        metric.update(images[8:], real=False)
    flat = f.reshape(16, -1).astype(np.float64)
    expected = float(fid.compute())
    assert expected > 0 and np.isclose(inception.fid(flat[:8], flat[8:]), expected, rtol=1e-3)
    s, t = np.cov(flat[:8], rowvar=False), np.cov(flat[8:], rowvar=False)
    root = np.sqrt(linalg.eigvals(s @ t).astype(complex)).real.sum()
    between = ((flat[:8].mean(0) - flat[8:].mean(0)) ** 2).sum()
    assert np.isclose(expected, between + np.trace(s) + np.trace(t) - 2 * root, rtol=1e-3)
    a = (np.arange(16) < 8)[None] * 1.0
    centered = flat - flat.mean(0)
    found = inception.frechet(centered @ centered.T, a, 1 - a)[0]
    assert np.isclose(found, expected, rtol=1e-3)
    kernel = inception.kid_kernel(flat @ flat.T)
    value = mmd.mmd_of_kernel(kernel, a, 1 - a, unbiased=True)[0]
    assert np.isclose(value, float(kid.compute()[0]), rtol=1e-3)
    same = inception.fid(flat[:8], flat[:8])
    assert abs(same) < 1e-3 * expected


@pytest.mark.parametrize("n, m, d", [(6, 9, 40), (30, 20, 5)])
def test_frechet_is_the_formula(n, m, d):
    """Fewer vectors than dimensions, and more: against the matrix square root."""
    rng = np.random.default_rng(n)
    f = rng.normal(size=(n, d))
    g = rng.normal(size=(m, d)) @ np.diag(rng.uniform(0.5, 2, d)) + 0.3
    z = np.concatenate([f, g])
    z = z - z.mean(0)
    t = np.cov(g, rowvar=False)

    def formula(first):
        s = np.cov(first, rowvar=False)
        root = np.sqrt(np.clip(linalg.eigvals(s @ t).real, 0, None)).sum()
        between = ((first.mean(0) - g.mean(0)) ** 2).sum()
        return between + np.trace(s) + np.trace(t) - 2 * root

    a = np.arange(n + m)[None] < n
    done = []
    found = inception.frechet(z @ z.T, 1.0 * a, 1.0 - a, done.append)[0]
    assert np.isclose(found, formula(f), rtol=1e-5) and done == [1]
    # a replicate is the set with its vectors repeated
    counts = np.array([2, 1, 0] + [1] * (n - 3))
    found = inception.frechet(z @ z.T, np.pad(counts, (0, m))[None] * 1.0, 1.0 - a)[0]
    assert np.isclose(found, formula(np.repeat(f, counts, axis=0)), rtol=1e-5)


def test_frechet_infinity_removes_the_bias():
    """Two samples of one distribution: the distance falls as 1/N; extrapolated, it is about 0."""
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
    # each vector twice, as two equal slices of a volume
    twice = np.repeat(np.repeat(products, 2, axis=0), 2, axis=1)
    again = inception.frechet_infinity(twice, i, j, seed=0, each=2)
    assert again["n"] == found["n"]
    assert again["value"] == pytest.approx(found["value"], abs=plain / 10)


def test_refuses_unsafe_and_wrong_weights(tmp_path):
    torch.save({"a": np.zeros}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a file of weights alone"):
        inception.load_net(tmp_path / "evil.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of the FID Inception net"):
        inception.load_net(tmp_path / "other.pth")


def test_weights_are_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert inception.find_weights(tmp_path / "weights") is None
    for folder in (tmp_path / "hub" / "checkpoints", tmp_path / "weights"):  # the second is first
        folder.mkdir(parents=True)
        (folder / inception.WEIGHTS_FILE).touch()
        assert inception.find_weights(tmp_path / "weights") == folder / inception.WEIGHTS_FILE


@pytest.mark.parametrize("n, expected", [(49, ["fid_a"]), (50, ["fid_a", "fid_infinity_a"])])
def test_fid_infinity_is_left_out_below_50_volumes_and_has_a_floor(monkeypatch, n, expected):
    monkeypatch.setattr(inception, "fid", lambda real, fake: 1.0)  # torchmetrics takes seconds
    ids = [f"v{i}" for i in range(n)]
    found = VolumeSet("--real", "folder", None, ids, ids, 2, np.ones(3), read=None)
    pool = statistic.Pool(found, found)
    features = np.random.default_rng(0).normal(size=(2 * n, inception.FEATURES))
    details = {"view": "axial", "slices": 1, "weights": {"sha256": "0" * 64}}
    statistics = inception.fid_statistics(pool, features, details, seed=0)
    assert [each.key for each in statistics] == expected
    assert ("needs 50 volumes in each set and the smaller one has 49"
            in statistics[0].definition) == (n == 49)
    if n == 50:
        entry = statistic.summarize(statistics[1], pool, resampling.resamples(pool, 9, 0, 19))
        # half as many volumes, more bias
        assert entry["floor"]["mean"] > entry["value"] > 0 and "biased upward" in entry["how"]
        assert "interval" not in entry and "p" not in entry


def test_coverage_of_the_three_views_together(monkeypatch):
    """Density, coverage, precision and recall from all distances, of slices that are cut here.

    A linear map stands in for the net, which would take a minute.
    """
    volumes = (related(24, 16, seed=3) * 255).astype(np.uint8)
    volumes[16:] = volumes[16:, ::-1]       # unlike any real one
    sets = [VolumeSet(flag, "folder", None, ids, ids, 16, np.ones(3), read=None)
            for flag, ids in (("--real", [f"r{i}" for i in range(12)]),
                              ("--synthetic", [f"s{i}" for i in range(12)]))]
    pool = statistic.Pool(*sets)
    pool.volumes = volumes
    matrix = np.random.default_rng(0).normal(size=(16 * 16, 2048)).astype(np.float32)
    weights = {"file": "w.pth", "sha256": "0" * 64}
    monkeypatch.setattr(inception, "_net_and_weights", lambda file, device: (
        lambda images: images[:, 1].flatten(1).float() @ torch.from_numpy(matrix), weights))
    options = MetricOptions(names=("coverage-2d",), slices=2)
    found = {s.key: s for s in inception.inception_statistics(pool, options)}
    assert list(found) == [f"{name}_inception"
                           for name in ("density", "coverage", "precision", "recall")]
    parts = []
    for axis in (3, 2, 1):
        slices = np.moveaxis(np.take(volumes, (7, 8), axis), axis, 1)
        upright = np.rot90(slices, axes=(2, 3)).reshape(24, 2, 16 * 16).astype(float)
        parts.append((upright @ matrix).mean(1))
    z = np.concatenate(parts, axis=1)
    real, fake = z[:12], z[12:]
    across = distance.cdist(real, fake)
    own, of_fake = (np.sort(distance.cdist(x, x), axis=1) for x in (real, fake))
    expected = {"density": (across <= own[:, 5:6]).sum() / (5 * 12),
                "coverage": (across.min(1) <= own[:, 5]).mean(),
                "precision": (across <= own[:, 3:4]).any(0).mean(),
                "recall": (across <= of_fake[:, 3]).any(1).mean()}
    both = pool.weights("real"), pool.weights("synthetic")
    for name, value in expected.items():
        assert found[f"{name}_inception"].compute(*both)[0] == pytest.approx(value)
    assert expected["precision"] <= 0.5
    entry = statistic.summarize(found["precision_inception"], pool,
                                resampling.resamples(pool, 0, 0, permutations=99))
    assert 0.01 <= entry["p"] < 0.05 and "lower tail" in entry["p_method"]
    assert entry["weights"] == weights and entry["features"] == 3 * 2048
    assert "in each of the three views, their mean over slices" in entry["how"]
