"""."""

import numpy as np

from mri.geometry import in_memory_order


def intensity_window(array, percentiles):
    """The intensities (lo, hi) at two percentiles of all voxels. Raises ValueError when they coincide."""
    values = in_memory_order(np.asarray(array))[0].ravel()
    lo, hi = (percentile(values, p) for p in percentiles)
    if not hi > lo:
        raise ValueError(f"the percentiles {percentiles[0]:g} and {percentiles[1]:g} are both {lo:g}")
    return lo, hi


def percentile(values, q):
    """`np.percentile(values, [q])` to the bit; near the ends, such as 99.9, several times faster.

    Only the values beyond a threshold are sorted. A sample suggests it; that enough lie beyond it is counted.

    :param values: (N,), finite
    """
    if q in (0, 100):
        return float(values.min() if q == 0 else values.max())
    n = len(values)
    below, part = divmod(q / 100 * (n - 1), 1)          # the value sought lies between those of rank `below` and `below` + 1
    below, sample = int(below), np.sort(values[::max(1, n // 50_000)])
    reach = int(2 * min(q, 100 - q) / 100 * len(sample)) + 8
    if reach < len(sample):
        beyond = values[values >= sample[-reach]] if q > 50 else values[values <= sample[reach - 1]]
        rank = below - (n - len(beyond)) if q > 50 else below
        if 0 <= rank <= len(beyond) - (2 if part else 1):
            pair = np.partition(beyond, (rank, min(rank + 1, len(beyond) - 1)))[rank:rank + 2]
            return float(np.quantile(pair, [part])[0])
    return float(np.percentile(values, [q])[0])  # in a list, for a number alone is rounded to the array's float32


def to_uint8(array, window):
    """Maps lo…hi to 0…255, clipped and rounded; the inverse, up to that, of `from_uint8`."""
    lo, hi = window
    x = (np.asarray(array, np.float32) - lo) / (hi - lo)
    np.clip(x, 0, 1, out=x)
    x *= 255
    return np.rint(x, out=x).astype(np.uint8)


def from_uint8(volume, window=(0.0, 1.0)):
    """Maps 0…255 to lo…hi (float32)."""
    lo, hi = window
    return (np.asarray(volume, np.float32) / 255 * (hi - lo) + lo).astype(np.float32)
