"""Random numbers that depend on (seed, index) alone."""
import numpy as np
import torch


def seeded_generator(seed, index, purpose=None):
    """A CPU generator for training step or sample `index`: the same on any device, in any batch.

    :param purpose: a number, for draws apart from those of the same index without one
    """
    key = () if purpose is None else (purpose,)
    sequence = np.random.SeedSequence([seed, index], spawn_key=key)
    state = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
