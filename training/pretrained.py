"""."""
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


def restore_model(path, weights="ema", base=None):
    """Rebuilds the model of a checkpoint: its base's weights, and over them what was trained.

    :param weights: "ema" or "raw"
    :param base: file to take the base from instead of the recorded one; its SHA-256 must be the recorded one
    :return: DiT on the CPU, float32, eval mode; metadata
    :raises UserError: checkpoint or base missing, damaged, or not belonging to each other
    """
    meta = verify(path)
    with safe_open(path, "pt") as f:
        trained = {k.removeprefix(f"{weights}."): f.get_tensor(k) for k in f.keys() if k.startswith(f"{weights}.")}
    if not trained or not isinstance(meta.get("config"), dict) or "base" not in meta:
        raise UserError(f"{path}: lacks its {weights} weights or its config; use another checkpoint")
    tensors = {}
    if meta["base"]:
        file = find_base(meta["base"], path, base)
        tensors = fit_base(load_weights(file), meta["config"], file)
    elif base:
        raise UserError(f"--base {base}: {path} holds the whole model; leave --base out")
    tensors.update(trained)
    return assemble(meta["config"], tensors, path), meta


def find_base(recorded, checkpoint, override=None):
    """The base weights that a checkpoint was trained on; found where they were, in weights/, or here."""
    name = recorded["name"]
    places = [Path(override)] if override else [Path(recorded["path"]), WEIGHTS_DIR / name, Path(name)]
    found = [p for p in places if p.exists()]
    if not found:
        raise UserError(f"{override or checkpoint}: needs its base weights {name}, not found at "
                        f"{', '.join(map(str, places))}; say where they are with --base FILE")
    right = next((p for p in found if sha256_of_weights(p) == recorded["sha256"]), None)
    if right is None:
        raise UserError(f"{found[0]}: not the base that {checkpoint} was trained on (its SHA-256 differs); "
                        "say where that is with --base FILE")
    return right


@dataclass
class Weights:
    """A whole DiT's weights under the official names, and what can be told from them."""
    tensors: dict       # without the position table
    base_grid: int      # patches along a side at pretraining
    numerics: str       # "official" or "diffusers"


def load_weights(path):
    """Reads a whole DiT: official .pt, original-repo training checkpoint (its EMA), diffusers folder, safetensors, or ours.

    :raises UserError: missing, unsafe, damaged, or not a DiT
    """
    path = locate(path)
    if path.is_dir():
        try:
            return _from_diffusers(path)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
            raise UserError(f"--ckpt {path}: a damaged DiTTransformer2DModel folder ({type(e).__name__}: {e}); fetch it anew") from None
    if not path.is_file():
        hint = "; `python download.py dit-xl-2-512` fetches the public one" if "DiT-XL-2" in path.name else ""
        raise UserError(f"--ckpt {path}: no such file{hint}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as f:
                ours = "mosaicdit" in (f.metadata() or {})
            if ours:
                model, meta = restore_model(path)
                tensors = {k: v for k, v in model.state_dict().items() if k != "pos_embed"}
                return Weights(tensors, meta["config"]["base_grid"], meta["config"]["numerics"])
            tensors = load_file(path)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{path}: not a whole safetensors file ({e}); fetch or copy it anew") from None
    else:
        tensors = _load_pickle(path)
    if isinstance(tensors, dict) and isinstance(tensors.get("ema", tensors.get("model")), dict):
        tensors = tensors.get("ema", tensors.get("model"))  # a training checkpoint of the original repository
    tensors = {str(k).removeprefix("module."): v for k, v in tensors.items()} if isinstance(tensors, dict) else {}
    table = tensors.pop("pos_embed", None)
    if not all(isinstance(v, torch.Tensor) for v in tensors.values()) or not isinstance(table, torch.Tensor) or table.dim() != 3:
        raise UserError(f"{path}: not the weights of a DiT (it has no pos_embed); give DiT-XL-2-512x512.pt or the like")
    tokens = table.shape[1]
    return Weights(tensors, round(tokens ** 0.5), "official")


def locate(path):
    """The path, or where download.py put a file of that name: in weights/."""
    path = Path(path)
    return path if path.exists() or not (WEIGHTS_DIR / path).exists() else WEIGHTS_DIR / path


def _load_pickle(path):
    """torch.load that never runs code; argparse.Namespace, which the original repository saves, is let through as data."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format of before torch 1.6 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(e))
        raise UserError(f"{path}: refused, its pickle holds {culprit[1] if culprit else 'more than weights'}, which could run "
                        "code; where you trust it, save its state dict as safetensors and give that") from None
    except Exception as e:  # a damaged file can end the unpickler in any way
        raise UserError(f"{path}: cannot be read as PyTorch weights ({shorten(e, 120)}); fetch or copy it anew") from None


def _from_diffusers(folder):
    """Reads a DiTTransformer2DModel folder, or a pipeline folder that holds one in transformer/."""
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    if config.get("_class_name") != "DiTTransformer2DModel":
        raise UserError(f"--ckpt {folder}: no DiTTransformer2DModel (config.json); give a .pt, .safetensors, or such a folder")
    file = weights_file(folder)
    theirs = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    names = {"pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1", "proj_out_2": "final_layer.linear"}
    within = {"attn1.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2", "norm1.linear": "adaLN_modulation.1"}
    embedders = {"timestep_embedder.linear_1": "t_embedder.mlp.0", "timestep_embedder.linear_2": "t_embedder.mlp.2",
                 "class_embedder.embedding_table": "y_embedder.embedding_table"}
    tensors = {}
    for key, tensor in theirs.items():
        module, kind = key.rsplit(".", 1)
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if module in names:
            tensors[f"{names[module]}.{kind}"] = tensor
        elif block and block[2].startswith("norm1.emb."):  # one copy a block, all the same in a converted DiT
            name = f"{embedders[block[2].removeprefix('norm1.emb.')]}.{kind}"
            if not torch.equal(tensors.setdefault(name, tensor), tensor):
                raise UserError(f"{file}: its blocks have embedders of their own, which a DiT has not; "
                                "it was trained further by other code")
        elif block and block[2].startswith("attn1.to_q"):
            i = block[1]
            parts = [theirs[f"transformer_blocks.{i}.attn1.to_{n}.{kind}"] for n in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
        elif block and block[2] in within:
            tensors[f"blocks.{block[1]}.{within[block[2]]}.{kind}"] = tensor
    return Weights(tensors, config["sample_size"] // config["patch_size"], "diffusers")


def weights_file(path):
    """The file that holds the weights: the path itself, or in a diffusers folder its .safetensors or .bin."""
    path = Path(path)
    if not path.is_dir():
        return path
    path = path / "transformer" if (path / "transformer").is_dir() else path
    found = [p for p in (path / "diffusion_pytorch_model.safetensors", path / "diffusion_pytorch_model.bin") if p.is_file()]
    if not found:
        raise UserError(f"--ckpt {path}: holds no diffusion_pytorch_model.safetensors")
    return found[0]


def sha256_of_weights(path):
    """SHA-256 of a weights file, in hex."""
    return sha256_of_file(weights_file(path))


def fit_base(weights, config, path):
    """The tensors of a base for a model of this config: class table resized, scale vectors added.

    With another number of classes every class begins as the base's null class, the one that stands for any image.
    """
    tensors = dict(weights.tensors)
    table = tensors.get("y_embedder.embedding_table.weight")
    if table is not None and len(table) != config["num_classes"] + 1:
        tensors["y_embedder.embedding_table.weight"] = table[-1:].repeat(config["num_classes"] + 1, 1)
    for i in range(config["gamma_blocks"]):
        for name in (f"blocks.{i}.gamma1", f"blocks.{i}.gamma2"):
            tensors.setdefault(name, torch.ones(config["hidden_size"]))
    return tensors


def assemble(config, tensors, path):
    """A DiT of this config with these tensors, without holding the weights twice.

    :param tensors: under the official names, without the position table, which is made anew for the grid
    :raises UserError: naming the first tensor that is missing, superfluous, or of another shape
    """
    try:
        with torch.device("meta"):
            model = models.DiT(**config)
    except (TypeError, ValueError, KeyError, AssertionError) as e:
        raise UserError(f"{path}: its config is no DiT's ({type(e).__name__}: {e})") from None
    expected = {k: v.shape for k, v in model.state_dict().items() if k != "pos_embed"}
    for problem, names in (("lacks", expected.keys() - tensors.keys()), ("has also", tensors.keys() - expected.keys())):
        if names:
            raise UserError(f"{path}: weights of another model: {problem} {sorted(names)[0]} ({len(names)} in all); "
                            "see --model and --gamma-blocks")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: weights of another model: {name} is {tuple(tensors[name].shape)}, "
                            f"{tuple(shape)} is needed; see --model, --num-classes and --vae")
    table = models.pos_embed(config["hidden_size"], model.grid, config["base_grid"] or model.grid)[None]
    model.load_state_dict({**{k: v.float() for k, v in tensors.items()}, "pos_embed": table}, assign=True)
    return model.eval()
