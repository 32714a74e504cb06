"""Tiling against its definition, one pixel block at a time."""
import numpy as np
import pytest

from mri import mosaic


def tile_by_definition(volume, layout):
    """The definition in `mosaic.tile`, slice by slice."""
    d = len(volume)
    per_tile = {"rgb": 3, "gray": 1}[layout]
    tiles = -(-d // per_tile)
    g = next(g for g in range(1, 1000) if g * g >= tiles)
    sheet = np.zeros((g * d, g * d, 3), volume.dtype)
    for i in range(tiles):
        row, column = i // g * d, i % g * d
        for c in range(3):
            k = 3 * i + c if layout == "rgb" else i
            if k < d:
                sheet[row:row + d, column:column + d, c] = np.rot90(volume[:, :, k])
    return sheet


@pytest.mark.parametrize("size", [2, 3, 5, 16, 27, 28, 48])
@pytest.mark.parametrize("layout", ["rgb", "gray"])
def test_tile_is_the_definition_and_untile_its_inverse(size, layout):
    volume = np.arange(size ** 3, dtype=np.int64).reshape(size, size, size)
    sheet = mosaic.tile(volume, layout)
    assert np.array_equal(sheet, tile_by_definition(volume, layout))
    assert np.array_equal(mosaic.untile(sheet, size, layout), volume)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("layout", ["rgb", "gray"])
def test_paper_size(dtype, layout):
    volume = np.random.default_rng(0).integers(0, 256, (128, 128, 128)).astype(dtype)
    sheet = mosaic.tile(volume, layout)
    side = {"rgb": 896, "gray": 1536}[layout]
    assert sheet.shape == (side, side, 3) and mosaic.mosaic_side(128, layout) == side
    assert mosaic.grid_size(128, layout) == {"rgb": 7, "gray": 12}[layout]
    used = {"rgb": 43, "gray": 128}[layout]
    g = mosaic.grid_size(128, layout)
    # in rgb, tile 42 holds slices 126 and 127 and an empty channel
    for i in range(used + (layout == "rgb"), g * g):
        row, column = i // g * 128, i % g * 128
        assert not sheet[row:row + 128, column:column + 128].any()
    back = mosaic.untile(sheet, 128, layout)
    assert back.dtype == dtype and np.array_equal(back, volume)


def test_directions():
    """Anterior up, left on the left: a voxel on the right, anterior, in slice 4."""
    volume = np.zeros((6, 6, 6))
    volume[5, 4, 4] = 1  # far right, second from the front
    sheet = mosaic.tile(volume, "rgb")
    assert sheet.shape == (12, 12, 3)
    assert np.argwhere(sheet).tolist() == [[1, 6 + 5, 1]]  # tile 1, row 1, last column, channel G


def test_gray_takes_the_mean_of_the_channels():
    sheet = np.zeros((2 * 3, 2 * 3, 3), np.uint8)
    sheet[0, 0] = 10, 11, 13
    assert mosaic.untile(sheet, 3, "gray")[0, 2, 0] == 11  # 11.33 rounded
    assert np.isclose(mosaic.untile(sheet.astype(np.float32), 3, "gray")[0, 2, 0], 34 / 3)


@pytest.mark.parametrize("call, words", [
    (lambda: mosaic.tile(np.zeros((4, 4, 5)), "rgb"), "cube"),
    (lambda: mosaic.tile(np.zeros((4, 4)), "rgb"), "cube"),
    (lambda: mosaic.tile(np.zeros((4, 4, 4)), "bgr"), "rgb, gray"),
    (lambda: mosaic.untile(np.zeros((8, 8, 3)), 5, "rgb"), r"\(10, 10, 3\)"),
    (lambda: mosaic.grid_size(0, "rgb"), "at least 1")])
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
