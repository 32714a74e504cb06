"""."""
import numpy as np

from metrics.statistic import Statistic
from utils.progress import progress


def intensity_histogram(volume):
    """Share of the voxels at each of the 256 intensities, (256,) float64.

    :param volume: uint8
    """
    return np.bincount(volume.reshape(-1), minlength=256) / volume.size


def histogram_distance(histograms, a, b, above=0.0):
    """Wasserstein-1 distance of the mean intensity histograms of weighted sets, intensities in [0, 1].

    :param histograms: (N, 256)
    :param a, b: (R, N) weights
    :param above: compare only voxels brighter than this (both histograms are normalised anew)
    :return: (R,)
    """
    keep = np.arange(256) > above * 255 if above else np.ones(256, bool)
    p, q = (w @ histograms[:, keep] for w in (a, b))
    with np.errstate(invalid="ignore"):
        p, q = (h / h.sum(1, keepdims=True) for h in (p, q))
    return np.abs(np.cumsum(p - q, axis=1)).sum(1) / 255


def histogram_statistics(pool, volumes):
    """Distances of the mean intensity histograms."""
    histograms = np.stack([intensity_histogram(v) for v in progress(volumes[:pool.size], "histograms")])
    how = "Wasserstein-1 distance of the mean intensity histograms, intensities in [0, 1], 256 bins"
    return [Statistic("histogram", "intensity histogram", how + ", all voxels", "low",
                      lambda a, b: histogram_distance(histograms, a, b)),
            Statistic("histogram_foreground", "intensity histogram, foreground", how + ", voxels above 5 % of the range", "low",
                      lambda a, b: histogram_distance(histograms, a, b, above=0.05))]
