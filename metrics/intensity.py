"""Intensity histograms: whether synthetic volumes are as bright as real ones."""
from functools import partial

import numpy as np

from metrics.statistic import Statistic
from utils.progress import progress

FOREGROUND = 0.05  # share of the intensity range above which a voxel is foreground


def intensity_histogram(volume):
    """Share of the voxels of a uint8 volume at each of the 256 intensities, (256,) float64."""
    return np.bincount(volume.reshape(-1), minlength=256) / volume.size


def histogram_distance(histograms, a, b, above=0.0):
    """Wasserstein-1 distance of the mean intensity histograms of weighted sets.

    :param histograms: (N, 256)
    :param a, b: (R, N) weights of the two sets
    :param above: compare only voxels brighter than this, in [0, 1]; both histograms are
        normalized again
    :return: (R,), intensities in [0, 1]
    """
    chosen = np.arange(256) > above * 255 if above else np.ones(256, bool)
    histograms = histograms[:, chosen]
    difference = _mean_histogram(histograms, a) - _mean_histogram(histograms, b)
    return np.abs(np.cumsum(difference, axis=1)).sum(1) / 255


def _mean_histogram(histograms, weights):
    total = weights @ histograms
    with np.errstate(invalid="ignore"):
        return total / total.sum(1, keepdims=True)


def histogram_statistics(pool, options):
    """Distance of the mean intensity histograms: of all voxels, and of the foreground."""
    volumes = progress(pool.compared, "histograms")
    histograms = np.stack([intensity_histogram(v) for v in volumes])
    definition = ("Wasserstein-1 distance of the mean intensity histograms, intensities in [0, 1], "
                  "256 bins")
    return [
        Statistic(
            key="histogram", name="intensity histogram",
            definition=f"{definition}, all voxels", target="low", has_interval=False,
            test="upper", compute=partial(histogram_distance, histograms)),
        Statistic(
            key="histogram_foreground", name="intensity histogram, foreground",
            definition=f"{definition}, voxels above {100 * FOREGROUND:g}% of the range",
            target="low", has_interval=False, test="upper",
            compute=partial(histogram_distance, histograms, above=FOREGROUND)),
    ]
