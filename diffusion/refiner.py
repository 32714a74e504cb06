"""The refiner: a small 3D network that makes slices of a decoded volume fit together.

The DiT draws, and the VAE decodes, mosaics: neighbors within a slice are neighbors in the mosaic,
neighbors across slices are not. The refiner sees the volume itself and adds a correction. It is
told the place of every slice in its tile, since steps inside a tile (between colors of one pixel)
and from tile to tile differ. Before training the correction is zero.

A folder holds one: refiner.safetensors, and config.json with what it was trained for.
"""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mri import mosaic
from utils.errors import UserError
from utils.files import atomic_file, read_json, write_text
from utils.precision import autocast
from utils.version import __version__

FORMAT = "mosaicdit-refiner"
FORMAT_VERSION = 1
WEIGHTS_NAME = "refiner.safetensors"
CONFIG_NAME = "config.json"
CHANNELS = 32               # of the network
LAYERS = 5                  # convolutions, each of which sees one slice more on either side
CORRECTION_SCALE = 0.03     # of the network's output
FOLD = 2                    # pixels of a slice, along either axis, that become channels
MAX_CHANNELS = 1024         # that a file may ask for
MAX_LAYERS = 64
SLAB_VOXELS = 2 ** 20       # voxels computed at once; memory is 0.3 GB for 32 channels


class RefinerNet(nn.Module):
    """Residual 3D convolutions on slices whose 2 x 2 blocks of pixels are folded into channels.

    Folding costs a quarter of full resolution and doubles the field of view within a slice; slices
    themselves stay as they are. Zero padding: a volume's surroundings are black. The correction is
    scaled down, as AdamW's steps are of one size for all weights: unscaled, thousands of weights
    that move together make training diverge at a learning rate that is right for the others.
    """

    def __init__(self, places, channels=CHANNELS, layers=LAYERS):
        """:param places: slices of a tile, 3 in layout "rgb", 1 in "gray" """
        super().__init__()
        self.places = places
        widths = [FOLD ** 2 + places, *[channels] * (layers - 1), FOLD ** 2]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(before, after, 3, padding=1) for before, after in zip(widths, widths[1:]))
        for convolution in self.convolutions[:-1]:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
        nn.init.zeros_(self.convolutions[-1].weight)
        nn.init.zeros_(self.convolutions[-1].bias)

    def forward(self, x, place):
        """
        :param x: (N, X, Y, Z) in [0, 1]
        :param place: (N, Z) int64, of every slice in its tile
        :return: (N, X, Y, Z), corrected; not clipped
        """
        size = x.shape
        folded = fold(F.pad(x, (0, 0, 0, size[2] % FOLD, 0, size[1] % FOLD)))
        one_hot = F.one_hot(place, self.places).to(x.dtype)             # (N, Z, places)
        one_hot = one_hot.permute(0, 2, 1)[:, :, None, None]            # (N, places, 1, 1, Z)
        one_hot = one_hot.expand(-1, -1, *folded.shape[2:4], -1)
        h = torch.cat([folded, one_hot], 1).contiguous(memory_format=torch.channels_last_3d)
        first, *middle, last = self.convolutions
        h = F.silu(first(h))
        for convolution in middle:
            h = h + F.silu(convolution(h))
        correction = CORRECTION_SCALE * unfold(last(h).float())
        return x + correction[:, :size[1], :size[2]]


def fold(x):
    """Moves the pixels of 2 x 2 blocks of a slice into channels; the inverse of `unfold`.

    :param x: (N, X, Y, Z), X and Y even
    :return: (N, 4, X / 2, Y / 2, Z)
    """
    n, height, width, depth = x.shape
    blocks = x.reshape(n, height // FOLD, FOLD, width // FOLD, FOLD, depth)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, FOLD ** 2, *blocks.shape[1::2])


def unfold(x):
    """(N, 4, X / 2, Y / 2, Z) -> (N, X, Y, Z); the inverse of `fold`."""
    n, _, height, width, depth = x.shape
    blocks = x.reshape(n, FOLD, FOLD, height, width, depth).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, height * FOLD, width * FOLD, depth)


def places_of_slices(first, count, places):
    """The place in its tile of slices first, first + 1, …, (count,) int64."""
    return torch.arange(first, first + count) % places


# ---------------------------------------------------------------------------------------- applying

@dataclass(frozen=True)
class Refiner:
    """A trained network, and what it was trained for."""
    network: RefinerNet
    config: dict        # size, layout, vae_sha256, ckpt_sha256 (None: round trips alone), …
    path: str = ""      # of its folder, as the user gave it
    flag: str = "--refiner"

    @property
    def sha256(self):
        """SHA-256 of its weights."""
        return self.config["sha256"]

    def refine(self, volume, precision="fp32"):
        """See `refine_volume`."""
        return refine_volume(self.network, volume, precision)

    def refine_mosaic(self, pixels, precision="fp32"):
        """A mosaic of the refined volume: the inverse of untiling, after refining.

        :param pixels: (side, side, 3) uint8
        """
        size, layout = self.config["size"], self.config["layout"]
        return mosaic.tile(self.refine(mosaic.untile(pixels, size, layout), precision), layout)

    def check_shape(self, size, layout, of):
        """Raises UserError unless it was trained for volumes of this size and layout.

        :param of: what has this size and layout, for the error
        """
        own = self.config["size"], self.config["layout"]
        if own != (size, layout):
            raise UserError(
                f"{self.flag} {self.path}: was trained for {own[1]} mosaics of {own[0]}^3, but "
                f"{of} has {layout} mosaics of {size}^3; train one with train_refiner.py")

    def doubts(self, vae_sha256, ckpt_sha256, of):
        """Lines for the user where it was trained for another VAE or checkpoint.

        :param vae_sha256, ckpt_sha256: of what is refined; None: not known
        :param of: what is refined, for the lines
        """
        lines = []
        for key, name, found in (("vae_sha256", "VAE", vae_sha256),
                                 ("ckpt_sha256", "checkpoint", ckpt_sha256)):
            own = self.config[key]
            if own and found is None:
                lines.append(f"{of} does not say which {name} it is from; "
                             f"{self.flag} {self.path} was trained for {own[:12]}")
            elif own and own != found:
                lines.append(f"{self.flag} {self.path} was trained for another {name} "
                             f"({own[:12]}) than that of {of} ({found[:12]})")
        return lines


@torch.no_grad()
def refine_volume(network, volume, precision="fp32", slab_voxels=SLAB_VOXELS):
    """Refines a volume in slabs of whole slices, so that memory does not grow with their number.

    Every slab is computed with as many slices on either side as the network sees: the result is
    that of the whole volume at once.

    :param volume: (X, Y, Z), uint8, or floating point in [0, 1]
    :param precision: compute dtype, bf16 or fp32
    :param slab_voxels: voxels to compute at once, those on either side included; at least one
        slice is refined at a time
    :return: (X, Y, Z) of the same dtype, clipped to [0, 1]
    :raises UserError: values outside [0, 1], or not finite
    """
    check_range(volume)
    device = next(network.parameters()).device
    depth, halo = volume.shape[2], len(network.convolutions)
    thickness = max(slab_voxels // (volume.shape[0] * volume.shape[1]) - 2 * halo, 1)
    out = np.empty_like(volume)
    for first in range(0, depth, thickness):
        last = min(first + thickness, depth)
        start, stop = max(first - halo, 0), min(last + halo, depth)
        x = as_unit_range(volume[None, :, :, start:stop]).to(device)
        place = places_of_slices(start, stop - start, network.places)[None].to(device)
        with autocast(device, precision):
            refined = network(x, place)[0, :, :, first - start:last - start]
        out[:, :, first:last] = from_unit_range(refined, volume.dtype)
    return out


def check_range(volume):
    """Raises UserError for a floating point volume with values that are not in [0, 1]."""
    if volume.dtype == np.uint8:
        return
    low, high = volume.min(), volume.max()
    if not (0 <= low and high <= 1):        # NaN is not, either
        raise UserError(f"volume to refine: has values from {low:g} to {high:g}; they must be "
                        "finite and in [0, 1], as preprocess.py makes them")


def as_unit_range(volumes):
    """uint8 or floating point array -> float32 tensor in [0, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(volumes))
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def from_unit_range(x, dtype):
    """Tensor -> array of a dtype, clipped to [0, 1]; the inverse of `as_unit_range`."""
    x = x.float().clamp(0, 1)
    if dtype == np.uint8:
        return (x * 255).round().byte().cpu().numpy()
    return x.cpu().numpy().astype(dtype)


# ----------------------------------------------------------------------------------------- storing

def save_refiner(folder, network, **trained_for):
    """Writes a network and what it was trained for; the inverse of `load_refiner`.

    :param folder: exists
    :param trained_for: size, layout, vae_sha256, ckpt_sha256, and whatever else is to be known
    :return: the content of config.json
    """
    tensors = {name: tensor.detach().cpu().contiguous()
               for name, tensor in network.state_dict().items()}
    config = {"format": FORMAT, "version": FORMAT_VERSION, "mosaicdit_version": __version__,
              "sha256": checksum(tensors), "channels": network.convolutions[0].out_channels,
              "layers": len(network.convolutions), **trained_for}
    with atomic_file(Path(folder) / WEIGHTS_NAME) as temporary:
        save_file(tensors, temporary)
    write_text(Path(folder) / CONFIG_NAME, json.dumps(config, indent=1) + "\n")
    return config


def load_refiner(folder, device="cpu", flag="--refiner"):
    """Reads a refiner's folder; the inverse of `save_refiner`.

    :param flag: that named it, for errors
    :return: Refiner
    :raises UserError: missing, damaged, or of a later version
    """
    path = Path(folder)
    if not (path / CONFIG_NAME).is_file():
        raise UserError(f"{flag} {folder}: holds no {CONFIG_NAME}; name a folder that "
                        "train_refiner.py wrote")
    config = checked_config(read_json(path / CONFIG_NAME), f"{flag} {path / CONFIG_NAME}")
    network = RefinerNet(mosaic.SLICES_PER_TILE[config["layout"]], config["channels"],
                         config["layers"])
    try:
        tensors = load_file(path / WEIGHTS_NAME)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError):
        raise UserError(f"{flag} {path / WEIGHTS_NAME}: missing, damaged, or of another network; "
                        "copy the folder again") from None
    if checksum(tensors) != config["sha256"] or not all(
            tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{flag} {path / WEIGHTS_NAME}: damaged (its checksum differs, or it holds "
                        "numbers that are not finite); copy the folder again")
    network = network.to(device, memory_format=torch.channels_last_3d)
    return Refiner(network.eval().requires_grad_(False), config, str(folder), flag)


def checked_config(config, name):
    """The config, if every value is of a kind that `save_refiner` writes.

    :param name: of its file, for errors
    :raises UserError: it is not
    """
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{name}: not of a refiner; name a folder that train_refiner.py wrote")
    if config.get("version") != FORMAT_VERSION:
        raise UserError(f"{name}: format version {config.get('version')}, this code reads "
                        f"{FORMAT_VERSION}; train it again")
    limits = {"size": 2 ** 12, "channels": MAX_CHANNELS, "layers": MAX_LAYERS}
    good = all(type(config.get(key)) is int and 1 <= config[key] <= limit
               for key, limit in limits.items())
    good = good and config["layers"] >= 2 and config.get("layout") in mosaic.SLICES_PER_TILE
    for key in ("sha256", "vae_sha256"):
        good = good and isinstance(config.get(key), str)
    if not good or not isinstance(config.get("ckpt_sha256"), str | None):
        raise UserError(f"{name}: damaged; train the refiner again")
    return config


def checksum(tensors):
    """SHA-256 of named tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
