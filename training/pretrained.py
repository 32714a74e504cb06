"""Weights to start from, from any source, and models rebuilt from a checkpoint.

Pickles are opened with weights_only=True alone, so no code in them ever runs.
"""
import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

import models
from diffusion import foreground
from training import base_weights, diffusers_names, lora, weight_files
from training.checkpoint import MAX_CONFIG, read_metadata, verify
from utils import distributed, pickles
from utils.errors import UserError, shorten
from utils.escaping import printable
from utils.files import find_moved, read_json, weights_path


@dataclass
class Weights:
    """All weights of a DiT under the official names, and what they tell about it."""
    tensors: dict       # without the position table, which is computed for the grid at hand
    base_grid: int      # patches along a side at pretraining
    numerics: str       # "official" or "diffusers", see models.DiT
    null_row: bool = True   # False if nothing tells whether the class table ends in a null class


# ------------------------------------------------------------------- the model of a checkpoint

def restore_model(path, weights="ema", base=None):
    """Rebuilds the model of a checkpoint: the weights of its base, then those that were trained.

    :param weights: "ema" or "raw"
    :param base: file to take the base weights from instead of the recorded one; it must have the
        recorded SHA-256
    :return: DiT on the CPU, fp32, eval mode, which computes the tokens it was trained on; metadata
    :raises UserError: checkpoint or base missing, damaged, or not belonging together
    """
    metadata = verify(path)
    trained = read_trained(path, weights)
    if not trained or not isinstance(metadata.get("config"), dict) or "base" not in metadata:
        raise UserError(f"{path}: lacks its {weights} weights or its config; "
                        "use another checkpoint")
    tensors = {}
    if metadata["base"]:
        file = _find_base(metadata["base"], path, base)
        tensors = base_weights.fit_base(load_weights(file), metadata["config"])
    elif base:
        raise UserError(f"--base {base}: {path} holds the whole model; leave --base out")
    tensors = _merge_trained(tensors, trained, metadata, path)
    model = base_weights.assemble(metadata["config"], tensors, path)
    kept = read_foreground(path, metadata["config"])
    return model.keep_tokens(kept and kept.kept), metadata


def read_trained(path, weights="ema"):
    """The trained parameters of a checkpoint, {name: tensor}.

    :param weights: "ema" or "raw"
    """
    prefix = f"{weights}."
    with safe_open(path, "pt") as f:
        return {key.removeprefix(prefix): f.get_tensor(key)
                for key in f.keys() if key.startswith(prefix)}


def _merge_trained(tensors, trained, metadata, path):
    """Base weights with those that were trained in their places, and LoRA's products added."""
    tensors = tensors | trained
    if "lora" not in metadata:
        return tensors
    return lora.merge(tensors, lora.from_metadata(metadata["lora"], path), path)


def read_foreground(path, config):
    """The Foreground of a checkpoint's model; None if it computes all tokens.

    :param config: constructor arguments of its model
    :raises UserError: it is not that model's
    """
    prefix = "foreground."
    with safe_open(path, "pt") as f:
        tensors = {key.removeprefix(prefix): f.get_tensor(key)
                   for key in f.keys() if key.startswith(prefix)}
    return foreground.check(tensors, config, path) if tensors else None


def _find_base(recorded, checkpoint, override=None, compare=True):
    """The base weights of a checkpoint: at the recorded path, in weights/, or in this folder; or
    where they are if they were moved along with the checkpoint.

    :param compare: False takes the first file that exists, without reading it
    """
    name = recorded["name"]
    places = [Path(recorded["path"]), weights_path(name), Path(name)]
    if override:
        places = [Path(override)]
    found = [path for path in places if _may_hold_weights(path)]
    if not override:
        found += filter(_may_hold_weights, find_moved(recorded["path"], checkpoint))
    if not found:
        raise UserError(f"{override or checkpoint}: needs its base weights {name}, not found at "
                        f"{', '.join(map(str, places))}; give their path with --base FILE")
    if not compare:
        return found[0]
    for path in dict.fromkeys(path.resolve() for path in found):
        if sha256_of_weights(path) == recorded["sha256"]:
            if not override and distributed.is_main():
                print(f"base weights: {printable(path)}, recorded in {printable(checkpoint)}; "
                      "--base names others", file=sys.stderr, flush=True)
            return path
    raise UserError(f"{found[0]}: not the base weights of {checkpoint} (the SHA-256 differs); "
                    "give their path with --base FILE")


def _may_hold_weights(path):
    """Whether a recorded path is a file or folder; a device, such as /dev/zero, never ends."""
    return path.is_file() or path.is_dir()


def sha256_of_weights(path):
    """SHA-256 of a weights file, in hex; of a folder of shards, that of all its shards."""
    return weight_files.sha256_of_files(weight_files.files_of(path))


# ------------------------------------------------------------------------------- reading weights

def load_weights(path, base=None, headers_only=False):
    """Reads all weights of a DiT.

    :param path: official .pt, training checkpoint of the original repository (its EMA) or of
        Lightning, diffusers DiTTransformer2DModel folder, folder of a sharded state dict,
        safetensors, or a checkpoint of train.py; also looked for in weights/
    :param base: base weights of a checkpoint of train.py, instead of those that it names
    :param headers_only: read names and shapes only, in seconds; the tensors have no values
    :return: Weights
    :raises UserError: missing, unsafe, damaged, or not a DiT
    """
    path = locate(path)
    is_ours = path.suffix == ".safetensors" and path.is_file() and _is_our_checkpoint(path)
    if base and not is_ours:
        raise UserError(f"--base {base}: only for a --ckpt that train.py wrote, which {path} is "
                        "not; leave --base out")
    if path.is_dir():
        return _load_diffusers_folder(path, headers_only)
    if not path.is_file():
        hint = ""
        if "DiT-XL-2" in path.name:
            hint = "; `python download.py dit-xl-2-512` fetches the public one"
        raise UserError(f"--ckpt {path}: no such file{hint}")
    if path.suffix == ".safetensors":
        if is_ours:
            return _weights_of_checkpoint(path, base, headers_only)
        try:
            content = weight_files.read_safetensors(path, headers_only)
        except (SafetensorError, OSError) as e:
            raise _incomplete(path, e) from None
    else:
        content = _load_pickle(path, headers_only)
    return _weights_of_state_dict(content, path)


def locate(path):
    """The path, or if nothing is there, the file of that name in weights/ (from download.py)."""
    path = Path(path)
    in_weights = weights_path(path)
    return in_weights if not path.exists() and in_weights.exists() else path


def _incomplete(path, error):
    return UserError(f"{path}: not a complete safetensors file ({error}); "
                     "download or copy it again")


def _is_our_checkpoint(path):
    try:
        with safe_open(path, "pt") as f:
            return "mosaicdit" in (f.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise _incomplete(path, e) from None


def _weights_of_checkpoint(path, base, headers_only):
    if headers_only:
        return _headers_of_checkpoint(path, base)
    model, metadata = restore_model(path, base=base)
    tensors = {key: value for key, value in model.state_dict().items()
               if key != base_weights.POSITION_TABLE}
    config = metadata["config"]
    return Weights(tensors, config["base_grid"], config["numerics"])


def _headers_of_checkpoint(path, base):
    metadata = read_metadata(path)
    config, tensors = metadata["config"], {}
    if metadata["base"]:
        file = _find_base(metadata["base"], path, base, compare=False)
        tensors = base_weights.fit_base(load_weights(file, headers_only=True), config)
    trained = {key.removeprefix("ema."): value
               for key, value in weight_files.read_safetensors(path, headers_only=True).items()
               if key.startswith("ema.")}
    tensors = _merge_trained(tensors, trained, metadata, path)
    return Weights(tensors, config["base_grid"], config["numerics"])


def _weights_of_state_dict(content, path):
    """Weights from a state dict, or from a checkpoint that holds one."""
    found = content if isinstance(content, dict) else {}
    tensors = weight_files.official_names(found, path)
    table = tensors.pop(base_weights.POSITION_TABLE, None)
    if (not all(isinstance(value, torch.Tensor) for value in tensors.values())
            or not isinstance(table, torch.Tensor) or table.dim() != 3 or len(table) != 1):
        keys = weight_files.first_keys(tensors or found)
        raise UserError(f"{path}: not the weights of a DiT (it has no "
                        f"{base_weights.POSITION_TABLE}; {keys}); give "
                        "DiT-XL-2-512x512.pt or the like")
    # a table that was made for a larger grid, such as one of export.py, tells the pretrained one
    base_grid = None if table.is_meta else models.base_grid_of(table[0])
    return Weights(tensors, base_grid or round(table.shape[1] ** 0.5), "official", null_row=False)


def _load_pickle(path, headers_only=False):
    """What a .pt file holds; argparse.Namespace, which the original repository saves, is data."""
    content = pickles.load(path, [argparse.Namespace])
    return weight_files.without_values(content) if headers_only else content


# ------------------------------------------------------------------------------ diffusers folders

def _load_diffusers_folder(path, headers_only):
    try:
        return _weights_of_diffusers(path, headers_only)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"--ckpt {path}: a damaged DiTTransformer2DModel folder "
                        f"({type(e).__name__}: {e}); download it again") from None


def _weights_of_diffusers(folder, headers_only):
    """Weights of a DiTTransformer2DModel folder, or of a pipeline folder with transformer/.

    A folder without config.json, as accelerate writes, holds a state dict of official names.
    """
    folder = weight_files.transformer_folder(folder)
    path = folder / "config.json"
    is_known = path.is_file()
    config = read_json(path) if is_known else {}
    if is_known and (not isinstance(config, dict)
                     or config.get("_class_name") != "DiTTransformer2DModel"):
        raise UserError(f"--ckpt {folder}: no DiTTransformer2DModel (config.json); "
                        "give a .pt, a .safetensors, or such a folder")
    files = weight_files.files_of(folder)
    theirs = _read_files(files, headers_only)
    if not is_known:
        return _weights_of_state_dict(theirs, folder)
    tensors = diffusers_names.rename_tensors(theirs, files[0])
    sizes = [config[key] for key in ("sample_size", "patch_size")]
    if not all(type(size) is int and 1 <= size <= MAX_CONFIG["input_size"] for size in sizes):
        raise UserError(f"{path}: its sample_size and patch_size, {shorten(sizes, 60)}, are not "
                        "those of a DiT; download it again")
    return Weights(tensors, sizes[0] // sizes[1], "diffusers")


def _read_files(files, headers_only):
    """The tensors of several files together.

    :raises UserError: one holds something else, such as a pickle of more than weights
    """
    tensors = {}
    for file in files:
        found = (weight_files.read_safetensors(file, headers_only)
                 if file.suffix == ".safetensors" else _load_pickle(file, headers_only))
        if not isinstance(found, dict):
            raise UserError(f"{file}: holds no state dict; download it again")
        tensors |= found
    return tensors
