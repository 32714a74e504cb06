"""The cache of latents: the VAE's moments of every mosaic, encoded once."""
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusion import vae as vae_module
from mri.mosaic_files import mosaic_path, read_mosaic
from utils.errors import UserError
from utils.files import atomic_file, remove_leftovers, sha256_of_file
from utils.progress import progress


def cached_moments(folder, header, entries, vae, name):
    """Moments of the mosaics of these entries, kept in folder/latents-NAME.safetensors.

    The cache is keyed by the VAE's weights and by every mosaic's bytes, so a stale one is never
    used: what does not match is encoded again.

    :param folder: data folder
    :param header, entries: of its manifest
    :param name: the VAE's name, for the file name
    :return: (N, 2C, h, w) float32
    :raises UserError: a mosaic is missing or damaged, or the VAE cannot divide its size
    """
    folder = Path(folder)
    side = header["grid"] * header["size"]
    factor = vae_module.downsampling_factor(vae)
    if side % factor:
        raise UserError(f"{folder}: mosaics of {side} pixels cannot be divided by the VAE's "
                        f"downsampling factor {factor}; preprocess with another --size")
    path = folder / f"latents-{name}.safetensors"
    key = _cache_key(folder, entries, vae)
    moments = _read_cache(path, key)
    channels = vae.config.latent_channels
    shape = (len(entries), 2 * channels, side // factor, side // factor)
    if moments is not None and (moments.shape, moments.dtype) == (shape, torch.float32):
        return moments
    encoded = []
    for entry in progress(entries, "VAE encodings"):
        mosaic = read_mosaic(mosaic_path(folder, entry["id"]), header)
        encoded.append(vae_module.encode_moments(vae, mosaic[None]))
    moments = torch.cat(encoded)
    if os.access(folder, os.W_OK):
        _write_cache(path, moments, {"key": key, "vae": name})
    return moments


def _cache_key(folder, entries, vae):
    """SHA-256 of the VAE and of every mosaic's id and bytes."""
    digest = hashlib.sha256(vae_module.fingerprint(vae).encode())
    for entry in entries:
        path = mosaic_path(folder, entry["id"])
        try:
            digest.update(f"{entry['id']} {sha256_of_file(path)}\n".encode())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run preprocess.py again") from None
    return digest.hexdigest()


def _read_cache(path, key):
    """The moments in a cache with this key; None if there are none, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as f:
            if (f.metadata() or {}).get("key") == key:
                return f.get_tensor("moments")
    except (SafetensorError, OSError):
        pass
    return None


def _write_cache(path, moments, metadata):
    remove_leftovers(path, (path.parent, path))
    with atomic_file(path) as temporary:
        try:
            save_file({"moments": moments}, temporary, metadata=metadata)
        except SafetensorError as e:
            raise OSError(None, str(e), str(path)) from None
