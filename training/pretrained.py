"""Weights to start from, from any source, and models rebuilt from a checkpoint.

Pickles are opened with weights_only=True alone, so no code in them ever runs.
"""
import argparse
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import models
from training.checkpoint import verify
from utils.errors import UserError, shorten
from utils.files import WEIGHTS_DIR, sha256_of_file

POSITION_TABLE = "pos_embed"
CLASS_TABLE = "y_embedder.embedding_table.weight"


@dataclass
class Weights:
    """All weights of a DiT under the official names, and what they tell about it."""
    tensors: dict       # without the position table, which is computed for the grid at hand
    base_grid: int      # patches along a side at pretraining
    numerics: str       # "official" or "diffusers", see models.DiT


# ------------------------------------------------------------------- the model of a checkpoint

def restore_model(path, weights="ema", base=None):
    """Rebuilds the model of a checkpoint: the weights of its base, then those that were trained.

    :param weights: "ema" or "raw"
    :param base: file to take the base weights from instead of the recorded one; it must have the
        recorded SHA-256
    :return: DiT on the CPU, fp32, eval mode; metadata
    :raises UserError: checkpoint or base missing, damaged, or not belonging together
    """
    metadata = verify(path)
    with safe_open(path, "pt") as f:
        trained = {key.removeprefix(f"{weights}."): f.get_tensor(key)
                   for key in f.keys() if key.startswith(f"{weights}.")}
    if not trained or not isinstance(metadata.get("config"), dict) or "base" not in metadata:
        raise UserError(f"{path}: lacks its {weights} weights or its config; "
                        "use another checkpoint")
    tensors = {}
    if metadata["base"]:
        file = _find_base(metadata["base"], path, base)
        tensors = fit_base(load_weights(file), metadata["config"])
    elif base:
        raise UserError(f"--base {base}: {path} holds the whole model; leave --base out")
    tensors.update(trained)
    return assemble(metadata["config"], tensors, path), metadata


def _find_base(recorded, checkpoint, override=None):
    """The base weights of a checkpoint: at the recorded path, in weights/, or in this folder."""
    name = recorded["name"]
    places = [Path(recorded["path"]), WEIGHTS_DIR / name, Path(name)]
    if override:
        places = [Path(override)]
    found = [path for path in places if path.exists()]
    if not found:
        raise UserError(f"{override or checkpoint}: needs its base weights {name}, not found at "
                        f"{', '.join(map(str, places))}; give their path with --base FILE")
    for path in found:
        if sha256_of_weights(path) == recorded["sha256"]:
            return path
    raise UserError(f"{found[0]}: not the base weights of {checkpoint} (the SHA-256 differs); "
                    "give their path with --base FILE")


def sha256_of_weights(path):
    """SHA-256 of a weights file, in hex."""
    return sha256_of_file(_weights_file(path))


# ------------------------------------------------------------------------------- reading weights

def load_weights(path):
    """Reads all weights of a DiT.

    :param path: official .pt, training checkpoint of the original repository (its EMA), diffusers
        DiTTransformer2DModel folder, safetensors, or a checkpoint of train.py; also looked for in
        weights/
    :return: Weights
    :raises UserError: missing, unsafe, damaged, or not a DiT
    """
    path = locate(path)
    if path.is_dir():
        return _load_diffusers_folder(path)
    if not path.is_file():
        hint = ""
        if "DiT-XL-2" in path.name:
            hint = "; `python download.py dit-xl-2-512` fetches the public one"
        raise UserError(f"--ckpt {path}: no such file{hint}")
    if path.suffix == ".safetensors":
        try:
            if _is_our_checkpoint(path):
                return _weights_of_checkpoint(path)
            content = load_file(path)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{path}: not a complete safetensors file ({e}); "
                            "download or copy it again") from None
    else:
        content = _load_pickle(path)
    return _weights_of_state_dict(content, path)


def locate(path):
    """The path, or if nothing is there, the file of that name in weights/ (from download.py)."""
    path = Path(path)
    in_weights = WEIGHTS_DIR / path
    return in_weights if not path.exists() and in_weights.exists() else path


def _is_our_checkpoint(path):
    with safe_open(path, "pt") as f:
        return "mosaicdit" in (f.metadata() or {})


def _weights_of_checkpoint(path):
    model, metadata = restore_model(path)
    tensors = {key: value for key, value in model.state_dict().items() if key != POSITION_TABLE}
    config = metadata["config"]
    return Weights(tensors, config["base_grid"], config["numerics"])


def _weights_of_state_dict(content, path):
    """Weights from a state dict, or from a training checkpoint of the original repository."""
    if not isinstance(content, dict):
        content = {}
    state_dict = content.get("ema", content.get("model"))
    if isinstance(state_dict, dict):
        content = state_dict
    tensors = {str(key).removeprefix("module."): value for key, value in content.items()}
    table = tensors.pop(POSITION_TABLE, None)
    if (not all(isinstance(value, torch.Tensor) for value in tensors.values())
            or not isinstance(table, torch.Tensor) or table.dim() != 3):
        raise UserError(f"{path}: not the weights of a DiT (it has no {POSITION_TABLE}); "
                        "give DiT-XL-2-512x512.pt or the like")
    tokens = table.shape[1]
    return Weights(tensors, round(tokens ** 0.5), "official")


def _load_pickle(path):
    """torch.load that never runs code.

    argparse.Namespace, which the original repository saves, passes as data.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(e))
        content = culprit[1] if culprit else "more than weights"
        raise UserError(f"{path}: refused, its pickle holds {content}, which could run code; if "
                        "you trust it, save its state dict as safetensors and give that") from None
    except Exception as e:  # a damaged file can make the unpickler raise anything
        raise UserError(f"{path}: cannot be read as PyTorch weights ({shorten(e, 120)}); "
                        "download or copy it again") from None


# ------------------------------------------------------------------------------ diffusers folders

# official name of a module of DiTTransformer2DModel
_DIFFUSERS_MODULES = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
# the same within a block
_DIFFUSERS_BLOCK_MODULES = {
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}
# each block has its copy of these, all equal in a converted DiT
_DIFFUSERS_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}


def _load_diffusers_folder(path):
    try:
        return _weights_of_diffusers(path)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"--ckpt {path}: a damaged DiTTransformer2DModel folder "
                        f"({type(e).__name__}: {e}); download it again") from None


def _weights_of_diffusers(folder):
    """Weights of a DiTTransformer2DModel folder, or of a pipeline folder with transformer/."""
    folder = _transformer_folder(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    if config.get("_class_name") != "DiTTransformer2DModel":
        raise UserError(f"--ckpt {folder}: no DiTTransformer2DModel (config.json); "
                        "give a .pt, a .safetensors, or such a folder")
    file = _weights_file(folder)
    theirs = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    tensors = _rename_diffusers_tensors(theirs, file)
    return Weights(tensors, config["sample_size"] // config["patch_size"], "diffusers")


def _rename_diffusers_tensors(theirs, file):
    """The tensors of a DiTTransformer2DModel under the official names."""
    tensors = {}
    for key, tensor in theirs.items():
        module, kind = key.rsplit(".", 1)  # kind: weight or bias
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if module in _DIFFUSERS_MODULES:
            tensors[f"{_DIFFUSERS_MODULES[module]}.{kind}"] = tensor
        if not block:
            continue
        i, module = block.groups()
        if module.startswith("norm1.emb."):
            name = f"{_DIFFUSERS_EMBEDDERS[module]}.{kind}"
            if not torch.equal(tensors.setdefault(name, tensor), tensor):
                raise UserError(f"{file}: its blocks have embedders of their own, unlike a DiT; "
                                "it was trained further by other code")
        elif module.startswith("attn1.to_q"):
            qkv = [theirs[f"transformer_blocks.{i}.attn1.to_{n}.{kind}"] for n in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
        elif module in _DIFFUSERS_BLOCK_MODULES:
            tensors[f"blocks.{i}.{_DIFFUSERS_BLOCK_MODULES[module]}.{kind}"] = tensor
    return tensors


def _transformer_folder(folder):
    """The folder itself, or transformer/ in the folder of a pipeline."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def _weights_file(path):
    """The file that holds the weights: the path itself, or in a folder its .safetensors or .bin."""
    path = Path(path)
    if not path.is_dir():
        return path
    folder = _transformer_folder(path)
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"--ckpt {folder}: holds no diffusion_pytorch_model.safetensors")


# ------------------------------------------------------------------------------ weights -> model

def fit_base(weights, config):
    """Tensors of base weights for a model of this config: class table resized, gammas added.

    With another number of classes every class starts as the base's null class, the one that
    stands for any image.

    :param config: constructor arguments of models.DiT
    """
    tensors = dict(weights.tensors)
    table = tensors.get(CLASS_TABLE)
    rows = config["num_classes"] + 1
    if table is not None and len(table) != rows:
        tensors[CLASS_TABLE] = table[-1:].repeat(rows, 1)
    for i in range(config["gamma_blocks"]):
        for name in (f"blocks.{i}.gamma1", f"blocks.{i}.gamma2"):
            tensors.setdefault(name, torch.ones(config["hidden_size"]))
    return tensors


def assemble(config, tensors, path):
    """A DiT of this config with these tensors, without holding the weights twice.

    :param config: constructor arguments of models.DiT
    :param tensors: under the official names, without the position table, which is computed for
        the grid
    :param path: where they come from, for error messages
    :return: DiT on the CPU, fp32, eval mode
    :raises UserError: names the first tensor that is missing, superfluous, or of another shape
    """
    try:
        with torch.device("meta"):
            model = models.DiT(**config)
    except (TypeError, ValueError, KeyError, AssertionError) as e:
        raise UserError(f"{path}: its config is not that of a DiT ({type(e).__name__}: {e})"
                        ) from None
    expected = {key: value.shape for key, value in model.state_dict().items()
                if key != POSITION_TABLE}
    _check_names(expected, tensors, path)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: weights of another model: {name} is "
                            f"{tuple(tensors[name].shape)}, {tuple(shape)} is needed; "
                            "see --model, --num-classes and --vae")
    base_grid = config["base_grid"] or model.grid
    table = models.pos_embed(config["hidden_size"], model.grid, base_grid)[None]
    state_dict = {key: value.float() for key, value in tensors.items()}
    state_dict[POSITION_TABLE] = table
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def _check_names(expected, tensors, path):
    missing = sorted(expected.keys() - tensors.keys())
    superfluous = sorted(tensors.keys() - expected.keys())
    for problem, names in (("lacks", missing), ("also has", superfluous)):
        if names:
            raise UserError(f"{path}: weights of another model: it {problem} {names[0]} "
                            f"({len(names)} in all); see --model and --gamma-blocks")
