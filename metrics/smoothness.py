"""Smoothness along each axis: whether synthetic volumes are as rough as real ones."""
from functools import partial

import numpy as np

from metrics.statistic import Statistic
from utils.progress import progress

DIRECTIONS = {
    # key: name of the steps that are compared
    "right": "right-left",
    "anterior": "anterior-posterior",
    "superior": "inferior-superior",
    "inside_tiles": "inside rgb tiles",
    "between_tiles": "between rgb tiles",
}
RIGHT, ANTERIOR, SUPERIOR = 0, 1, 2  # index of the axes among DIRECTIONS


def gradient_energy(volume):
    """Mean squared difference of neighboring voxels, along each axis and across rgb tiles.

    Layout "rgb" puts slices 3i, 3i + 1 and 3i + 2 into one tile. Steps along the third axis
    inside a tile compare two colors of one pixel; the step from 3i + 2 to 3i + 3 compares two
    places of the mosaic.

    :param volume: (D, D, D); uint8 stands for [0, 1]
    :return: (5,) float64, in the order of DIRECTIONS
    """
    x = volume.astype(np.float32) / (255 if volume.dtype == np.uint8 else 1)
    steps = [_mean_square_of_steps(x, axis) for axis in range(3)]
    slice_steps = steps[SUPERIOR]
    between = np.arange(len(slice_steps)) % 3 == 2
    inside_tiles = slice_steps[~between].mean()
    between_tiles = slice_steps[between].mean() if between.any() else np.nan
    return np.array([s.mean() for s in steps] + [inside_tiles, between_tiles])


def _mean_square_of_steps(x, axis):
    """Mean squared difference of each two neighboring slices across an axis, (D - 1,)."""
    others = tuple(k for k in range(3) if k != axis)
    return np.square(np.diff(x, axis=axis)).mean(axis=others, dtype=np.float64)


def energy_ratio(energy, k, a, b):
    """Ratio of the mean gradient energy of weighted sets in direction k, b to a.

    :param energy: (N, 5) gradient energies of the pool
    :param a, b: (R, N) weights of the two sets
    :return: (R,); NaN where set a is constant in this direction
    """
    of_a = a @ energy[:, k] / a.sum(1)
    of_b = b @ energy[:, k] / b.sum(1)
    return np.divide(of_b, of_a, out=np.full(len(a), np.nan), where=of_a > 0)


def through_plane_ratio(energy, a, b):
    """Energy ratio of inferior-superior over the geometric mean of the in-plane ones, (R,)."""
    in_plane = energy_ratio(energy, RIGHT, a, b) * energy_ratio(energy, ANTERIOR, a, b)
    return energy_ratio(energy, SUPERIOR, a, b) / np.sqrt(in_plane)


def smoothness_statistics(pool, options):
    """Gradient energy relative to the real set, in each direction."""
    volumes = progress(pool.compared, "gradients")
    energy = np.stack([gradient_energy(v) for v in volumes])
    ratio = "mean squared difference of neighboring voxels, relative to the real set, "
    definitions = [
        ratio + "along each axis",
        ratio + "along each axis",
        ratio + "along each axis",
        ratio + "inferior-superior, between slices in one tile of layout rgb",
        ratio + "inferior-superior, from one tile of layout rgb to the next",
    ]
    statistics = []
    for k, (key, name) in enumerate(DIRECTIONS.items()):
        statistics.append(Statistic(
            key=f"gradient_{key}", name=f"gradient energy, {name}", definition=definitions[k],
            target="1", compute=partial(energy_ratio, energy, k)))
    statistics.append(Statistic(
        key="through_plane", name="through-plane roughness",
        definition="gradient energy ratio of inferior-superior over the geometric mean of the "
                   "in-plane ratios; above 1: coronal and sagittal views are noisier than axial "
                   "ones",
        target="1", compute=partial(through_plane_ratio, energy)))
    return statistics
