"""Mosaic <-> latent: the VAE, its scale constant, and the cache of moments.

Everything about the VAE's shape (downsampling factor, latent channels, scale) is read from its own config.
"""
import hashlib
import json
from pathlib import Path

import diffusers  # lazily: a part is imported where it is first used
import numpy as np
import torch

from utils.errors import UserError, shorten
from utils.files import WEIGHTS_DIR

diffusers.utils.logging.set_verbosity_error()  # its advice on optional packages is not for our users
REPOS = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}


def load_vae(name, device="cpu", flag="--vae"):
    """An AutoencoderKL in eval mode, frozen, float32.

    :param name: "ema" or "mse" (stabilityai/sd-vae-ft-*: looked for in weights/, then in the Hugging Face cache, then
        online), or a folder in diffusers' format with safetensors weights
    :raises UserError: not found, not an AutoencoderKL, damaged, or only pickled weights
    """
    local = Path(name)
    if name in REPOS:
        local = WEIGHTS_DIR / f"sd-vae-ft-{name}"
    if local.is_dir():
        sources = [(local, {})]
    elif name in REPOS:
        sources = [(REPOS[name], dict(local_files_only=True)), (REPOS[name], {})]
    else:
        raise UserError(f"{flag} {name}: no such folder; give {' or '.join(REPOS)}, or a folder that train_vae.py wrote")
    for source, options in sources:
        try:
            vae, info = diffusers.AutoencoderKL.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False,
                                                      output_loading_info=True, **options)
            wrong = [k for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in info[kind]]
            if wrong:  # diffusers would go on with random weights
                raise ValueError(f"{len(wrong)} of its tensors do not fit, such as {wrong[0]}")
            break
        except MemoryError:
            raise
        except Exception as e:  # a damaged folder can end diffusers in any way
            error = shorten(e, 200)
    else:
        if local.is_dir():
            raise UserError(f"{flag} {local}: cannot be loaded as an AutoencoderKL with safetensors weights ({error})")
        raise UserError(f"{flag} {name}: neither in {local} nor to be had from the internet; run `python download.py "
                        f"sd-vae-ft-{name}` on a machine with internet and copy {WEIGHTS_DIR}/ here")
    return vae.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def load_decoder(meta, name, device, ckpt):
    """The VAE that decodes what a checkpoint's model samples.

    :param meta: the checkpoint's metadata
    :param name: as `load_vae` takes it; None: the one that was trained with
    :raises UserError: its shape, or without a name its weights, are not those trained with
    """
    recorded = meta["vae"]
    vae = load_vae(name or recorded["path"] or recorded["name"], device)
    if not name and fingerprint(vae) != recorded["sha256"]:
        raise UserError(f"--vae {recorded['path'] or recorded['name']}: changed since {ckpt} was trained; name the right one")
    shape = downsampling_factor(vae) * meta["config"]["input_size"], vae.config.latent_channels
    if shape != (meta["image_size"], meta["config"]["in_channels"]):
        raise UserError(f"--vae {name or recorded['name']}: decodes latents of side {meta['config']['input_size']} to "
                        f"{shape[0]} pixels with {shape[1]} channels; the model was trained for {meta['image_size']} pixels")
    return vae


def downsampling_factor(vae):
    """Pixels per latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def to_pixels(mosaics, device="cpu", dtype=torch.float32):
    """(N, H, W, 3) uint8 array -> (N, 3, H, W) tensor in [-1, 1]; the inverse of `from_pixels`."""
    x = torch.from_numpy(np.ascontiguousarray(mosaics)).to(device).permute(0, 3, 1, 2)
    return (x.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def from_pixels(x):
    """(N, 3, H, W) tensor, clipped to [-1, 1] -> (N, H, W, 3) uint8 array."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode_moments(vae, mosaics):
    """Moments of the VAE's posterior, one mosaic at a time so that memory is bound by one.

    :param mosaics: (N, H, W, 3) uint8
    :return: (N, 2C, H/f, W/f) float32 on the CPU: C channels of the mean, then C of the standard deviation
    """
    moments = []
    for m in mosaics:
        posterior = vae.encode(to_pixels(m[None], vae.device, vae.dtype)).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.std], 1).float().cpu())
    return torch.cat(moments).contiguous()


def draw_latents(vae_config, moments, noise):
    """Latents for the DiT, drawn from moments: (mean + std * noise) in the VAE's own scale; `decode` undoes the scale.

    :param vae_config: has scaling_factor and, perhaps, shift_factor
    :param moments: (N, 2C, h, w)
    :param noise: (N, C, h, w), standard normal
    """
    mean, std = moments.chunk(2, 1)
    return (mean + std * noise - (vae_config.get("shift_factor") or 0)) * vae_config["scaling_factor"]


@torch.no_grad()
def decode(vae, latents, bf16=False):
    """Latents in the DiT's scale -> mosaics, one at a time so that memory is bound by one.

    :param latents: (N, C, h, w)
    :param bf16: twice as fast on a CPU that computes in it; moved the grey levels of the demo's VAE by 0.3 of 255 (rms)
    :return: (N, H, W, 3) uint8
    """
    z = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
        return np.concatenate([from_pixels(vae.decode(one[None].to(vae.device, vae.dtype)).sample) for one in z])


def fingerprint(vae):
    """SHA-256 of the VAE's config and weights: the same for the same VAE, wherever it lies."""
    digest = hashlib.sha256()
    config = {k: vae.config.get(k) for k in ("block_out_channels", "latent_channels", "scaling_factor", "shift_factor")}
    digest.update(json.dumps(config, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


