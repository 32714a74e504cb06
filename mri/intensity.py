"""Intensities of a scan <-> 8 bits, by a window between two percentiles."""
import numpy as np

from mri.geometry import in_memory_order

SAMPLE_VALUES = 50_000  # values that suggest where a percentile may lie


def intensity_window(array, percentiles):
    """The intensities at two percentiles of all voxels.

    :param percentiles: (low, high), 0…100
    :return: (lo, hi), Python floats
    :raises ValueError: the two coincide
    """
    values = in_memory_order(np.asarray(array))[0].ravel()
    lo, hi = (percentile(values, q) for q in percentiles)
    if not hi > lo:
        low, high = percentiles
        raise ValueError(f"the percentiles {low:g} and {high:g} are both {lo:g}")
    return lo, hi


def percentile(values, q):
    """`np.percentile(values, [q])`, bitwise identical; near the ends, as at 99.9, much faster.

    Only the values beyond a threshold are partitioned. A sample suggests the threshold; whether
    enough values lie beyond it is counted, and if not, all values are partitioned.

    :param values: (N,), finite
    :param q: 0…100
    :return: float
    """
    if q == 0:
        return float(values.min())
    if q == 100:
        return float(values.max())
    n = len(values)
    # the percentile lies between the values of rank `below` and `below` + 1, counted from 0
    below, fraction = divmod(q / 100 * (n - 1), 1)
    below = int(below)
    beyond = _values_beyond(values, q)
    if beyond is not None:
        rank = below - (n - len(beyond)) if q > 50 else below
        neighbors = 2 if fraction else 1
        if 0 <= rank <= len(beyond) - neighbors:
            next_rank = min(rank + 1, len(beyond) - 1)
            pair = np.partition(beyond, (rank, next_rank))[rank:rank + 2]
            return float(np.quantile(pair, [fraction])[0])
    # in a list, as NumPy rounds a single percentile to the array's float32
    return float(np.percentile(values, [q])[0])


def _values_beyond(values, q):
    """The values on the side of percentile `q` where there are fewer, likely with it among them.

    None where that would be all of them.
    """
    sample = np.sort(values[::max(1, len(values) // SAMPLE_VALUES)])
    reach = int(2 * min(q, 100 - q) / 100 * len(sample)) + 8
    if reach >= len(sample):
        return None
    if q > 50:
        return values[values >= sample[-reach]]
    return values[values <= sample[reach - 1]]


def to_uint8(array, window):
    """Maps lo…hi to 0…255, clipped and rounded; the inverse, up to that, of `from_uint8`.

    :param window: (lo, hi)
    :return: uint8, the array's shape
    """
    lo, hi = window
    x = (np.asarray(array, np.float32) - lo) / (hi - lo)
    np.clip(x, 0, 1, out=x)
    x *= 255
    return np.rint(x, out=x).astype(np.uint8)


def from_uint8(volume, window=(0.0, 1.0)):
    """Maps 0…255 to lo…hi, float32; the inverse of `to_uint8`."""
    lo, hi = window
    return (np.asarray(volume, np.float32) / 255 * (hi - lo) + lo).astype(np.float32)
