"""Volume <-> mosaic: the axial slices of a cube, laid out on a square sheet; exact."""
import math

import numpy as np

SLICES_PER_TILE = {"rgb": 3, "gray": 1}  # by layout


def grid_size(size, layout):
    """Tiles along one side of a mosaic: the smallest square that holds all slices.

    For a cube of 128: 7 in layout "rgb", 12 in "gray".

    :param size: side of the cube, voxels
    :raises ValueError: another layout, or a size below 1
    """
    if layout not in SLICES_PER_TILE:
        raise ValueError(f"layout {layout!r}: must be one of {', '.join(SLICES_PER_TILE)}")
    if size < 1:
        raise ValueError(f"size {size}: must be at least 1")
    tiles = math.ceil(size / SLICES_PER_TILE[layout])
    return math.isqrt(tiles - 1) + 1


def mosaic_side(size, layout):
    """Side of a mosaic, pixels (cube of 128: 896 in layout "rgb", 1536 in "gray")."""
    return grid_size(size, layout) * size


def tile(volume, layout):
    """Lays the axial slices of a RAS cube out on a sheet; the inverse of `untile`.

    Slice k is np.rot90(volume[:, :, k]): anterior up, left on the left. In layout "rgb", tile i
    holds slices 3i, 3i + 1, 3i + 2 in its channels; in "gray", tile i holds slice i in all three.
    Tiles fill the grid row by row; what is past the last slice is zero.

    :param volume: (D, D, D) of any dtype, axes right, anterior, superior
    :param layout: "rgb" or "gray"
    :return: (G * D, G * D, 3) of the same dtype, G = grid_size(D, layout)
    :raises ValueError: not a cube, or another layout
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"volume of shape {volume.shape}: must be a cube")
    d = volume.shape[0]
    g = grid_size(d, layout)
    c = SLICES_PER_TILE[layout]
    # (tile row, row, tile column, column, channel)
    tiles = np.zeros((g, d, g, d, c), volume.dtype)
    for k in range(d):  # slice by slice: the fastest where each lies in one piece of memory
        tile_row, tile_column, channel = _place_of_slice(k, g, c)
        tiles[tile_row, :, tile_column, :, channel] = np.rot90(volume[:, :, k])
    sheet = tiles.reshape(g * d, g * d, c)
    return sheet if c == 3 else np.repeat(sheet, 3, axis=2)


def untile(mosaic, size, layout):
    """Stacks the tiles of a sheet into a cube; the inverse of `tile`.

    Layout "gray" takes the mean of the channels, rounded for integer dtypes.

    :param mosaic: (G * D, G * D, 3)
    :param size: D, side of the cube, voxels
    :param layout: "rgb" or "gray"
    :return: (D, D, D) of the same dtype, axes right, anterior, superior
    :raises ValueError: the mosaic has another side than `size` and `layout` ask for
    """
    mosaic = np.asarray(mosaic)
    d = size
    g = grid_size(d, layout)
    c = SLICES_PER_TILE[layout]
    if mosaic.shape != (g * d, g * d, 3):
        raise ValueError(f"mosaic of shape {mosaic.shape}: a {layout} mosaic of {d}^3 is "
                         f"({g * d}, {g * d}, 3)")
    if c == 1:
        mean = mosaic.mean(axis=2, keepdims=True, dtype=np.float64)
        if np.issubdtype(mosaic.dtype, np.integer):
            mean = np.rint(mean)
        mosaic = mean.astype(mosaic.dtype)
    # (tile row, row, tile column, column, channel)
    tiles = mosaic.reshape(g, d, g, d, c)
    volume = np.empty((d, d, d), mosaic.dtype)
    for k in range(d):
        tile_row, tile_column, channel = _place_of_slice(k, g, c)
        volume[:, :, k] = np.rot90(tiles[tile_row, :, tile_column, :, channel], -1)
    return volume


def _place_of_slice(k, g, c):
    """Tile row, tile column and channel of slice k in a grid of g x g tiles of c slices."""
    tile_index, channel = divmod(k, c)
    tile_row, tile_column = divmod(tile_index, g)
    return tile_row, tile_column, channel
