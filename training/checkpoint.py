"""The file format of checkpoints and of states to resume from, read safely.

A checkpoint is a safetensors file of the trained parameters, `ema.NAME` and `raw.NAME`. Its
metadata (JSON) rebuilds the rest of the model and the NIfTI geometry. A state also holds the
moments of the optimizer. Both carry a checksum.
"""
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mri.covariates import MAX_COLUMNS, MAX_LEVELS
from training.weight_files import write_safetensors
from utils.errors import UserError
from utils.files import atomic_file
from utils.version import __version__

FORMAT = "mosaicdit-checkpoint"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # version 1 had no checksum

# the kinds of metadata values, where they are present
METADATA_TYPES = {"config": dict, "header": dict, "vae": dict, "base": (dict, type(None)),
                  "step": int, "image_size": int, "class_counts": list, "average": dict,
                  "loss_scaling": dict, "identity": dict, "lora": dict, "log_sums": list,
                  "log_count": int, "skipped": int, "covariates": dict}
MAX_STEP = 10 ** 12
# the largest model that a checkpoint may ask for
MAX_CONFIG = {"input_size": 1536, "patch_size": 64, "in_channels": 1024, "hidden_size": 16384,
              "depth": 512, "num_heads": 1024, "mlp_ratio": 64, "num_classes": 1_000_000,
              "base_grid": 1536, "gamma_blocks": 512}


# ---------------------------------------------------------------------------------------- writing

def save_checkpoint(path, metadata, **groups):
    """Writes {"GROUP.NAME": tensor} with metadata and a checksum: atomically, flushed to disk.

    :param metadata: JSON-serializable dict
    :param groups: group = {name: tensor}, on any device
    """
    tensors = {f"{group}.{name}": tensor.detach().cpu().contiguous()
               for group, named in groups.items() for name, tensor in named.items()}
    metadata = {"format": FORMAT, "version": FORMAT_VERSION, "mosaicdit_version": __version__,
                **metadata}
    metadata["sha256"] = _checksum(metadata, tensors, tensors.get)
    with atomic_file(path, durable=True) as temporary:
        # one entry of metadata only: safetensors writes several in random order
        write_safetensors(temporary, tensors, {"mosaicdit": json.dumps(metadata)})


def _checksum(metadata, keys, get_tensor):
    """SHA-256 of the metadata without the checksum, and of every tensor's name, dtype, shape and
    bytes, with one tensor in memory at a time."""
    content = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content).encode())
    for key in sorted(keys):
        tensor = get_tensor(key)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- reading

class RecordedMetadata(dict):
    """Metadata of a file that may come from anywhere: a missing key is the user's error."""

    def __init__(self, path, pairs):
        super().__init__(pairs)
        self.path = path

    def __missing__(self, key):
        raise UserError(f"{self.path}: its metadata has no {key!r}; use another checkpoint")


def read_metadata(path):
    """A checkpoint's metadata, checked; the tensors are not read.

    :raises UserError: the file is missing, cut short, not a MosaicDiT checkpoint, or its metadata
        are not what train.py writes
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as f:
            metadata = json.loads((f.metadata() or {})["mosaicdit"],
                                  object_hook=lambda pairs: RecordedMetadata(path, pairs))
    except (SafetensorError, OSError):
        raise UserError(f"{path}: not a complete safetensors file; use the checkpoint before it"
                        ) from None
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path}: not a MosaicDiT checkpoint; train.py writes them as "
                        "checkpoints/STEP.safetensors") from None
    if (not isinstance(metadata, dict) or metadata.get("format") != FORMAT
            or metadata.get("version") not in READABLE_VERSIONS):
        versions = " or ".join(map(str, READABLE_VERSIONS))
        raise UserError(f"{path}: not a MosaicDiT checkpoint of version {versions}")
    wrong = _find_wrong_key(metadata)
    if wrong:
        raise UserError(f"{path}: its metadata is damaged ({wrong}), or not written by train.py; "
                        "use another checkpoint")
    return metadata


def _find_wrong_key(metadata):
    """The first key of a checkpoint's metadata whose value cannot be right, or None."""
    for key, kind in METADATA_TYPES.items():
        if key in metadata and not isinstance(metadata[key], kind):
            return key
    for key in ("step", "log_count", "skipped"):
        if not 0 <= metadata.get(key, 0) <= MAX_STEP or isinstance(metadata.get(key), bool):
            return key
    if not all(isinstance(value, int | float) for value in metadata.get("log_sums", ())):
        return "log_sums"
    for part in ("average", "loss_scaling"):
        for key, value in metadata.get(part, {}).items():
            if not isinstance(value, int | float):  # True is an int
                return f"{part}.{key}"
    for part in ("vae", "base"):
        values = metadata.get(part) or {}
        for key in ("name", "path", "sha256"):
            if values.get(key) is not None and not isinstance(values[key], str):
                return f"{part}.{key}"
    for key, value in metadata.get("config", {}).items():
        if key in MAX_CONFIG and not _is_config_value(key, value):
            return f"config.{key}"
    levels = metadata.get("config", {}).get("covariates", [])
    if not _is_list_of_levels(levels):
        return "config.covariates"
    return None


def _is_list_of_levels(values):
    return (isinstance(values, list) and len(values) <= MAX_COLUMNS
            and all(type(count) is int and 0 <= count <= MAX_LEVELS for count in values))


def _is_config_value(key, value):
    """Whether a constructor argument of a DiT is of the right type and of a plausible size."""
    if key == "base_grid" and value is None:
        return True
    if type(value) not in (int, float) or not 0 <= value <= MAX_CONFIG[key]:
        return False
    if key in ("mlp_ratio", "gamma_blocks"):
        return True
    return type(value) is int and value > 0


def verify(path):
    """A checkpoint's metadata, once every byte of the file was read and matched its checksum.

    :raises UserError: as `read_metadata`, or the checksum differs
    """
    metadata = read_metadata(path)
    if metadata["version"] == 1 and "sha256" not in metadata:
        return metadata
    try:
        with safe_open(path, "pt") as f:
            found = _checksum(metadata, f.keys(), f.get_tensor)
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise UserError(f"{path}: damaged ({e}); use the checkpoint before it") from None
    if found != metadata.get("sha256"):
        raise UserError(f"{path}: damaged, its checksum differs from the recorded one; "
                        "use the checkpoint before it")
    return metadata


def load_into(path, **groups):
    """Copies a file's tensors into those of group = {name: tensor}, one by one to save memory.

    :raises UserError: a tensor is missing or of another shape; some may have been copied by then
    """
    with safe_open(path, "pt") as f:
        keys = set(f.keys())
        for group, named in groups.items():
            for name, tensor in named.items():
                key = f"{group}.{name}"
                if key not in keys or f.get_slice(key).get_shape() != list(tensor.shape):
                    raise UserError(f"{path}: has no {key} of shape {tuple(tensor.shape)}; "
                                    "it belongs to another model")
                with torch.no_grad():
                    tensor.copy_(f.get_tensor(key))
