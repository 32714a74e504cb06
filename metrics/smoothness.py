"""."""
import numpy as np

from metrics.statistic import Statistic
from utils.progress import progress

GRADIENTS = ("right", "anterior", "superior", "inside_tiles", "between_tiles")


def gradient_energy(volume):
    """Mean squared difference of neighbouring voxels along each axis, and along the axial one within and between rgb tiles.

    Layout "rgb" puts slices 3i, 3i+1, 3i+2 into one tile: steps inside a tile join colours of one pixel, steps from 3i+2 to
    3i+3 join two places of the mosaic.

    :param volume: (D, D, D); uint8 stands for [0, 1]
    :return: (5,) float64, in the order of GRADIENTS
    """
    x = volume.astype(np.float32) / (255 if volume.dtype == np.uint8 else 1)
    steps = [np.square(np.diff(x, axis=axis)).mean(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64) for axis in range(3)]
    between = np.arange(len(steps[2])) % 3 == 2
    parts = [steps[2][~between].mean(), steps[2][between].mean() if between.any() else np.nan]
    return np.array([s.mean() for s in steps] + parts)


def smoothness_statistics(pool, volumes):
    """Gradient energies, over the real set's."""
    energy = np.stack([gradient_energy(v) for v in progress(volumes[:pool.size], "gradients")])

    def ratio(k):
        return lambda a, b: np.divide(b @ energy[:, k] / b.sum(1), base := a @ energy[:, k] / a.sum(1), out=np.full(len(a), np.nan),
                                      where=base > 0)

    def through_plane(a, b):
        return ratio(2)(a, b) / np.sqrt(ratio(0)(a, b) * ratio(1)(a, b))

    how = "mean squared difference of neighbouring voxels over the real set's, "
    along = how + "along each axis"
    steps = {"right-left": along, "anterior-posterior": along, "inferior-superior": along,
             "inside rgb tiles": how + "inferior-superior, between slices of one tile of layout rgb",
             "between rgb tiles": how + "inferior-superior, from one tile of layout rgb to the next"}
    return [Statistic("gradient_" + key, "gradient energy, " + step, text, "1", ratio(k))
            for k, (key, (step, text)) in enumerate(zip(GRADIENTS, steps.items()))] + [
            Statistic("through_plane", "through-plane roughness", "gradient energy ratio of inferior-superior over the geometric mean of "
                      "the in-plane ratios; above 1: coronal and sagittal views are noisier than axial ones", "1", through_plane)]
