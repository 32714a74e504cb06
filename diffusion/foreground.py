"""Foreground tokens: the patches of a mosaic that the network computes, and what fills the others.

A mosaic of skull-stripped brains is black where no brain is. Tokens that no training volume touches
carry nothing to learn, and the cost of attention grows with the square of their number.
"""
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from utils.errors import UserError


@dataclass(frozen=True)
class Foreground:
    """The tokens that a model computes.

    :param kept: (K,) int64, ascending; tokens are counted row by row
    :param background: (C, h, w) float32, latents in the DiT's scale, which fill all other patches
    """
    kept: torch.Tensor
    background: torch.Tensor

    def tensors(self):
        """{name: tensor}, as checkpoints hold them."""
        return {"kept": self.kept, "background": self.background}

    def fill(self, latents, kept_latents):
        """Latents (N, C, h, w) whose patches outside the foreground are the background's.

        :param kept_latents: positions of the foreground, see `models.DiT.keep_tokens`
        """
        shape = latents.shape
        filled = self.background.to(latents).expand(shape).flatten(2).clone()
        filled[:, :, kept_latents] = latents.flatten(2)[:, :, kept_latents]
        return filled.view(shape)


def touched_latents(mosaic, factor):
    """Where a mosaic is not black.

    :param mosaic: (H, W, 3) uint8
    :param factor: pixels of a latent along a side
    :return: (H / factor, W / factor) bool
    """
    height, width = mosaic.shape[0] // factor, mosaic.shape[1] // factor
    return mosaic.reshape(height, factor, width, factor * 3).any(axis=(1, 3))


def foreground_tokens(touched, patch_size, margin=0):
    """The tokens with a touched latent, and those around them.

    :param touched: (h, w) bool, see `touched_latents`; of a set of mosaics their union
    :param patch_size: latents of a token along a side
    :param margin: tokens that are added around, in all eight directions
    :return: (K,) int64, ascending, counted row by row
    :raises UserError: nothing is touched
    """
    height, width = touched.shape[0] // patch_size, touched.shape[1] // patch_size
    tokens = touched.reshape(height, patch_size, width, patch_size).any(axis=(1, 3))
    if not tokens.any():
        raise UserError("--tokens foreground: all mosaics are black; preprocess again, and look "
                        "at qc/")
    if margin:
        tokens = ndimage.binary_dilation(tokens, np.ones((3, 3), bool), iterations=margin)
    return torch.from_numpy(np.flatnonzero(tokens))


def check(tensors, config, path):
    """The Foreground in a checkpoint of a model of this config.

    :param tensors: {name: tensor}, see `Foreground.tensors`
    :param config: constructor arguments of models.DiT
    :raises UserError: they cannot be that model's
    """
    kept, background = tensors.get("kept"), tensors.get("background")
    side = config["input_size"]
    tokens = (side // config["patch_size"]) ** 2
    is_right = (
        kept is not None and background is not None
        and kept.dtype == torch.int64 and kept.ndim == 1 and len(kept) > 0
        and bool((kept.diff() > 0).all()) and 0 <= int(kept[0]) and int(kept[-1]) < tokens
        and background.dtype == torch.float32
        and background.shape == (config["in_channels"], side, side)
        and bool(background.isfinite().all()))
    if not is_right:
        raise UserError(f"{path}: its foreground tokens are not those of its model; use another "
                        "checkpoint")
    return Foreground(kept, background)
