"""."""
import struct
from pathlib import Path

import numpy as np
from isal import isal_zlib
from PIL import Image

from mri import mosaic
from utils.errors import UserError, shorten
from utils.files import write_bytes


def write_mosaic(path, pixels):
    """Writes a (side, side, 3) uint8 mosaic as PNG, atomically; the inverse of `read_mosaic`.

    PIL would try five filters on every row, and take 26 ms for 5; one filter for all and ISA-L make 12 % more bytes of it.
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(height, -1)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)      # PNG (RFC 2083): each row's filter, then its bytes
    rows[:, 0], rows[:, 1:4] = 1, flat[:, :3]                   # 1, "sub": the difference from the pixel on the left
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB
              (b"IDAT", isal_zlib.compress(rows, 1)), (b"IEND", b""))
    write_bytes(path, b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data
                                                     + struct.pack(">I", isal_zlib.crc32(kind + data)) for kind, data in chunks))


def read_mosaic(path, header):
    """Reads the PNG of a mosaic of this header.

    :return: (side, side, 3) uint8
    :raises UserError: missing, damaged, not 8-bit RGB, or of another size than the header says
    """
    side = mosaic.mosaic_side(header["size"], header["layout"])
    try:
        with Image.open(path, formats=("PNG",)) as image:  # says its size before it decodes anything
            if image.size != (side, side) or image.mode != "RGB":
                width, height = image.size
                raise UserError(f"{path}: {width} x {height} {image.mode}, but the manifest says {side} x {side} RGB "
                                f"({header['layout']} mosaic of {header['size']}^3); is it from another data folder?")
            return np.array(image)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; preprocess anew") from None
    except Exception as e:  # a damaged file can end the decoder in any way
        raise UserError(f"{path}: cannot be read as PNG ({shorten(e)}); preprocess anew") from None


def mosaic_path(folder, volume_id):
    return Path(folder) / "mosaics" / f"{volume_id}.png"


def read_mosaics(folder, header, volumes):
    """The mosaics of these volumes, (N, side, side, 3) uint8."""
    return np.stack([read_mosaic(mosaic_path(folder, v["id"]), header) for v in volumes])
