"""The ceiling: what samples can reach at best, shown by real volumes after the VAE.

A sample is decoded by the VAE, so it cannot be closer to real volumes than real volumes that the
VAE has encoded and decoded. A refiner, which comes after the decoder, is a part of that.
"""
from dataclasses import dataclass

import numpy as np

from diffusion import refiner as refiners
from diffusion import vae as latents
from metrics.psnr import psnr
from mri import mosaic
from utils.errors import UserError
from utils.progress import progress

MAX_PSNR = 120  # dB; stands for the infinite PSNR of a volume reproduced without error
REFINED = "{layout}, refined"


@dataclass(frozen=True)
class Ceiling:
    """What real volumes go through."""
    vae: object                     # AutoencoderKL
    layouts: tuple                  # of the mosaics, each once
    refiner: refiners.Refiner | None = None     # for one of the layouts

    @property
    def names(self):
        """Of the sets of volumes that come out: layouts, and the refined one."""
        return [*self.layouts, *([self._refined] if self.refiner else [])]

    @property
    def _refined(self):
        return REFINED.format(layout=self.refiner.config["layout"])

    def fill(self, pool):
        """Fills the parts "vae NAME" of a pool.

        :param pool: metrics.statistic.Pool, loaded
        :return: {name: mean PSNR of the round trip, dB}
        """
        real = pool.part("real")
        found = {layout: through_vae(real, pool.part(f"vae {layout}"), layout, self.vae)
                 for layout in self.layouts}
        if self.refiner:
            decoded = pool.part(f"vae {self.refiner.config['layout']}")
            found[self._refined] = through_refiner(
                real, decoded, pool.part(f"vae {self._refined}"), self.refiner)
        return found


def load(vae_name, dtype, device, layouts, side, refiner_folder=None):
    """The Ceiling that flags ask for; {"VAE, LAYOUT": why the layout is left out}. Prints a warning
    if the refiner was trained for another VAE.

    :param layouts: names of layouts
    :param side: of the volumes, voxels
    :param refiner_folder: None: without a refiner
    :raises UserError: VAE or refiner cannot be read, or the refiner is for another size or layout
    """
    vae = latents.load_vae(vae_name, device).to(dtype)
    usable, skipped = usable_layouts(vae, layouts, side)
    if refiner_folder is None:
        return Ceiling(vae, tuple(usable)), skipped
    refiner = refiners.load_refiner(refiner_folder, device)
    layout = refiner.config["layout"]
    refiner.check_shape(side, layout, "--real")
    if layout not in usable:
        raise UserError(f"--refiner {refiner_folder}: is for {layout} mosaics; name {layout} among "
                        "--vae-layouts, and a VAE that can encode them")
    for line in refiner.doubts(latents.fingerprint(vae.float()), refiner.config["ckpt_sha256"],
                               f"--vae {vae_name}"):
        print(f"warning: {line}", flush=True)
    return Ceiling(vae.to(dtype), tuple(usable), refiner), skipped


def through_refiner(real, decoded, out, refiner):
    """Writes decoded volumes after refining into `out`.

    :param real, decoded, out: (N, D, D, D) uint8; `out` is filled here
    :return: mean PSNR, dB
    """
    values = []
    for i, volume in enumerate(progress(decoded, "refined volumes")):
        out[i] = refiner.refine(volume)
        values.append(min(psnr(out[i], real[i]), MAX_PSNR))
    return float(np.mean(values))


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
