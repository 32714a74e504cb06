"""Features of a fixed random 3D network: no download, and the same on every machine.

Four layers of random 3 × 3 × 3 filters, each at half the resolution of the one before, rectified.
What a filter finds is averaged over the eighths of the volume, so features say what there is at
which scale, and roughly where. Random filters are poor at naming things and good at comparing sets:
nothing in them was learned from photographs or from other people's brains.
"""
import hashlib

import numpy as np
import torch
from torch.nn import functional

SEED = 0
CHANNELS = (16, 32, 64, 128)    # of the layers, one after another
OCTANTS = 2                     # parts along each axis over which a layer is averaged
SMALLEST_SIDE = 2 ** len(CHANNELS)      # voxels; the last layer would see less than one voxel
ARCHITECTURE = (f"{len(CHANNELS)} convolutions of 3³ voxels, stride 2, "
                f"{', '.join(map(str, CHANNELS))} channels, ReLU; means over "
                f"{OCTANTS}³ parts of each layer")


def random_weights(seed=SEED):
    """Weights of all layers, float32.

    Uniform in ± (6 / inputs)^(1/2) (He et al. 2015), drawn by the Mersenne Twister through
    numpy.random.RandomState.random_sample, whose stream NumPy keeps for good (NEP 19): 53 bits of
    two draws over 2⁵³. No logarithm is taken, which could differ in its last bit between machines.
    The first layer's filters have mean 0: they see edges and texture, not brightness.

    :return: list of (out, in, 3, 3, 3)
    """
    random = np.random.RandomState(seed)
    layers, inputs = [], 1
    for channels in CHANNELS:
        bound = np.sqrt(6 / (27 * inputs))
        draws = random.random_sample((channels, inputs, 3, 3, 3))
        layers.append(((2 * draws - 1) * bound).astype(np.float32))
        inputs = channels
    layers[0] -= layers[0].mean((1, 2, 3, 4), keepdims=True)
    return layers


def fingerprint(seed=SEED):
    """SHA-256 of the weights, in hex."""
    digest = hashlib.sha256()
    for layer in random_weights(seed):
        digest.update(layer.tobytes())
    return digest.hexdigest()


class RandomNetwork(torch.nn.Module):
    """(N, 1, D, D, D) in [0, 1] -> (N, features)."""

    def __init__(self, seed=SEED):
        super().__init__()
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(torch.from_numpy(layer), requires_grad=False)
            for layer in random_weights(seed))

    def forward(self, x):
        found = []
        for weight in self.layers:
            x = functional.relu(functional.conv3d(x, weight, stride=2, padding=1))
            found.append(functional.adaptive_avg_pool3d(x, OCTANTS).flatten(1))
        return torch.cat(found, dim=1)
