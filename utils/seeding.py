"""Random numbers that depend on (seed, index) alone."""
import numpy as np
import torch


def seeded_generator(seed, index, purpose=None):
    """A CPU generator for training step or sample `index`: the same on any device, in any batch.

    :param purpose: a number, for draws apart from those of the same index without one
    """
    state = _sequence(seed, index, purpose).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def draw_weighted(counts, seed, index, purpose):
    """Index of one of the counts, as frequent as they say.

    :param counts: numbers, 0 or more, not all 0
    :param purpose: see `seeded_generator`
    """
    shares = np.cumsum(counts) / sum(counts)
    u = np.random.default_rng(_sequence(seed, index, purpose)).random()
    return int(np.searchsorted(shares, u, side="right"))


def _sequence(seed, index, purpose):
    return np.random.SeedSequence([seed, index], spawn_key=() if purpose is None else (purpose,))
