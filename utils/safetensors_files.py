"""Where the tensors of a safetensors file are, to read a part of one without mapping the file.

A file is 8 bytes with the length of its header, the header in JSON, and the tensors' bytes:
https://huggingface.co/docs/safetensors
"""
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DTYPES = {"F32": np.float32, "U8": np.uint8}    # of the tensors that `Place.read_row` reads
LENGTH_BYTES = 8                                # before the header
MAX_HEADER_BYTES = 100_000_000                  # the library's own limit


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    :param start: of its first byte in the file
    """
    path: Path
    dtype: str
    shape: tuple
    start: int

    def read_row(self, index):
        """tensor[index] as a NumPy array.

        :raises OSError: the file is gone or has become shorter
        """
        shape, dtype = self.shape[1:], np.dtype(DTYPES[self.dtype])
        row = np.empty(shape, dtype)
        with open(self.path, "rb", buffering=0) as f:
            count = os.preadv(f.fileno(), [row.reshape(-1).view(np.uint8)],
                              self.start + index * row.nbytes)
        if count != row.nbytes:
            raise OSError(f"{self.path}: {row.nbytes - count} of {row.nbytes} bytes are missing")
        return row


def read_places(path):
    """{name: Place} of a file that the safetensors library could open.

    :raises ValueError, KeyError, TypeError: no safetensors file
    """
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(LENGTH_BYTES), "little")
        header = json.loads(f.read(min(length, MAX_HEADER_BYTES)))
    return {name: Place(path, value["dtype"], tuple(value["shape"]),
                        LENGTH_BYTES + length + value["data_offsets"][0])
            for name, value in header.items() if name != "__metadata__"}
