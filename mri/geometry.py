"""Where voxels lie: axis orders, voxel sizes, cubes, and trilinear resampling from grid to grid.

An affine is a (4, 4) matrix, voxel indices -> world coordinates in mm, as in nibabel: x grows to
the right (R), y to anterior (A), z to superior (S). A RAS array has its axes in this order and
direction.
"""
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

FITS = ("stretch", "pad")
ANTIALIAS_FACTOR = 2 + 1e-6  # by which an axis may shrink without smoothing
GAUSSIAN_RADIUS = 3          # of the smoothing, standard deviations
AXIS_LETTERS = ("RL", "AP", "SI")  # of each axis of a RAS volume: its direction, and the other one
VIEWS = {"axial": 2, "coronal": 1, "sagittal": 0}  # axis of a RAS volume across each view


def voxel_sizes(affine):
    """Voxel edge lengths in mm.

    :param affine: (4, 4), an array or nested lists
    :return: (3,) float64
    """
    return np.sqrt((np.asarray(affine, float)[:3, :3] ** 2).sum(0))


def corners(shape):
    """Indices of the eight corner voxels of a volume, (8, 3).

    :param shape: (X, Y, Z), voxels
    """
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1).T


def max_corner_distance(shape, affine_a, affine_b):
    """The largest distance between the places that two affines give to a corner of a volume.

    :param shape: of the volume, (X, Y, Z), voxels
    :return: mm
    """
    difference = np.asarray(affine_a, float) - np.asarray(affine_b, float)
    shifts = difference[:3, :3] @ corners(shape).T + difference[:3, 3:]              # (3, 8)
    return float(np.linalg.norm(shifts, axis=0).max())


# ------------------------------------------------------------------------------------- axis order

def to_ras(array, affine):
    """Permutes and flips the axes to the nearest RAS order, without interpolation.

    The inverse of `from_ras`.

    :param array: (X, Y, Z) in the axis order of its file
    :return: a view of the array with axes right, anterior, superior; the affine of that view
    """
    orientation = nib.io_orientation(affine)
    to_file = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.apply_orientation(array, orientation), affine @ to_file


def from_ras(array, affine):
    """Puts a RAS array back into the axis order of its file; the inverse of `to_ras`.

    :param affine: of the file
    """
    ras = nib.orientations.axcodes2ornt("RAS")
    change = nib.orientations.ornt_transform(ras, nib.io_orientation(affine))
    return nib.apply_orientation(array, change)


def ras_grid(shape, affine):
    """Shape and affine of the array that `to_ras` makes from a scan of this shape and affine."""
    orientation = nib.io_orientation(affine)
    ras_shape = [0, 0, 0]
    for axis, (ras_axis, _) in enumerate(orientation):
        ras_shape[int(ras_axis)] = int(shape[axis])
    to_file = nib.orientations.inv_ornt_aff(orientation, shape)
    return tuple(ras_shape), np.asarray(affine, float) @ to_file


def affine_of_orientation(shape, voxel_sizes, orientation):
    """Affine of a volume whose axes run as stated, with the origin at its center.

    :param shape: (X, Y, Z), voxels
    :param voxel_sizes: (3,), mm
    :param orientation: directions of the axes, such as "LAS"; see `is_orientation`
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(orientation.upper()):
        ras_axis = next(i for i, pair in enumerate(AXIS_LETTERS) if letter in pair)
        affine[ras_axis, axis] = voxel_sizes[axis] * (1 if letter == AXIS_LETTERS[ras_axis][0]
                                                      else -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def is_orientation(text):
    """Whether a text names the directions of three axes: one letter each of RL, AP and SI."""
    return len(text) == 3 and all(
        sum(letter in pair for letter in text.upper()) == 1 for pair in AXIS_LETTERS)


# ------------------------------------------------------------------------------------------ grids

def cube_scale(shape, affine, fit):
    """Length of the cube's edges over those of the scan's field of view, by axis.

    :param shape: of the RAS array, (X, Y, Z), voxels
    :param fit: "stretch": the cube is the field of view, all 1; "pad": the cube has equal edges in
        mm, as long as the longest of the field of view
    :return: (3,)
    :raises ValueError: another `fit`
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: must be one of {', '.join(FITS)}")
    if fit == "stretch":
        return np.ones(3)
    extent = np.array(shape) * voxel_sizes(affine)             # mm
    return extent.max() / extent


def cube_affine(shape, affine, size, fit):
    """Affine of the cube that `to_cube` makes from a RAS array of this shape and affine.

    :param size: side of the cube, voxels
    """
    shape = np.array(shape, float)
    step = shape * cube_scale(shape, affine, fit) / size       # a voxel of the cube, in scan voxels
    to_scan = np.eye(4)
    to_scan[:3, :3] = np.diag(step)
    # both fields of view have one center
    to_scan[:3, 3] = (shape - 1) / 2 - step * (size - 1) / 2
    return np.asarray(affine, float) @ to_scan


def grid_over(shape, affine, new_shape):
    """Affine of a grid of `new_shape` voxels over the field of view of another grid.

    The outer edges of the first and last voxels coincide.

    :param shape, affine: of the other grid
    """
    step = np.array(shape, float) / np.array(new_shape)
    to_scan = np.diag([*step, 1.0])
    to_scan[:3, 3] = (step - 1) / 2
    return np.asarray(affine, float) @ to_scan


def cohort_grid(shapes, affines, size, fit):
    """The grid that stands for a cohort, for volumes without a source scan: RAS, median in size.

    Its center is the median of the scans' centers.

    :param shapes, affines: of the scans' RAS arrays
    :param size: side of the cubes, voxels
    :return: affine of a cube with the median voxel sizes; shape (3,) and affine of the median scan
    """
    median_shape = np.rint(np.median(shapes, axis=0)).astype(int)
    centers = [nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
               for shape, affine in zip(shapes, affines)]
    center = np.median(centers, axis=0)
    cube_voxel_sizes = np.median(
        [voxel_sizes(cube_affine(shape, affine, size, fit))
         for shape, affine in zip(shapes, affines)], axis=0)
    if fit == "stretch":
        # medians of shapes and of voxel sizes need not match: the cube's field of view decides
        scan_voxel_sizes = cube_voxel_sizes * size / median_shape
    else:
        scan_voxel_sizes = np.median([voxel_sizes(affine) for affine in affines], axis=0)
        longest_edge = (scan_voxel_sizes * median_shape).max()                       # mm
        scan_voxel_sizes = scan_voxel_sizes * (cube_voxel_sizes[0] * size / longest_edge)
    cube = _centered_affine((size,) * 3, cube_voxel_sizes, center)
    scan = _centered_affine(median_shape, scan_voxel_sizes, center)
    return cube, tuple(int(n) for n in median_shape), scan


def _centered_affine(shape, voxel_sizes, center):
    affine = np.diag([*voxel_sizes, 1.0])
    affine[:3, 3] = center - voxel_sizes * (np.array(shape) - 1) / 2
    return affine


# ------------------------------------------------------------------------------------- resampling

def to_cube(array, affine, size, fit, outside=0.0):
    """Resamples a RAS array trilinearly onto a cube.

    The inverse, up to interpolation, of `from_cube`.

    :param array: (X, Y, Z)
    :param size: side of the cube, voxels
    :param fit: see `cube_scale`
    :param outside: intensity beyond the scan, where "pad" reaches there
    :return: (size, size, size) float32; its affine is that of `cube_affine`
    """
    scale = cube_scale(array.shape, affine, fit)
    array = _antialiased(array, np.array(array.shape) * scale / size)
    if fit == "pad" and outside:
        # grid_sample pads with zeros: shift the intensities so that zero means `outside`
        shifted = array - np.float32(outside)
        return resample(shifted, (size,) * 3, scale) + np.float32(outside)
    return resample(array, (size,) * 3, scale)


def _antialiased(array, steps):
    """The array smoothed along the axes that shrink by more than ANTIALIAS_FACTOR; else the same.

    Frequencies above the new grid's would come out as others. The Gaussian makes the point spread
    of a voxel into that of a new one: Cardoso et al. 2015 (MICCAI), as in TorchIO's Resample.

    :param steps: (3,), length of a new voxel in old ones
    """
    if max(steps) <= ANTIALIAS_FACTOR:
        return array
    view, order, flipped = in_memory_order(np.asarray(array, np.float32))
    for view_axis, axis in enumerate(order):
        if steps[axis] > ANTIALIAS_FACTOR:
            sigma = np.sqrt((steps[axis] ** 2 - 1) / (8 * np.log(2)))
            view = ndimage.gaussian_filter1d(view, sigma, view_axis, mode="nearest",
                                             truncate=GAUSSIAN_RADIUS)
    return np.flip(view, flipped).transpose(np.argsort(order))


def from_cube(cube, shape, affine, fit):
    """Resamples a cube trilinearly back onto a RAS grid.

    The inverse, up to interpolation, of `to_cube`.

    :param shape, affine: of the RAS array that became the cube
    """
    scale = 1 / cube_scale(shape, affine, fit)
    return resample(cube, shape, scale, padding="border")      # no voxel center is outside the cube


def resample(array, shape, scale=(1, 1, 1), padding="zeros"):
    """Samples an array trilinearly on another grid with the same center.

    :param array: (X, Y, Z)
    :param shape: of the new grid, voxels
    :param scale: length of the new grid's field of view over the old one's, by axis
    :param padding: "zeros" or "border", beyond the old field of view
    :return: float32, of `shape`
    """
    array, order, flipped = in_memory_order(array)
    shape = [shape[axis] for axis in order]
    scale = [scale[axis] for axis in order]
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    if np.allclose(scale, 1, rtol=0, atol=1e-12):
        # the field of view stays: the samples are the same, and interpolate is faster
        y = F.interpolate(x, tuple(shape), mode="trilinear", align_corners=False)
    else:
        theta = torch.zeros(1, 3, 4, dtype=torch.float64)
        diagonal = [0, 1, 2]
        # grid_sample counts the axes from the last
        theta[0, diagonal, diagonal] = torch.from_numpy(np.array(scale)[::-1].copy())
        grid = F.affine_grid(theta, (1, 1, *shape), align_corners=False).float()
        y = F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return np.flip(y[0, 0].numpy(), flipped).transpose(np.argsort(order))


def to_grid(array, affine, shape, grid_affine, outside=0.0):
    """Resamples a RAS array trilinearly onto any other grid, antialiased as `to_cube` does.

    The inverse, up to interpolation, of `from_grid`.

    :param array, affine: (X, Y, Z) and (4, 4)
    :param shape, grid_affine: of the new grid, whose axes may run in other directions
    :param outside: intensity beyond the array
    :return: float32, of `shape`
    """
    to_array = np.linalg.inv(affine) @ grid_affine
    steps = np.linalg.norm(to_array[:3, :3], axis=1)      # of a new voxel, along each old axis
    return _sample(_antialiased(array, steps), to_array, shape, outside)


def from_grid(array, affine, shape, grid_affine, outside=0.0):
    """Samples an array trilinearly at the voxels of the grid that it was made from.

    The inverse, up to interpolation, of `to_grid`. Not smoothed where that grid is coarser: its
    voxels were interpolated, and are met again.

    :param array, affine: of the resampled volume
    :param shape, grid_affine: of the grid that it was made from
    """
    return _sample(array, np.linalg.inv(affine) @ grid_affine, shape, outside)


def _sample(array, to_array, shape, outside):
    """Samples an array at to_array @ (i, j, k, 1) for the voxels (i, j, k) of a grid."""
    return ndimage.affine_transform(
        np.asarray(array, np.float32), to_array[:3, :3], to_array[:3, 3], output_shape=tuple(shape),
        order=1, mode="grid-constant", cval=outside)


def in_memory_order(array):
    """A view of an array whose axes have the order and direction of its voxels in memory.

    Going through this view, or copying it, is the fastest: scans are in Fortran order, and their
    RAS views are turned once more.

    :return: the view; the axes of `array` in the view's order; the view's axes that run the other
        way. `np.flip` by the latter, then `transpose` by the argsort of the former undo it.
    """
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flipped = [i for i, axis in enumerate(order) if array.strides[axis] < 0]
    return np.flip(array.transpose(order), flipped), order, flipped


# ------------------------------------------------------------------------------------------ views

def view_slice(volume, view, depth=0.5):
    """One slice of a RAS volume as an image: anterior or superior up, left on the left.

    In sagittal views anterior is on the right.

    :param volume: (X, Y, Z)
    :param view: a key of VIEWS
    :param depth: 0…1 along the axis across the view
    :return: (rows, columns), of the volume's own memory
    """
    axis = VIEWS[view]
    index = min(int(depth * volume.shape[axis]), volume.shape[axis] - 1)
    return np.rot90(np.moveaxis(volume, axis, 0)[index])  # np.take would copy the whole volume
