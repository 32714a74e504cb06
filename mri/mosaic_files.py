"""Mosaics as PNG files in a data or samples folder."""
import functools
import struct
import warnings
from pathlib import Path

import numpy as np
from isal import isal_zlib
from PIL import Image

from mri import mosaic
from utils.errors import UserError, shorten
from utils.files import write_bytes

MAX_PIXELS = 140_000_000  # of a mosaic; 512 cubed in layout "gray" has 139 million
KEPT_BYTES = 2 ** 28     # of mosaics that a MosaicReader keeps in memory
MIN_SIZE = 8              # of a cube's side, voxels
SIDE_MULTIPLE = 16        # of a mosaic's side: VAE factor (8) x patch size (2) of DiT-XL/2, pixels
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BITS_PER_CHANNEL = 8
COLOR_TYPE_RGB = 2        # of PNG
FILTER_SUB = 1            # of PNG: each byte as its difference from the pixel on the left
ISAL_LEVEL = 1


def mosaic_path(folder, volume_id):
    """Where a data or samples folder holds the mosaic of a volume."""
    return Path(folder) / "mosaics" / f"{volume_id}.png"


def write_mosaic(path, pixels):
    """Writes a mosaic as PNG, atomically; the inverse of `read_mosaic`.

    PIL tries five filters on every row, which takes 26 ms for a mosaic of 896 x 896; one filter for
    all rows and ISA-L take 5 ms, for 12 % more bytes. (PNG: RFC 2083)

    :param pixels: (side, side, 3) uint8
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(height, -1)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)   # the filter, then the pixels
    rows[:, 0] = FILTER_SUB
    rows[:, 1:4] = flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    header = struct.pack(">IIBBBBB", width, height, BITS_PER_CHANNEL, COLOR_TYPE_RGB, 0, 0, 0)
    write_bytes(path, PNG_SIGNATURE
                + _png_chunk(b"IHDR", header)
                + _png_chunk(b"IDAT", isal_zlib.compress(rows, ISAL_LEVEL))
                + _png_chunk(b"IEND", b""))


def _png_chunk(kind, data):
    checksum = isal_zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def read_mosaic(path, header):
    """Reads the mosaic of a volume; the inverse of `write_mosaic`.

    :param header: of the manifest; its `size` and `layout` say how large the mosaic must be
    :return: (side, side, 3) uint8
    :raises UserError: missing, damaged, not 8-bit RGB, or of another size
    """
    side = mosaic.mosaic_side(header["size"], header["layout"])
    try:
        with warnings.catch_warnings():
            # PIL warns above 89 million pixels and refuses twice as many. The size is compared
            # below, before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG",))
        with image:
            if image.size != (side, side) or image.mode != "RGB":
                width, height = image.size
                raise UserError(
                    f"{path}: {width} x {height} {image.mode}, but the manifest says {side} x "
                    f"{side} RGB ({header['layout']} mosaic of {header['size']}^3); is it from "
                    "another data folder?")
            return np.array(image)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; preprocess again") from None
    except Exception as e:  # a damaged file can end the decoder in any way
        raise UserError(f"{path}: cannot be read as PNG ({shorten(e)}); preprocess again") from None


def read_mosaics(folder, header, entries):
    """Reads the mosaics of manifest entries.

    :return: (N, side, side, 3) uint8
    :raises UserError: see `read_mosaic`
    """
    return np.stack([read_mosaic(mosaic_path(folder, entry["id"]), header) for entry in entries])


class MosaicReader:
    """The mosaics of data folders of one size and layout, each read when it is asked for.

    Those asked for last stay in memory, up to KEPT_BYTES.

    :param sources: list of (path of the folder, header, entry of its manifest)
    """

    def __init__(self, sources):
        self._sources = sources
        _, header, _ = sources[0]
        self.side = mosaic.mosaic_side(header["size"], header["layout"])
        kept = max(1, KEPT_BYTES // (3 * self.side ** 2))
        self._read = functools.lru_cache(kept)(self._read_from_disk)

    def __len__(self):
        return len(self._sources)

    def __getitem__(self, i):
        """Mosaic i, (side, side, 3) uint8.

        :raises UserError: see `read_mosaic`
        """
        return self._read(i)

    def _read_from_disk(self, i):
        folder, header, entry = self._sources[i]
        return read_mosaic(mosaic_path(folder, entry["id"]), header)


def check_size(size, layout):
    """Raises UserError for a cube whose mosaic DiT-XL/2 cannot take, or that is too large."""
    side = mosaic.mosaic_side(max(size, MIN_SIZE), layout)
    if size < MIN_SIZE or side % SIDE_MULTIPLE:
        nearest = max(size, MIN_SIZE)
        candidates = range(max(MIN_SIZE, nearest - 16), nearest + 17)
        valid = [d for d in candidates if mosaic.mosaic_side(d, layout) % SIDE_MULTIPLE == 0]
        raise UserError(f"--size {size}: gives a mosaic of {side} pixels, which must be a multiple "
                        f"of {SIDE_MULTIPLE} (VAE factor x patch size); near it work "
                        f"{', '.join(map(str, valid))}")
    if side ** 2 > MAX_PIXELS:
        raise UserError(f"--size {size}: gives a mosaic of {side} x {side} pixels, more than the "
                        f"{MAX_PIXELS} that are read back")
