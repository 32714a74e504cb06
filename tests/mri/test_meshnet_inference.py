"""The quick pass over a whole volume gives what the plain network gives."""
import numpy as np
import pytest
import torch
from helpers import SHARED
from small_meshnets import random_meshnet

from mri import meshnet, meshnet_inference

needs_shared = pytest.mark.skipif(not (SHARED / "meshnet").is_dir(),
                                  reason=f"needs {SHARED / 'meshnet'}")


def scores_of(network, volume, dtype=torch.float32):
    """All scores, (classes, X, Y, Z), by the quick pass."""
    with torch.inference_mode():
        found = meshnet_inference.infer(network, torch.from_numpy(volume),
                                        lambda scores: scores.permute(1, 2, 3, 0), dtype)
    return found.permute(3, 0, 1, 2).numpy()


@pytest.mark.parametrize("activation, normalized", [("gelu", True), ("elu", False)])
@pytest.mark.parametrize("slab_voxels", [1, 300, 10 ** 9])
def test_it_gives_what_the_plain_network_gives(tmp_path, monkeypatch, activation, normalized,
                                               slab_voxels):
    monkeypatch.setattr(meshnet_inference, "SLAB_VOXELS", slab_voxels)
    random_meshnet(tmp_path, activation, normalized, classes=3)
    network = meshnet.load(tmp_path)
    volume = np.random.default_rng(1).random((7, 12, 11)).astype(np.float32)
    before = volume.copy()
    with torch.inference_mode():
        expected = network(torch.from_numpy(volume)[None, None])[0].numpy()
    assert np.abs(scores_of(network, volume) - expected).max() < 1e-5
    assert np.array_equal(volume, before)


def test_it_reduces_scores_as_asked(tmp_path):
    random_meshnet(tmp_path, "elu", False, classes=3)
    network = meshnet.load(tmp_path)
    volume = np.random.default_rng(1).random((7, 6, 5)).astype(np.float32)
    with torch.inference_mode():
        labels = meshnet_inference.infer(network, torch.from_numpy(volume),
                                         lambda scores: scores.argmax(0))
    assert np.array_equal(labels.numpy(), scores_of(network, volume).argmax(0))
    assert len(np.unique(labels)) > 1


@needs_shared
@pytest.mark.parametrize("name", ["mindgrab", "model18cls", "model5_gw_ae"])
def test_published_scores(name):
    network = meshnet.load(SHARED / "meshnet" / name)
    with np.load(SHARED / "meshnet" / "golden.npz") as golden:
        exact = scores_of(network, golden["x"])
        assert np.abs(exact - golden[name]).max() < 1e-4
        rounded = scores_of(network, golden["x"], torch.bfloat16)
        assert (rounded.argmax(0) == golden[name].argmax(0)).mean() > 0.98
