import numpy as np
import pytest
import torch
from helpers import related
from scipy import linalg

from metrics import inception
from metrics import mmd as metrics


def test_view_slices_are_the_three_views_upright():
    volume = np.zeros((1, 8, 8, 8), np.uint8)
    volume[0, 4, 4, 7] = 1   # top of the midline
    volume[0, 4, 7, 4] = 2   # front
    volume[0, 7, 4, 4] = 3   # right
    a, c, s = (inception.view_slices(volume, v)[0, 0] for v in "ACS")
    assert all(torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) for x in (a, c, s))
    assert a[0, 0, 4] == 2 and a[0, 3, 7] == 3          # anterior up, right on the right
    assert c[0, 0, 4] == 1 and c[0, 3, 7] == 3          # superior up, right on the right
    assert s[0, 0, 4] == 1 and s[0, 3, 7] == 2          # superior up, anterior on the right


def test_view_slices_around_the_middle():
    volume = np.broadcast_to(np.arange(8, dtype=np.uint8), (2, 8, 8, 8))  # slice k of the axial view holds k
    assert inception.view_slices(volume, "A", 3)[1, :, 0, 0, 0].tolist() == [3, 4, 5]
    assert inception.view_slices(volume, "A", 4)[0, :, 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert inception.view_slices(volume, "C", 8).shape == (2, 8, 3, 8, 8)
    with pytest.raises(ValueError):
        inception.view_slices(volume, "A", 9)


def test_fid_and_kid_against_torchmetrics_and_the_formula(inception_file):
    """The whole of torchmetrics, from images, is the oracle for both; the matrix square root's eigenvalues for FID once more."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    volumes = (related(8, 16) * 255).astype(np.uint8)
    volumes[4:] = 255 - volumes[4:]  # far away, so that KID stands out of torchmetrics' single precision
    net = inception.load_net(inception_file)
    done = []
    f = inception.features(net, volumes, "C", slices=2, batch=3, callback=done.append)
    assert f.shape == (8, 2, 2048) and sum(done) == 8
    images = inception.view_slices(volumes, "C", 2).flatten(0, 1)
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
    direct = ((flat[:8].mean(0) - flat[8:].mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert np.isclose(expected, direct, rtol=1e-3)
    a = (np.arange(16) < 8)[None] * 1.0
    centred = flat - flat.mean(0)
    assert np.isclose(inception.frechet(centred @ centred.T, a, 1 - a)[0], expected, rtol=1e-3)
    value = metrics.mmd_of_kernel(inception.kid_kernel(flat @ flat.T, 2048), a, 1 - a, unbiased=True)[0]
    assert np.isclose(value, float(kid.compute()[0]), rtol=1e-3)
    same = inception.fid(flat[:8], flat[:8])
    assert abs(same) < 1e-3 * expected


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
    for folder in (tmp_path / "hub" / "checkpoints", tmp_path / "weights"):  # the later one goes first
        folder.mkdir(parents=True)
        (folder / inception.WEIGHTS_FILE).touch()
        assert inception.find_weights(tmp_path / "weights") == folder / inception.WEIGHTS_FILE
