"""."""
import numpy as np


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of uint8 arrays."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255 ** 2 / error))


def slice_psnr(real, fake, axis):
    """Mean PSNR, dB, over the slices across `axis` that show anything and are not reproduced without error."""
    values = [psnr(np.take(real, k, axis), np.take(fake, k, axis)) for k in range(real.shape[axis])
              if np.take(real, k, axis).any()]
    values = [v for v in values if np.isfinite(v)]
    return float(np.mean(values)) if values else float("inf")
