import numpy as np
import pytest
import torch
from helpers import related

from metrics import (
    coverage,
    inception,
    mmd,
    random_features,
    resampling,
    statistic,
    volume_features,
)
from metrics.options import MetricOptions, NotComputed
from metrics.volume_sets import VolumeSet
from utils.errors import UserError

NAMES = ("frechet-3d", "mmd-3d", "coverage")


@pytest.fixture(scope="module")
def pool():
    volumes = (related(20, 16, seed=1) * 255).astype(np.uint8)
    sets = [VolumeSet(flag, "folder", None, [f"{k}"] * 10, [f"{flag}{i}" for i in range(10)], 16,
                      np.ones(3), read=lambda i, k=k: volumes[10 * k + i])
            for k, flag in enumerate(("--real", "--synthetic"))]
    found = statistic.Pool(*sets)
    found.volumes = volumes
    return found


def test_features_do_not_depend_on_the_batch(pool):
    network = random_features.RandomNetwork()
    found = volume_features.features(network, pool.volumes[:5])
    x = torch.from_numpy(pool.volumes[:5]).float()[:, None] / 255
    np.testing.assert_allclose(found, network(x).double(), atol=1e-6)


def test_scaled_features():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 4)) * [1, 1000, 1e-9, 0] + 5
    found = volume_features.scaled(values, np.arange(20))
    np.testing.assert_allclose(found[:, 1], values[:, 1] / values[:20, 1].std())
    assert (found[:, 2:] == 0).all()


def test_numbers(pool):
    """Against FID's own formula, the MMD of arrays, and coverage of the distances."""
    options = MetricOptions(names=NAMES)
    found = {s.key: s for s in volume_features.feature_statistics(pool, options)}
    assert list(found) == ["frechet_random", "mmd_random", "density_random", "coverage_random",
                           "precision_random", "recall_random"]
    z = volume_features.features(random_features.RandomNetwork(), pool.volumes)
    z = z / np.where(z.std(0) > 1e-6 * z.std(0).max(), z.std(0), np.inf)
    sets = pool.weights("real"), pool.weights("synthetic")
    assert found["frechet_random"].compute(*sets)[0] == pytest.approx(
        _frechet(z[:10], z[10:]), rel=1e-6)
    value, distance = mmd.mmd_rbf(z[:10], z[10:])
    assert found["mmd_random"].compute(*sets)[0] == pytest.approx(value, abs=1e-9)
    assert found["mmd_random"].details["median_distance"] == pytest.approx(distance)
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    for measure in coverage.MEASURES:
        s = found[f"{measure.name}_random"]
        assert s.compute(*sets)[0] == measure.of_sets(distances, np.arange(20), *sets)[0]
    assert found["coverage_random"].target == f"{coverage.expected_coverage(10, 10, 5):.3g}"


def _frechet(x, y):
    """From the covariances, by their eigenvalues."""
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    a, b = np.cov(x.T), np.cov(y.T)
    eigenvalues = np.linalg.eigvals(a @ b).real
    return mean + np.trace(a) + np.trace(b) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()


def test_p_of_coverage_is_of_the_lower_tail(pool):
    found = {s.key: s for s in volume_features.feature_statistics(
        pool, MetricOptions(names=("coverage",)))}
    resampled = resampling.resamples(pool, 0, 0, permutations=99)
    entry = statistic.summarize(found["coverage_random"], pool, resampled)
    assert entry["p_method"] == "99 permutations of subjects, lower tail"
    assert 0 < entry["p"] <= 1 and entry["k"] == 5 and "floor" in entry
    assert entry["network"]["sha256"] == random_features.fingerprint()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning",
                            "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_users_network(pool, tmp_path):
    network = random_features.RandomNetwork(seed=7)
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(str(tmp_path / "mine.pt"))
    options = MetricOptions(names=NAMES, features=tmp_path / "mine.pt")
    volume_features.check_networks(pool, options)
    found = {s.key: s for s in volume_features.feature_statistics(pool, options)}
    assert len(found) == 12
    z = volume_features.features(network, pool.volumes)
    centered = z - z.mean(0)
    sets = pool.weights("real"), pool.weights("synthetic")
    assert found["frechet_user"].compute(*sets)[0] == pytest.approx(
        inception.frechet(centered @ centered.T, *sets)[0], rel=1e-4)
    assert found["frechet_user"].details["network"]["name"] == "mine.pt"
    with pytest.raises(UserError, match="absent.pt: no such file"):
        volume_features.check_networks(pool, MetricOptions(features=tmp_path / "absent.pt"))


class Standardizes(torch.nn.Module):
    """As many networks of brains do; of a constant volume, it makes NaN."""

    def forward(self, x):
        x = (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True)
        return x.abs().mean((2, 3, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning",
                            "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_network_that_standardizes_its_input(pool, tmp_path):
    torch.jit.trace(Standardizes(), torch.rand(1, 1, 16, 16, 16)).save(str(tmp_path / "z.pt"))
    volume_features.check_networks(pool, MetricOptions(features=tmp_path / "z.pt"))


def test_volumes_that_are_too_small():
    small = VolumeSet("--real", "folder", None, ["a"], ["a"], 8, np.ones(3), read=None)
    with pytest.raises(NotComputed, match="volumes of 8 voxels a side are too small"):
        volume_features.check_networks(statistic.Pool(small, small), MetricOptions())
