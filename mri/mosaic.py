"""Volume <-> mosaic: the axial slices of a cube, laid out on a square sheet. Pure, exact, no I/O."""
import math

import numpy as np

SLICES_PER_TILE = {"rgb": 3, "gray": 1}  # slices held by one tile


def grid_size(size, layout):
    """Side G of the tile grid: the smallest square that holds all `size` slices (128: rgb 7, gray 12)."""
    if layout not in SLICES_PER_TILE:
        raise ValueError(f"layout {layout!r}: must be one of {', '.join(SLICES_PER_TILE)}")
    if size < 1:
        raise ValueError(f"size {size}: must be at least 1")
    tiles = -(-size // SLICES_PER_TILE[layout])
    return math.isqrt(tiles - 1) + 1


def mosaic_side(size, layout):
    """Side of the mosaic in pixels (128: rgb 896, gray 1536)."""
    return grid_size(size, layout) * size


def tile(volume, layout):
    """Lays the axial slices of a RAS cube out on a sheet; the inverse of `untile`.

    Slice k is np.rot90(volume[:, :, k]): anterior up, left on the left. In layout "rgb", tile i holds slices 3i, 3i+1,
    3i+2 in its channels; in "gray", tile i holds slice i in all three. Tiles fill the grid row by row, zero past the end.

    :param volume: (D, D, D) array of any dtype, axes right, anterior, superior
    :return: (G*D, G*D, 3) array of the same dtype
    :raises ValueError: unless the volume is a cube and the layout known
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"volume of shape {volume.shape}: must be a cube")
    d = volume.shape[0]
    g, c = grid_size(d, layout), SLICES_PER_TILE[layout]
    tiles = np.zeros((g, d, g, d, c), volume.dtype)                  # (tile row, row, tile column, column, channel)
    for k in range(d):                                               # by slices: the fastest, when a slice lies in one piece
        tiles[k // c // g, :, k // c % g, :, k % c] = np.rot90(volume[:, :, k])
    sheet = tiles.reshape(g * d, g * d, c)
    return sheet if c == 3 else np.repeat(sheet, 3, axis=2)


def untile(mosaic, size, layout):
    """Stacks the tiles of a sheet back into the cube; the inverse of `tile`. "gray" takes the mean of the channels.

    :param mosaic: (G*D, G*D, 3) array; integer dtypes are rounded to the nearest when channels are averaged
    :param size: D, the side of the cube
    :return: (D, D, D) array of the same dtype, axes right, anterior, superior
    :raises ValueError: unless the mosaic has exactly the side that `size` and `layout` ask for
    """
    mosaic = np.asarray(mosaic)
    d, g, c = size, grid_size(size, layout), SLICES_PER_TILE[layout]
    if mosaic.shape != (g * d, g * d, 3):
        raise ValueError(f"mosaic of shape {mosaic.shape}: a {layout} mosaic of {d}^3 is ({g * d}, {g * d}, 3)")
    if c == 1:
        mean = mosaic.mean(axis=2, keepdims=True, dtype=np.float64)
        mosaic = (np.rint(mean) if np.issubdtype(mosaic.dtype, np.integer) else mean).astype(mosaic.dtype)
    tiles, volume = mosaic.reshape(g, d, g, d, c), np.empty((d, d, d), mosaic.dtype)
    for k in range(d):
        volume[:, :, k] = np.rot90(tiles[k // c // g, :, k // c % g, :, k % c], -1)
    return volume
