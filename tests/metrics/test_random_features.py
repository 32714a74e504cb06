import hashlib

import numpy as np
import torch
from helpers import related
from torch.nn import functional

from metrics import random_features


def test_the_weights_are_the_same_on_every_machine():
    """Recorded once; the draws by hand from the Mersenne Twister of Python's own library."""
    import random
    twister = random.Random()
    state = np.random.RandomState(0).get_state()
    twister.setstate((3, (*map(int, state[1]), state[2]), None))
    layers = random_features.random_weights()
    bound = np.sqrt(6 / 27)
    drawn = [(2 * twister.random() - 1) * bound for _ in range(16 * 27)]
    first = np.array(drawn, np.float32).reshape(16, 27)
    expected = first - first.mean(1, keepdims=True)
    np.testing.assert_allclose(layers[0].reshape(16, 27), expected, atol=1e-7)
    bound = np.sqrt(6 / (27 * 16))
    assert layers[1].reshape(-1)[0] == np.float32((2 * twister.random() - 1) * bound)
    digest = hashlib.sha256(b"".join(layer.tobytes() for layer in layers)).hexdigest()
    assert random_features.fingerprint() == digest
    assert random_features.fingerprint(1) != digest


def test_features_are_means_of_rectified_convolutions():
    x = torch.from_numpy(related(2, 16).astype(np.float32))[:, None]
    network = random_features.RandomNetwork()
    found = network(x)
    assert found.shape == (2, 8 * sum(random_features.CHANNELS))
    weight = torch.from_numpy(random_features.random_weights()[0])
    padded = functional.pad(x, (1,) * 6)
    z = torch.zeros(8, 8, 8)
    for i in range(8):
        for j in range(8):
            for k in range(8):
                patch = padded[0, 0, 2 * i:2 * i + 3, 2 * j:2 * j + 3, 2 * k:2 * k + 3]
                z[i, j, k] = (patch * weight[5, 0]).sum().clamp(min=0)
    octants = z.reshape(2, 4, 2, 4, 2, 4).mean((1, 3, 5)).reshape(-1)
    torch.testing.assert_close(found[0, 5 * 8:6 * 8], octants, atol=1e-5, rtol=1e-4)


def test_brightness_alone_is_not_seen_by_the_first_layer():
    network = random_features.RandomNetwork()
    inner = [network(torch.full((1, 1, 16, 16, 16), value))[0, :128] for value in (0.2, 0.8)]
    empty = network(torch.zeros(1, 1, 16, 16, 16))[0, :128]
    assert empty.abs().max() == 0
    ratio = inner[1].norm() / inner[0].norm()       # only the border, where the volume ends
    assert 3.9 < ratio < 4.1
