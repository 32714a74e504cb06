"""A user's network of features: a TorchScript or ONNX file that maps volumes to vectors.

Input (N, 1, D, D, D) float32 in [0, 1], axes right, anterior, superior; output (N, F).

A TorchScript file is a program. It is run by PyTorch's own interpreter, which runs no Python, but
whose operations include a few that write and read files; a file that names one is refused. What is
left is what a network can do, and that is not a sandbox: see docs/security.md.
"""
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, shorten
from utils.files import sha256_of_file

FLAG = "--features"
SUFFIXES = (".pt", ".onnx")
MAX_CODE = 2 ** 26      # bytes of the source in a TorchScript archive
# in the source that a TorchScript archive holds: operations on files, and operators of libraries
_REFUSED = re.compile(
    rb"\btorch\.(save|load|from_file)\b|\bops\.(?!prim\.)\w+\.\w+|\b__torch__\.torch\.classes\.\w+")


class FeatureNetwork:
    """A network from a file; called with volumes, it gives their features."""

    def __init__(self, path, device="cpu"):
        """
        :param path: .pt (TorchScript) or .onnx
        :raises UserError: no such file, another kind of file, refused, or onnxruntime is missing
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{FLAG} {path}: no such file")
        if self.path.suffix not in SUFFIXES:
            raise UserError(f"{FLAG} {path}: must be TorchScript (.pt) or ONNX (.onnx)")
        self.sha256 = sha256_of_file(self.path)
        load = _load_torchscript if self.path.suffix == ".pt" else _load_onnx
        self._run = load(self.path, device)

    def __call__(self, x):
        """
        :param x: (N, 1, D, D, D) float32 in [0, 1]
        :return: (N, F) float32
        :raises UserError: it fails on volumes of this size, or gives no finite (N, F)
        """
        try:
            found = self._run(x)
        except Exception as e:  # whatever an interpreter of someone else's program raises
            raise UserError(f"{FLAG} {self.path}: fails on an input of {_shape(x)} "
                            f"({shorten(e, 120)})") from None
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(x):
            given = _shape(found) if isinstance(found, torch.Tensor) else type(found).__name__
            raise UserError(f"{FLAG} {self.path}: gives {given} for an input of {_shape(x)}; it "
                            f"must give {len(x)} x F, one row of features per volume")
        found = found.float().cpu()
        if not found.isfinite().all():
            raise UserError(f"{FLAG} {self.path}: gives features that are not finite")
        return found


def _shape(x):
    return " x ".join(map(str, x.shape))


def _load_torchscript(path, device):
    """A function of a batch."""
    _refuse_access_to_files(path)
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as e:  # a damaged archive can make the loader raise anything
        raise UserError(f"{FLAG} {path}: cannot be read as TorchScript ({shorten(e, 120)}); "
                        "torch.jit.trace(network, example).save(FILE) writes it") from None
    return lambda x: module(x.to(device))


def _refuse_access_to_files(path):
    """Raises UserError for an archive that is none, or whose source names an operation on files.

    Before it is loaded, as loading runs what a module defines for that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            code = [record for record in archive.infolist() if "/code/" in record.filename]
            claimed = sum(record.file_size for record in code)
            if claimed > MAX_CODE:
                raise UserError(f"{FLAG} {path}: its program claims {claimed:,} bytes, more than "
                                f"the {MAX_CODE:,} that are read")
            if not code:
                raise UserError(f"{FLAG} {path}: holds weights alone, no network; export it with "
                                "torch.jit.trace(network, example).save(FILE)")
            for record in code:
                found = _REFUSED.search(archive.read(record))
                if found and not record.filename.endswith(".debug_pkl"):
                    raise UserError(f"{FLAG} {path}: refused, its program calls "
                                    f"{found[0].decode()}, which features do not need")
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as e:
        raise UserError(f"{FLAG} {path}: cannot be read as TorchScript ({shorten(e, 80)})"
                        ) from None


def _load_onnx(path, device):
    """A function of a batch."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{FLAG} {path}: an ONNX file needs the package onnxruntime; "
                        "`pip install onnxruntime`") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider"] if str(device).startswith("cuda") else []
    there = onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options,
            providers=[name for name in (*wanted, "CPUExecutionProvider") if name in there])
    except Exception as e:  # of many kinds, and all of the package's own
        raise UserError(f"{FLAG} {path}: cannot be read as ONNX ({shorten(e, 120)})") from None
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {name: x.cpu().numpy()})[0]))
