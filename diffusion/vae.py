"""Mosaic to latent and back: the VAE and the scale of its latents.

The VAE's downsampling factor, latent channels and scaling factor are read from its own config.
"""
import hashlib
import json
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import torch

from diffusion.vae_claims import check_folder
from utils import distributed
from utils.errors import UserError, shorten
from utils.escaping import printable
from utils.files import WEIGHTS_DIR, find_moved, weights_path
from utils.precision import autocast

PUBLIC_VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}
CONNECT_SECONDS = 2     # without internet, the client of the Hugging Face Hub would retry for 23 s
WEIGHTS_NAME = "diffusion_pytorch_model"


# ---------------------------------------------------------------------------------------- loading

def load_vae(name, device="cpu", flag="--vae"):
    """Loads an AutoencoderKL in eval mode, frozen, fp32.

    :param name: "ema" or "mse" (stabilityai/sd-vae-ft-*; looked for in weights/ of the current
        folder and beside the scripts, then in the Hugging Face cache, then online), or a folder in
        diffusers' format with safetensors weights: of a VAE, or of a pipeline that has one in vae/
    :param flag: the flag that named it, for error messages
    :raises UserError: not found, not an AutoencoderKL, damaged, or only pickled weights
    """
    folder = weights_path(f"sd-vae-ft-{name}") if name in PUBLIC_VAES else Path(name)
    if folder.is_dir():
        folder = vae_folder(folder)
        vae = _load_first([(folder, _variant(folder))], f"{flag} {folder}: cannot be loaded as an "
                          "AutoencoderKL with safetensors weights ({error})")
    elif name in PUBLIC_VAES:
        vae = _load_public(name, folder, flag)
    else:
        raise UserError(f"{flag} {name}: no such folder; give {' or '.join(PUBLIC_VAES)}, "
                        "or a folder that train_vae.py wrote")
    vae.requires_grad_(False).eval()
    return vae.to(device, memory_format=torch.channels_last)


def vae_folder(folder):
    """The folder itself, or vae/ in the folder of a pipeline."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        return folder / "vae"
    return folder


def _variant(folder):
    """Options to load weights that are there as a variant only, such as WEIGHTS_NAME.fp16.*."""
    if any((folder / (WEIGHTS_NAME + ending)).is_file()
           for ending in (".safetensors", ".safetensors.index.json")):
        return {}
    names = [path.name for path in folder.glob(f"{WEIGHTS_NAME}.*.safetensors")]
    variants = sorted(name.split(".")[1] for name in names if name.count(".") == 2)
    return {"variant": variants[0]} if variants else {}


def _load_public(name, folder, flag):
    """A public VAE from the Hugging Face cache, or else from the internet."""
    repository = PUBLIC_VAES[name]
    sources = [(repository, {"local_files_only": True})]
    if _is_hub_reachable():
        sources.append((repository, {}))
    return _load_first(
        sources,
        f"{flag} {name}: neither in {folder} nor available from the internet; run `python "
        f"download.py sd-vae-ft-{name}` on a machine with internet and copy {WEIGHTS_DIR}/ here")


def _is_hub_reachable():
    """Whether the Hugging Face Hub, or the proxy before it, accepts a connection at once."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
    except ValueError:
        return False
    answers = []

    def connect():
        try:
            socket.create_connection((url.hostname, port), CONNECT_SECONDS).close()
            answers.append(True)
        except OSError:
            pass

    # in a thread, as looking up the address takes as long as it takes
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answers)


def _load_first(sources, message):
    """The AutoencoderKL of the first source that has one; UserError with `message` if none has.

    :param sources: list of (folder or repository, options of from_pretrained)
    """
    import diffusers  # here, as training from cached latents does not need it
    diffusers.utils.logging.set_verbosity_error()  # its advice on optional packages
    for source, options in sources:
        try:
            if Path(source).is_dir():
                check_folder(source)
            vae, info = diffusers.AutoencoderKL.from_pretrained(
                source, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True,
                **options)
            _refuse_partial_load(info)
            return vae
        except MemoryError:
            raise
        except Exception as e:  # a damaged folder can make diffusers raise anything
            error = shorten(e, 200)
    raise UserError(message.format(error=error))


def _refuse_partial_load(info):
    """diffusers would leave tensors that the file lacks at random values."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = [key for kind in kinds for key in info[kind]]
    if wrong:
        raise ValueError(f"{len(wrong)} of its tensors do not fit, such as {wrong[0]}")


def load_decoder(metadata, name, device, checkpoint):
    """Loads the VAE that decodes the samples of a checkpoint's model.

    :param metadata: metadata of the checkpoint
    :param name: as `load_vae` takes it; None: the VAE that the model was trained with
    :param checkpoint: path of the checkpoint, for error messages
    :raises UserError: it has another shape, or without a name other weights, than in training
    """
    recorded = metadata["vae"]
    place = name or _recorded_place(recorded, checkpoint)
    if not name and distributed.is_main():
        print(f"VAE: {printable(place)}, recorded in {printable(checkpoint)}; --vae names another",
              file=sys.stderr, flush=True)
    vae = load_vae(place, device)
    if not name and fingerprint(vae) != recorded["sha256"]:
        raise UserError(f"--vae {recorded['path'] or recorded['name']}: changed since {checkpoint} "
                        "was trained; name the VAE it was trained with")
    config = metadata["config"]
    pixels = downsampling_factor(vae) * config["input_size"]
    channels = vae.config.latent_channels
    if (pixels, channels) != (metadata["image_size"], config["in_channels"]):
        raise UserError(
            f"--vae {name or recorded['name']}: decodes latents of side {config['input_size']} to "
            f"{pixels} pixels with {channels} channels; the model was trained for "
            f"{metadata['image_size']} pixels with {config['in_channels']} channels")
    return vae


def _recorded_place(recorded, checkpoint):
    """The VAE that a checkpoint names: where it was, or where it is if both were moved."""
    place = recorded["path"] or recorded["name"]
    if recorded["path"] and not Path(place).exists():
        found = [path for path in find_moved(place, checkpoint) if path.is_dir()]
        return found[0] if found else place
    return place


def downsampling_factor(vae):
    """Pixels per latent along a side: 8 for Stable Diffusion's VAE."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def fingerprint(vae):
    """SHA-256 of the VAE's config and weights: the same for the same VAE, wherever it is stored."""
    digest = hashlib.sha256()
    keys = ("block_out_channels", "latent_channels", "scaling_factor", "shift_factor")
    config = {key: vae.config.get(key) for key in keys}
    digest.update(json.dumps(config, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# -------------------------------------------------------------------------------- pixel <-> tensor

def to_pixels(mosaics, device="cpu", dtype=torch.float32):
    """uint8 array (N, H, W, 3) -> tensor (N, 3, H, W) in [-1, 1]; the inverse of `from_pixels`."""
    x = torch.from_numpy(np.ascontiguousarray(mosaics)).to(device).permute(0, 3, 1, 2)
    return (x.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def from_pixels(x):
    """Tensor (N, 3, H, W), clipped to [-1, 1] -> uint8 array (N, H, W, 3)."""
    x = (x.float().clamp(-1, 1) + 1) * 127.5
    return x.round().byte().permute(0, 2, 3, 1).cpu().numpy()


# ------------------------------------------------------------------------------- mosaic <-> latent

@torch.no_grad()
def encode_moments(vae, mosaics):
    """Moments of the VAE's posterior, one mosaic at a time to bound the memory.

    :param mosaics: (N, H, W, 3) uint8
    :return: (N, 2C, H/f, W/f) float32 on the CPU: C channels of the mean, C of the standard
        deviation
    """
    moments = []
    for one in mosaics:
        posterior = vae.encode(to_pixels(one[None], vae.device, vae.dtype)).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.std], 1).float().cpu())
    return torch.cat(moments).contiguous()


def draw_latents(vae_config, moments, noise):
    """Latents in the DiT's scale: (mean + std * noise - shift) * scaling factor.

    :param vae_config: mapping with scaling_factor and perhaps shift_factor
    :param moments: (N, 2C, h, w), see `encode_moments`
    :param noise: (N, C, h, w) standard normal; zeros give the mean of the posterior
    """
    mean, std = moments.chunk(2, 1)
    shift = vae_config.get("shift_factor") or 0
    return (mean + std * noise - shift) * vae_config["scaling_factor"]


@torch.no_grad()
def decode(vae, latents, precision="fp32"):
    """Latents in the DiT's scale -> mosaics, one at a time to bound the memory.

    :param latents: (N, C, h, w)
    :param precision: compute dtype; "bf16" is twice as fast on a CPU with bf16 instructions and
        changed the gray levels of the demo's VAE by 0.3 of 255 (rms)
    :return: (N, H, W, 3) uint8
    """
    z = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
    mosaics = []
    with autocast(vae.device, precision):
        for one in z:
            decoded = vae.decode(one[None].to(vae.device, vae.dtype)).sample
            mosaics.append(from_pixels(decoded))
    return np.concatenate(mosaics)


def reconstruct(vae, mosaics):
    """Mosaics after a round trip through the VAE: encoded to the posterior's mean, then decoded.

    :param mosaics: (N, H, W, 3) uint8
    :return: (N, H, W, 3) uint8
    """
    moments = encode_moments(vae, mosaics)
    no_noise = torch.zeros_like(moments[:, :moments.shape[1] // 2])
    return decode(vae, draw_latents(vae.config, moments, no_noise))
