"""Random numbers that depend on (seed, index) alone."""
import numpy as np
import torch


def seeded_generator(seed, index, stream=()):
    """A CPU generator for training step or sample `index`: the same on any device, in any batch.

    :param stream: whole numbers that set draws for another purpose apart from those
    """
    sequence = np.random.SeedSequence([seed, index], spawn_key=stream)
    state = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
