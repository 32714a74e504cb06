import numpy as np
import torch
from helpers import related

from metrics import small_network


def spotted(n, seed=0):
    """Volumes, and which of them have a bright corner."""
    rng = np.random.default_rng(seed)
    volumes = (related(n, 16, seed) * 200).astype(np.uint8)
    marked = rng.random(n) < 0.5
    volumes[marked, :6, :6, :6] = 255
    return volumes, marked


def test_it_learns_classes_and_numbers():
    volumes, marked = spotted(30)
    x = small_network.network_input(volumes)
    assert x.shape == (30, 1, 16, 16, 16) and float(x.max()) == 1
    predict = small_network.train(x[:20], marked[:20].astype(int), 2, seed=0)
    found = predict(x[20:])
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == marked[20:]).all()
    predict = small_network.train(x[:20], 60 + 20.0 * marked[:20], 1, seed=0)
    assert np.abs(predict(x[20:]) - (60 + 20 * marked[20:])).max() < 5


def test_the_seed_alone_decides(monkeypatch):
    monkeypatch.setattr(small_network, "STEPS", 5)
    volumes, marked = spotted(8)
    x, y = small_network.network_input(volumes), marked.astype(int)
    before = torch.get_rng_state()
    first, again, other = (small_network.train(x, y, 2, seed)(x) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_large_volumes_are_averaged_down():
    volume = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    found = small_network.network_input(volume[None])[0, 0].numpy()
    expected = volume.reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5)) / 255
    np.testing.assert_allclose(found, expected, atol=1e-6)
