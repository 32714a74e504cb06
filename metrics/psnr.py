"""Peak signal-to-noise ratio: how closely the VAE reproduces a volume."""
import numpy as np


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB; infinite if equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    if error == 0:
        return float("inf")
    return float(10 * np.log10(255 ** 2 / error))


def slice_psnr(real, fake, axis):
    """Mean PSNR of the slices of two uint8 volumes across `axis`, in dB.

    Slices that are zero in `real`, and slices that are reproduced without error, are left out.

    :return: infinite if no slice is left
    """
    values = []
    for k in range(real.shape[axis]):
        slice_of_real = np.take(real, k, axis)
        if slice_of_real.any():
            values.append(psnr(slice_of_real, np.take(fake, k, axis)))
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("inf")
