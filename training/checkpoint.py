"""Reading and writing weights and training state, safely: safetensors, and pickles only through weights_only=True.

A MosaicDiT checkpoint holds only what was trained, `ema.NAME` and `raw.NAME`, and in its metadata all that rebuilds the
model and the NIfTI geometry. The training state is the same file with the optimizer's moments. Both carry a checksum.
"""
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.errors import UserError
from utils.files import atomic_file

VERSION, READABLE = 2, (1, 2)  # version 1 had no checksum


# ------------------------------------------------------------------------------------------- our own checkpoints

def save_checkpoint(path, meta, **groups):
    """Writes {"GROUP.NAME": tensor} with `meta` (JSON) and a checksum of both as metadata: atomically, and on the disk."""
    tensors = {f"{group}.{name}": t.detach().cpu().contiguous() for group, named in groups.items() for name, t in named.items()}
    meta = {"format": "mosaicdit-checkpoint", "version": VERSION, **meta}
    meta["sha256"] = _checksum(meta, tensors, tensors.get)  # one entry of metadata alone: safetensors shuffles several
    with atomic_file(path, durable=True) as tmp:
        try:
            save_file(tensors, tmp, metadata={"mosaicdit": json.dumps(meta)})
        except SafetensorError as e:
            raise OSError(None, str(e), str(path)) from None


def _checksum(meta, keys, get):
    """SHA-256 of the metadata but for itself, and of every tensor's name, type, shape and bytes, one in memory at a time."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in meta.items() if k != "sha256"}).encode())
    for key in sorted(keys):
        tensor = get(key)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_metadata(path):
    """A checkpoint's metadata. Raises UserError when the file is missing, cut short, or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as f:
            meta = json.loads((f.metadata() or {})["mosaicdit"], object_hook=lambda pairs: Recorded(path, pairs))
    except (SafetensorError, OSError):
        raise UserError(f"{path}: not a whole safetensors file; use the checkpoint before it") from None
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path}: not a MosaicDiT checkpoint; train.py writes them as checkpoints/STEP.safetensors") from None
    if not isinstance(meta, dict) or meta.get("format") != "mosaicdit-checkpoint" or meta.get("version") not in READABLE:
        raise UserError(f"{path}: not a MosaicDiT checkpoint of version {' or '.join(map(str, READABLE))}, which this code reads")
    if not _sound(meta):
        raise UserError(f"{path}: its metadata is damaged, or not what train.py writes; use another checkpoint")
    return meta


def verify(path):
    """A checkpoint's metadata, after every byte of the file was read and checked: UserError also for one that flipped."""
    meta = read_metadata(path)
    if meta["version"] > 1 or "sha256" in meta:
        try:
            with safe_open(path, "pt") as f:
                found = _checksum(meta, f.keys(), f.get_tensor)
        except (SafetensorError, OSError, ValueError, RuntimeError) as e:
            raise UserError(f"{path}: damaged ({e}); use the checkpoint before it") from None
        if found != meta.get("sha256"):
            raise UserError(f"{path}: damaged, its checksum is another than when it was written; use the checkpoint before it")
    return meta


def load_into(path, **groups):
    """Reads tensors into those of {group: {name: tensor}}, one after the other, so that no second copy is ever in memory.

    :raises UserError: one of them is missing or of another shape; some may have been read by then
    """
    with safe_open(path, "pt") as f:
        keys = set(f.keys())
        for group, named in groups.items():
            for name, tensor in named.items():
                key = f"{group}.{name}"
                if key not in keys or f.get_slice(key).get_shape() != list(tensor.shape):
                    raise UserError(f"{path}: has no {key} of shape {tuple(tensor.shape)}; it is another model's")
                with torch.no_grad():
                    tensor.copy_(f.get_tensor(key))






class Recorded(dict):
    """A part of a checkpoint's metadata: a key that is missing is the user's error, for the file may come from anywhere."""

    def __init__(self, path, pairs):
        super().__init__(pairs)
        self.path = path

    def __missing__(self, key):
        raise UserError(f"{self.path}: its metadata has no {key!r}; use another checkpoint")


LARGEST = dict(input_size=1536, patch_size=64, in_channels=1024, hidden_size=16384, depth=512, num_heads=1024, mlp_ratio=64,
               num_classes=1_000_000, base_grid=1536, gamma_blocks=512)  # of a model that a checkpoint may ask for


def _sound(meta):
    """Whether what is there of a checkpoint's metadata is of the right kind, and its model of a size that can be."""
    kinds = dict(config=dict, header=dict, vae=dict, base=(dict, type(None)), step=int, image_size=int)
    texts = [part[k] for part in (meta.get("vae"), meta.get("base")) if isinstance(part, dict)
             for k in ("name", "path", "sha256") if part.get(k) is not None]
    return (all(isinstance(meta[k], kind) for k, kind in kinds.items() if k in meta) and all(isinstance(t, str) for t in texts)
            and all(type(v) in (int, float) and 0 <= v <= LARGEST[k] and (k in ("mlp_ratio", "gamma_blocks") or type(v) is int and v > 0)
                    for k, v in meta.get("config", {}).items() if k in LARGEST and not (k == "base_grid" and v is None)))


# ---------------------------------------------------------------------------------------------- weights to begin with















# -------------------------------------------------------------------------------------------------- weights -> model



