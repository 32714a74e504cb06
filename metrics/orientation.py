"""Whether the synthetic volumes lie as the real ones do: not turned, not mirrored."""
import numpy as np

from mri import axis_orders, geometry

# Means of 8 and of 8 others of 16 real brains agree by 0.98; with an axis reversed or two swapped,
# by 0.91 at most, but for left and right.
MIN_GAIN = 0.05             # in correlation, by another order
MIN_CORRELATION = 0.5       # in that order; below, the sets are too different to tell
SMALL_SIDE = 12             # voxels of the cubes that are compared
MIRROR_TOLERANCE = 0.02     # in correlation; a brain is nearly its own mirror image


def orientation_warnings(pool):
    """A sentence without a full stop if the mean synthetic volume agrees clearly better with the
    mean real one in another order or direction of its axes.

    Left and right cannot be distinguished this way.

    :param pool: statistic.Pool, loaded
    """
    real, synthetic = (_small_mean(pool.part(name)) for name in ("real", "synthetic"))
    as_is = axis_orders.all_orders(synthetic, real)[0]
    best = axis_orders.best_order(synthetic, real, MIRROR_TOLERANCE)
    gain = best.correlation - as_is.correlation
    if gain <= MIN_GAIN or best.correlation < MIN_CORRELATION:
        return []
    return [f"the synthetic volumes look turned: their mean agrees with the real one by "
            f"{as_is.correlation:.2f}, but by {best.correlation:.2f} with --synthetic-axes "
            f"{best.name}"]


def _small_mean(volumes):
    """Mean of volumes (N, D, D, D) uint8, as a small cube."""
    total = np.zeros(volumes.shape[1:])
    for volume in volumes:
        total += volume
    return geometry.resample(total / len(volumes), (SMALL_SIDE,) * 3)
