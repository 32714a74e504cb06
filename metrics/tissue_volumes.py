"""Volumes of three tissues by intensity, for volumes in which structures are too small to see."""
import numpy as np

TISSUES = ("csf", "gray_matter", "white_matter")    # from dark to bright, as in T1
FOREGROUND = 13         # of 255, about 5% of the range: darker voxels are background


def tissue_volumes(volume, voxel_sizes):
    """Volumes of the tissues of a skull-stripped T1 volume.

    Two thresholds divide the foreground's intensities so that the variance between the three
    classes is the largest (Otsu 1979, IEEE SMC 9:62).

    :param volume: (X, Y, Z) uint8
    :param voxel_sizes: (3,) mm
    :return: (3,) ml, in the order of TISSUES; NaN where the foreground has fewer than three values
    """
    counts = np.bincount(volume.reshape(-1), minlength=256)[FOREGROUND:]
    if np.count_nonzero(counts) < len(TISSUES):
        return np.full(len(TISSUES), np.nan)
    first, second = _thresholds(counts)
    voxels = [counts[:first].sum(), counts[first:second].sum(), counts[second:].sum()]
    return np.array(voxels) * np.prod(voxel_sizes) / 1000


def _thresholds(counts):
    """Where the second and the third class begin, indices of the histogram."""
    values = np.arange(len(counts))
    weight = np.concatenate([[0], np.cumsum(counts)]).astype(float)       # below each threshold
    total = np.concatenate([[0], np.cumsum(counts * values)]).astype(float)
    first, second = np.triu_indices(len(counts), 1)
    between = np.zeros(len(first))
    for low, high in ((np.zeros_like(first), first), (first, second),
                      (second, np.full_like(first, len(counts)))):
        inside = weight[high] - weight[low]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = (total[high] - total[low]) ** 2 / inside
        between += np.where(inside > 0, part, -np.inf)                    # no empty class
    best = between.argmax()
    return first[best], second[best]
