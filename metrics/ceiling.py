"""The ceiling: what samples can reach at best, shown by real volumes after the VAE.

A sample is decoded by the VAE, so it cannot be closer to real volumes than real volumes that the
VAE has encoded and decoded.
"""
import numpy as np

from diffusion import vae as latents
from metrics.psnr import psnr
from mri import mosaic
from utils.progress import progress

MAX_PSNR = 120  # dB; stands for the infinite PSNR of a volume reproduced without error


def usable_layouts(vae, layouts, side):
    """Mosaic layouts whose mosaics the VAE can encode, as its downsampling factor divides them.

    :param side: of the volumes, voxels
    :return: list of layouts, {"VAE, LAYOUT": why the layout is left out}
    """
    factor = latents.downsampling_factor(vae)
    usable, skipped = [], {}
    for layout in layouts:
        pixels = mosaic.mosaic_side(side, layout)
        if pixels % factor == 0:
            usable.append(layout)
        else:
            skipped[f"VAE, {layout}"] = (f"a mosaic of {pixels} pixels cannot be divided by "
                                         f"the VAE's downsampling factor {factor}")
    return usable, skipped


def through_vae(volumes, out, layout, vae):
    """Writes volumes after a round trip through the VAE into `out`.

    Each is tiled, encoded to the mean of its latents, decoded and untiled.

    :param volumes: (N, D, D, D) uint8
    :param out: (N, D, D, D) uint8, filled here
    :return: mean PSNR of the round trip, dB
    """
    values = []
    for i, volume in enumerate(progress(volumes, f"VAE, layout {layout}")):
        mosaics = mosaic.tile(volume, layout)[None]
        out[i] = mosaic.untile(latents.reconstruct(vae, mosaics)[0], len(volume), layout)
        values.append(min(psnr(out[i], volume), MAX_PSNR))
    return float(np.mean(values))
