"""Volumes as a page holds them."""
import base64
import zlib

import numpy as np
import pytest

from reporting import packed_volumes


def volumes(side, count=3):
    rng = np.random.default_rng(side)
    noisy = rng.integers(0, 256, (count, side, side, side), np.uint8)
    noisy[0] //= 40         # compresses far better than the others
    return noisy


@pytest.mark.parametrize("side", [1, 2, 16, 50])
def test_a_round_trip_is_exact(side):
    for volume in volumes(side):
        text = packed_volumes.packed(packed_volumes.deflate(volume))
        assert np.array_equal(packed_volumes.unpacked(text, side), volume)


def test_a_stream_holds_differences_along_the_first_axis_modulo_256():
    volume = np.array([250, 3, 3, 0], np.uint8).reshape(2, 2, 1)[:, :, :1]
    text = packed_volumes.packed(packed_volumes.deflate(volume), [b"xy", b"z"])
    raw = zlib.decompress(base64.b64decode(text), packed_volumes.RAW_DEFLATE)
    assert raw == bytes([250, 3, 3 - 250 + 256, 253]) + b"xyz"


@pytest.mark.parametrize("side", [8, 64])   # 64: the padding takes several blocks
def test_padded_texts_have_one_length_and_the_same_volumes(side):
    many = volumes(side)
    streams = [packed_volumes.deflate(volume) for volume in many]
    assert len({len(stream) for stream in streams}) > 1
    if side == 64:
        assert max(map(len, streams)) - min(map(len, streams)) > 65540
    texts = packed_volumes.padded_to_one_length(streams, np.random.default_rng(0))
    assert len({len(text) for text in texts}) == 1
    for text, volume in zip(texts, many):
        assert np.array_equal(packed_volumes.unpacked(text, side), volume)


@pytest.mark.parametrize("room", [5, 6, 65535, 65540, 65541, 65545, 65546, 131080, 131081, 400000])
def test_blocks_fill_the_room_exactly(room):
    sizes = packed_volumes._block_sizes(room)
    assert sum(size + 5 for size in sizes) == room and max(sizes) <= 65535 and min(sizes) >= 0
