"""Flagged copies beside the training volumes that they match, moved as they match."""
import numpy as np


def copy_and_source(pool, found):
    """A flagged synthetic volume and its source, mirrored and moved as it matches.

    :param pool: metrics.statistic.Pool, loaded
    :param found: one of "flagged" of metrics.json's entry "copies"
    :return: two arrays (D, D, D) uint8
    """
    volume = pool.part("synthetic")[pool.sets["synthetic"].ids.index(found["volume"])]
    source = pool.part("train")[pool.train.ids.index(found["source"])]
    return volume, np.roll(np.flip(source, found["mirrored_axes"]), found["shift"], (0, 1, 2))


def how_moved(found):
    """How the source was moved, in words: ", mirrored left-right, moved by +1, 0, -2 voxels"."""
    words = f", mirrored {found['mirrored']}" if found["mirrored"] else ""
    if any(found["shift"]):
        words += f", moved by {', '.join(f'{step:+d}' for step in found['shift'])} voxels"
    return words
