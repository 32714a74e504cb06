"""Random numbers that depend on (seed, index) alone."""
import numpy as np
import torch


def seeded_generator(seed, index):
    """A CPU generator for training step or sample `index`: the same on any device, in any batch."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
