"""."""
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusion.vae import downsampling_factor, encode_moments, fingerprint
from mri.mosaic_files import mosaic_path, read_mosaic
from utils.errors import UserError
from utils.files import atomic_file, sha256_of_file
from utils.progress import progress


def cached_moments(folder, header, volumes, vae, name):
    """Moments of these volumes' mosaics, encoded once and kept in folder/latents-NAME.safetensors.

    The cache is keyed by the VAE's weights and by every mosaic's bytes; whatever does not match is encoded anew.

    :param name: of the VAE, for the file's name
    :return: (N, 2C, h, w) float32
    :raises UserError: a mosaic missing or damaged, or a size the VAE cannot divide
    """
    folder = Path(folder)
    path = folder / f"latents-{name}.safetensors"
    side = header["grid"] * header["size"]
    if side % downsampling_factor(vae):
        raise UserError(f"{folder}: mosaics of {side} pixels cannot be divided by the VAE's factor {downsampling_factor(vae)}; "
                        "preprocess with another --size")
    key = hashlib.sha256(fingerprint(vae).encode())
    for v in volumes:
        file = mosaic_path(folder, v["id"])
        try:
            key.update(f"{v['id']} {sha256_of_file(file)}\n".encode())
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; preprocess anew") from None
    key = key.hexdigest()
    if path.exists():
        try:
            with safe_open(path, "pt") as f:
                if (f.metadata() or {}).get("key") == key:
                    return f.get_tensor("moments")
        except (SafetensorError, OSError):
            pass  # cut short or of another format: made anew below
    moments = torch.cat([encode_moments(vae, read_mosaic(mosaic_path(folder, v["id"]), header)[None])
                         for v in progress(volumes, "VAE encodes")])
    if os.access(folder, os.W_OK):
        with atomic_file(path) as tmp:
            try:
                save_file({"moments": moments}, tmp, metadata={"key": key, "vae": name})
            except SafetensorError as e:
                raise OSError(None, str(e), str(path)) from None
    return moments
