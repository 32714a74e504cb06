"""MeshNet: the published files read as tfjs reads them, and wrong files refused."""
import numpy as np
import pytest
import torch
from helpers import SHARED

from mri import meshnet

NETWORKS = SHARED / "meshnet"
needs_shared = pytest.mark.skipif(not NETWORKS.is_dir(), reason=f"needs {NETWORKS}")


@needs_shared
@pytest.mark.parametrize("name", ["mindgrab", "model18cls", "model5_gw_ae"])
def test_scores_are_those_of_the_published_code(name):
    network = meshnet.load(NETWORKS / name)
    with np.load(NETWORKS / "golden.npz") as golden, torch.inference_mode():
        scores = network(torch.from_numpy(golden["x"])[None, None])[0].numpy()
        assert np.abs(scores - golden[name]).max() < 1e-4
