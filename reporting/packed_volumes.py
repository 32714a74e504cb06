"""Volumes packed for a page: base64 of a deflate stream, which web/volumes.js unpacks.

What is compressed are the differences along the first axis, modulo 256: a brain of 128 voxels a
side takes 1.0 MB, of raw voxels 1.2 MB.
"""
import base64
import struct
import zlib

import numpy as np

RAW_DEFLATE = -15           # wbits of zlib: a stream without header and checksum
STORED_BLOCK = 65535        # bytes that a block of stored bytes can hold (RFC 1951, 3.2.4)
STORED_HEADER = 5           # bytes before the content of such a block


def deflate(volume):
    """A volume as a raw deflate stream that lacks its last block, see `packed`.

    :param volume: (D, D, D) uint8
    """
    differences = np.diff(volume, axis=0, prepend=np.uint8(0))
    stream = zlib.compressobj(9, zlib.DEFLATED, RAW_DEFLATE)
    return stream.compress(np.ascontiguousarray(differences)) + stream.flush(zlib.Z_FULL_FLUSH)


def packed(stream, padding=(b"",)):
    """A stream of `deflate` as base64, ended by blocks of stored bytes.

    :param padding: contents of these blocks, which follow the voxels when the stream is unpacked
    :return: text
    """
    for number, block in enumerate(padding, 1):
        is_last = number == len(padding)
        stream += struct.pack("<BHH", is_last, len(block), len(block) ^ 0xffff) + block
    return base64.b64encode(stream).decode()


def padded_to_one_length(streams, rng):
    """Packs streams into texts of one length, so that no length tells which volume it is.

    :param streams: of `deflate`
    :param rng: numpy Generator, for the bytes of the padding
    :return: list of texts
    """
    longest = max(map(len, streams)) + STORED_HEADER
    return [packed(stream, [rng.bytes(size) for size in _block_sizes(longest - len(stream))])
            for stream in streams]


def _block_sizes(room):
    """Sizes of the contents of stored blocks that take exactly so many bytes."""
    blocks = -(-room // (STORED_BLOCK + STORED_HEADER))
    content = room - STORED_HEADER * blocks
    return [content * (k + 1) // blocks - content * k // blocks for k in range(blocks)]


def unpacked(text, side):
    """The inverse of `packed` and `deflate`, without the padding.

    :return: (side, side, side) uint8
    """
    raw = zlib.decompress(base64.b64decode(text), RAW_DEFLATE)
    differences = np.frombuffer(raw, np.uint8, side ** 3).reshape((side,) * 3)
    return np.cumsum(differences, axis=0, dtype=np.uint8)
