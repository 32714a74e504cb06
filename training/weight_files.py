"""Files that hold weights: where they lie in a folder, their tensors, and the names of those.

`headers_only` reads names and shapes alone: the tensors are then on PyTorch's meta device.
"""
import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from utils.errors import UserError, shorten
from utils.files import is_safe_name, read_json, sha256_of_file

# of diffusers' files, and of those that transformers and accelerate write
STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
WRAPPERS = ("ema", "model", "state_dict", "model_state_dict")   # keys under which weights lie
# prefixes that torch.compile, DataParallel, Lightning and the like put before a name
PREFIX = re.compile(r"(?:(?:_orig_mod|module|model|net)\.)+")
FIRST_KEYS = 3                                      # named if a file is not what it should be
MAX_SHARDS = 1000
MAX_DEPTH = len(WRAPPERS) + 1                       # of dicts in a file, down to its tensors


# ------------------------------------------------------------------------------ files in a folder

def transformer_folder(folder):
    """The folder itself, or transformer/ in the folder of a pipeline."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def files_of(path):
    """The files that hold the weights: the path itself, or in a folder those that do.

    In a folder, the first of these that is there: for each stem in STEMS, STEM.safetensors, the
    shards that STEM.safetensors.index.json lists, a variant such as STEM.fp16.safetensors; then
    likewise for pickles, STEM.bin and STEM.bin.index.json.

    :return: list of paths
    :raises UserError: the folder holds none of them, or a part of the shards
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    folder = transformer_folder(path)
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            found = _files_of_kind(folder, stem, suffix)
            if found:
                return found
    raise UserError(f"--ckpt {folder}: holds no {STEMS[0]}.safetensors, and no weights of another "
                    "name that is known")


def _files_of_kind(folder, stem, suffix):
    """The weights STEM.SUFFIX of a folder, whole, as shards or as a variant; [] if there are none.
    """
    whole = folder / f"{stem}{suffix}"
    index = folder / f"{stem}{suffix}.index.json"
    if whole.is_file() or index.is_file():
        return [whole] if whole.is_file() else _shards(index)
    variants = sorted(file for file in folder.glob(f"{stem}.*{suffix}")
                      if file.name.count(".") == 2 and file.is_file())
    indices = sorted(folder.glob(f"{stem}{suffix}.index.*.json"))
    if variants or indices:
        return [variants[0]] if variants else _shards(indices[0])
    numbered = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    if numbered:
        raise UserError(f"{numbered[0]}: one of several files, but their index "
                        f"{index.name} is missing; copy it, too")
    return []


def _shards(index):
    """The files that an index lists, each once."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not 1 <= len(names) <= MAX_SHARDS or not all(is_safe_name(name) for name in names):
        raise UserError(f"{index}: not a list of weight files; download it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: lists {missing[0]}, which is not there ({len(missing)} of "
                        f"{len(names)} files are missing); download it again")
    return [index.parent / name for name in names]


def sha256_of_files(files):
    """SHA-256 of a weights file, in hex; of several, that of their names and checksums."""
    if len(files) == 1:
        return sha256_of_file(files[0])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- tensors

def read_safetensors(path, headers_only=False):
    """{name: tensor} of a safetensors file."""
    if not headers_only:
        return load_file(path)
    with safe_open(path, "pt") as f:
        return {key: torch.empty(f.get_slice(key).get_shape(), device="meta") for key in f.keys()}


def write_safetensors(path, tensors, metadata=None):
    """Writes {name: tensor} as a safetensors file: the inverse of `read_safetensors`.

    :param metadata: {text: text}
    :raises OSError: as of any file that cannot be written
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as e:
        raise OSError(None, str(e), str(path)) from None


def without_values(content, depth=MAX_DEPTH):
    """The same dict with every tensor on the meta device, as deep as weights may lie."""
    if isinstance(content, torch.Tensor):
        return torch.empty(content.shape, device="meta")
    if isinstance(content, dict) and depth:
        return {key: without_values(value, depth - 1) for key, value in content.items()}
    return content


# ------------------------------------------------------------------------------------------ names

def official_names(content, path):
    """A state dict under the official names, whatever it was wrapped in.

    :param content: what the file holds: a state dict, or a dict that has one under a key of
        WRAPPERS; names may carry PREFIX
    :raises UserError: two names are the same without their prefixes
    """
    content = content if isinstance(content, dict) else {}
    for _ in WRAPPERS:
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        content = content if inner is None else inner
    tensors = {}
    for key, value in content.items():
        name = PREFIX.sub("", str(key), count=1) if PREFIX.match(str(key)) else str(key)
        name = name.replace("._orig_mod.", ".")
        if name in tensors:
            raise UserError(f"{path}: holds {name} more than once, under several prefixes; save "
                            "the state dict of one model and give that")
        tensors[name] = value
    return tensors


def first_keys(content):
    """The first keys of what a file holds, for an error."""
    keys = [repr(shorten(key, 60)) for key in list(content)[:FIRST_KEYS]]
    return f"its first keys are {', '.join(keys)}" if keys else "it has no keys"
