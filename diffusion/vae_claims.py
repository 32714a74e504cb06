"""What the folder of a VAE claims, checked before anything of that size is allocated.

A config of a few bytes can ask for a VAE of any size. Here the VAE is built without memory for its
weights (PyTorch's meta device), and counted against what the headers of its files say.
"""
import math
from pathlib import Path

import torch
from safetensors import safe_open

from utils.errors import UserError, shorten
from utils.files import read_json
from utils.shared_folders import open_regular

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model"
MAX_BLOCKS = 8
MAX_VALUES = {     # of whole numbers in a config; those of Stable Diffusion's VAE are 4, 2, 32
    "latent_channels": 128, "layers_per_block": 16, "norm_num_groups": 1024,
    "in_channels": 3, "out_channels": 3}
MAX_BLOCK_CHANNELS = 4096
MAX_FACTOR = 1e6   # of the latents' scale and shift


def check_folder(folder):
    """Checks that a config asks for no more than its weights files hold.

    :param folder: with config.json and safetensors weights in diffusers' format
    :raises UserError: a value out of range, or a VAE larger than its files
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    config = read_json(path)
    bad_key = _bad_key(config) if isinstance(config, dict) else "content"
    if bad_key:
        raise UserError(f"{path}: not the config of an AutoencoderKL (bad `{bad_key}`)")
    held = _count_recorded_values(folder)
    needed = _count_values(config, path)
    if needed > held:
        raise UserError(f"{path}: asks for {needed:,} weights, its safetensors files hold {held:,}")


def _bad_key(config):
    """The first key of a config whose value no VAE of an image can have; None if there is none."""
    for key, largest in MAX_VALUES.items():
        value = config.get(key, 1)
        if type(value) is not int or not 1 <= value <= largest:
            return key
    channels = config.get("block_out_channels", [1])
    if not isinstance(channels, list) or not 1 <= len(channels) <= MAX_BLOCKS or not all(
            type(n) is int and 1 <= n <= MAX_BLOCK_CHANNELS for n in channels):
        return "block_out_channels"
    for key in ("down_block_types", "up_block_types"):
        if not isinstance(config.get(key, []), list) or len(config.get(key, [])) > MAX_BLOCKS:
            return key
    for key in ("scaling_factor", "shift_factor"):
        value = config.get(key)
        if value is not None and not (
                type(value) in (int, float) and -MAX_FACTOR < value < MAX_FACTOR):
            return key
    return "scaling_factor" if config.get("scaling_factor") == 0 else None


def _count_values(config, path):
    """Number of weights of a VAE of this config, built without memory for them."""
    import diffusers  # here, as training from cached latents does not need it
    diffusers.utils.logging.set_verbosity_error()  # its advice on optional packages
    try:
        with torch.device("meta"):
            vae = diffusers.AutoencoderKL.from_config(config)
    except Exception as e:  # a damaged config can make diffusers raise anything
        raise UserError(f"{path}: not the config of an AutoencoderKL ({shorten(e)})") from None
    return sum(tensor.numel() for tensor in vae.state_dict().values())


def _count_recorded_values(folder):
    """Number of weights in a folder's safetensors files, from their headers."""
    count = 0
    for file in sorted(folder.glob(f"{WEIGHTS_NAME}*.safetensors")):
        open_regular(file).close()
        with safe_open(file, "pt") as f:
            count += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())
    return count
