import itertools

import numpy as np
import pytest
import torch
from conftest import golden
from scipy import linalg, ndimage

import metrics


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


def related(n, side, seed=0):
    """Volumes that share structure, as brains do, in [0, 1]."""
    rng = np.random.default_rng(seed)
    common = ndimage.gaussian_filter(rng.random((side,) * 3), 2)
    out = np.stack([common + 0.5 * ndimage.gaussian_filter(rng.random((side,) * 3), 2) + 0.02 * rng.random((side,) * 3) for _ in range(n)])
    return (out - out.min()) / (out.max() - out.min())


def test_ms_ssim_is_the_references():
    g = golden("volume_metrics.npz")
    volumes = g["volumes"].astype(np.float32)
    assert np.array_equal(g["pairs"], list(itertools.combinations(range(4), 2)))
    assert np.abs(metrics.ms_ssim_pairs(volumes, "kwon2019") - g["ms_ssim_01"]).max() < 1e-4
    assert np.abs(metrics.ms_ssim_pairs(volumes * 2 - 1, "kwon2019") - g["ms_ssim_m11"]).max() < 1e-4


@pytest.mark.parametrize("side", [16, 33, 48])
@pytest.mark.parametrize("protocol, length", [("kwon2019", 1), ("wang2003", 2)])
def test_ms_ssim_is_its_formula(side, protocol, length):
    volumes = 2 * related(3, side) - 1
    expected = [by_scipy(volumes[i], volumes[j], protocol, length) for i, j in itertools.combinations(range(3), 2)]
    assert np.allclose(metrics.ms_ssim_pairs(volumes, protocol), expected, atol=1e-9)
    assert np.allclose(metrics.ms_ssim_pairs(volumes.astype(np.float32), protocol), expected, atol=1e-5)


def test_ms_ssim_does_not_depend_on_blocks_or_order():
    volumes = (related(5, 20) * 255).astype(np.uint8)
    whole = metrics.ms_ssim_pairs(volumes)
    assert np.array_equal(metrics.ms_ssim_pairs(volumes, memory_gb=1e-9), whole)        # one volume a block
    assert np.array_equal(metrics.ms_ssim_pairs(volumes, memory_gb=6e-4), whole)
    pairs = [(4, 1), (0, 0), (2, 3)]
    some = metrics.ms_ssim_pairs(volumes, pairs=pairs)
    order = list(itertools.combinations(range(5), 2))
    assert np.allclose(some, [whole[order.index((1, 4))], 1, whole[order.index((2, 3))]], atol=1e-6)
    assert np.allclose(metrics.ms_ssim_pairs(volumes / 127.5 - 1), whole, atol=1e-5)     # uint8 stands for [-1, 1] here
    done = []
    metrics.ms_ssim_pairs(volumes, callback=done.append)
    assert sum(done) == 10


def test_ms_ssim_of_opposites_is_zero_not_nan():
    x = related(1, 16)[0] - 0.5
    assert metrics.ms_ssim_pairs(np.stack([x, -x]))[0] == 0


def test_ms_ssim_errors():
    for shape, words in (((2, 15, 15, 15), "at least 16"), ((2, 16, 16, 17), "must be"), ((16, 16, 16), "must be")):
        with pytest.raises(ValueError, match=words):
            metrics.ms_ssim_pairs(np.zeros(shape))
    with pytest.raises(ValueError, match="out of range"):
        metrics.ms_ssim_pairs(np.zeros((2, 16, 16, 16)), pairs=[(0, 2)])


def test_mmd_linear_is_the_references():
    g = golden("volume_metrics.npz")
    v = g["volumes"].astype(np.float32)
    assert np.isclose(metrics.mmd_linear(v[:2], v[2:]), g["mmd_linear_01"], rtol=1e-5)
    assert np.isclose(metrics.mmd_linear(v[:2] * 2 - 1, v[2:] * 2 - 1), g["mmd_linear_m11"], rtol=1e-5)


def test_mmd_by_hand():
    x = np.array([0.0, 2, 4, 6]).reshape(4, 1, 1, 1)
    y = np.array([1.0, 1, 1, 5, 9]).reshape(5, 1, 1, 1)
    assert np.isclose(metrics.mmd_linear(x, y), (3 - 3.4) ** 2)
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
    assert np.allclose(metrics.squared_distances(x, y, chunk=2), d2[:5, 5:])
    assert abs(np.mean([metrics.mmd_rbf(*rng.normal(size=(2, 20, 2, 2, 2)))[0] for _ in range(50)])) < 0.01  # unbiased


def test_centre_slices_are_the_three_views_upright():
    volume = np.zeros((1, 8, 8, 8), np.uint8)
    volume[0, 4, 4, 7] = 1   # top of the midline
    volume[0, 4, 7, 4] = 2   # front
    volume[0, 7, 4, 4] = 3   # right
    a, c, s = (metrics.centre_slices(volume, v)[0] for v in "ACS")
    assert all(torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) for x in (a, c, s))
    assert a[0, 0, 4] == 2 and a[0, 3, 7] == 3          # anterior up, right on the right
    assert c[0, 0, 4] == 1 and c[0, 3, 7] == 3          # superior up, right on the right
    assert s[0, 0, 4] == 1 and s[0, 3, 7] == 2          # superior up, anterior on the right


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the format of pt_inception-2015-12-05, scaled so that features do not vanish."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    torch.manual_seed(0)
    init = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    load, torch.load = torch.load, lambda *a, **k: None
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="unused")
    finally:
        FeatureExtractorInceptionV3.load_state_dict, torch.load = init, load
    for p in net.parameters():
        if p.dim() == 4:
            torch.nn.init.kaiming_normal_(p)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(net.state_dict(), path)
    return path


def test_fid_against_a_direct_computation(inception_file):
    from torchmetrics.image.fid import NoTrainInceptionV3
    volumes = (related(7, 16) * 255).astype(np.uint8)
    real, fake = volumes[:4], volumes[4:]
    values = metrics.frechet_inception_distances(real, fake, inception_file)
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    for view in "ACS":
        f, g = (net(metrics.centre_slices(v, view)).double().numpy() for v in (real, fake))
        s, t = np.cov(f, rowvar=False), np.cov(g, rowvar=False)
        eigenvalues = linalg.eigvals(s @ t) if view == "A" else None
        # the trace of the square root of S T from the small Gram matrices: S T and (F G') (G F') share their eigenvalues
        a, b = f - f.mean(0), g - g.mean(0)
        cross = a @ b.T / np.sqrt((len(f) - 1) * (len(g) - 1))
        trace = np.sqrt(np.clip(np.linalg.eigvalsh(cross @ cross.T), 0, None)).sum()
        if eigenvalues is not None:
            assert np.isclose(trace, np.sqrt(eigenvalues.astype(complex)).real.sum(), rtol=1e-3)
        expected = ((f.mean(0) - g.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * trace
        assert np.isclose(values[view], expected, rtol=1e-3)
    assert len(set(values.values())) == 3 and min(values.values()) > 0
    same = metrics.frechet_inception_distances(real, real, inception_file)
    assert all(abs(v) < 1e-3 * values[k] for k, v in same.items())


def test_fid_refuses_unsafe_and_wrong_weights(tmp_path):
    volumes = np.zeros((2, 16, 16, 16), np.uint8)
    torch.save({"a": np.zeros}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a file of weights alone"):
        metrics.frechet_inception_distances(volumes, volumes, tmp_path / "evil.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of the FID Inception net"):
        metrics.frechet_inception_distances(volumes, volumes, tmp_path / "other.pth")
