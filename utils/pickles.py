"""PyTorch's pickled weights, read so that no code in them runs and no size in them is believed."""
import os
import pickle
import re
import zipfile

import torch

from utils import archives
from utils.errors import UserError, shorten

MAX_CLAIMED_SHARE = 2       # of the file's size, that all tensors together may claim


def load(path, allowed=()):
    """torch.load that never runs code, to the CPU, memory-mapped where the format can.

    :param allowed: classes that pass as data
    :return: what the file holds
    :raises UserError: unsafe, damaged, or larger by its own words than it is
    """
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(list(allowed)):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as e:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(e))
        found = culprit[1] if culprit else "more than weights"
        raise UserError(f"{path}: refused, its pickle holds {found}, which could run code; if "
                        "you trust it, save its state dict as safetensors and give that") from None
    except Exception as e:  # a damaged file can make the unpickler raise anything
        raise UserError(f"{path}: cannot be read as PyTorch weights ({shorten(e, 120)}); "
                        "download or copy it again") from None
    claimed = sum(_checked_bytes(name, tensor, path) for name, tensor in _tensors_in(content))
    if claimed > MAX_CLAIMED_SHARE * os.path.getsize(path):
        raise UserError(f"{path}: its tensors claim {claimed:,} bytes, the file has "
                        f"{os.path.getsize(path):,}; do not use it")
    return content


def _check_archive(path):
    """Raises UserError for a .pt file, a zip archive, that claims more than its own size."""
    reason = zipfile.is_zipfile(path) and archives.claims_more_than_it_holds(path)
    if reason:      # a file that is no archive has the format before torch 1.6
        raise UserError(f"{path}: {reason}; torch.save writes no such file, do not use it")


def _tensors_in(content):
    """(name, tensor) of all tensors in a dict, at any depth; a dict may hold itself."""
    waiting, seen = [("", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield name, value
        elif id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]


def _checked_bytes(name, tensor, path):
    """Bytes that a tensor takes, which it must hold.

    A pickle can claim any shape over a few bytes, by a stride of 0; a copy would take it all.

    :raises UserError: it is larger than its storage, or not of plain numbers
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UserError(f"{path}: {shorten(name, 60)} is not a tensor of plain numbers; save the "
                        "state dict of a model and give that")
    claimed = tensor.numel() * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if claimed > held:
        raise UserError(f"{path}: {shorten(name, 60)} claims {claimed:,} bytes for its shape "
                        f"{tuple(tensor.shape)}, and holds {held:,}; do not use this file")
    return claimed
