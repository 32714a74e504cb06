"""."""
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

FITS = ("stretch", "pad")


def to_ras(array, affine):
    """Permutes and flips the axes to the nearest RAS order (no interpolation); the inverse of `from_ras`.

    :return: array (X, Y, Z) with axes right, anterior, superior, a view of the one given, and its affine
    """
    ornt = nib.io_orientation(affine)
    return nib.apply_orientation(array, ornt), affine @ nib.orientations.inv_ornt_aff(ornt, array.shape)


def from_ras(array, affine):
    """Puts a RAS array back into the axis order of the file whose affine is given; the inverse of `to_ras`."""
    ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.io_orientation(affine))
    return nib.apply_orientation(array, ornt)


def ras_grid(shape, affine):
    """Shape and affine that `to_ras` gives for a scan of this shape and affine."""
    ornt = nib.io_orientation(affine)
    ras_shape = [0, 0, 0]
    for axis, (target, _) in enumerate(ornt):
        ras_shape[int(target)] = int(shape[axis])
    return tuple(ras_shape), np.asarray(affine, float) @ nib.orientations.inv_ornt_aff(ornt, shape)


def cube_scale(shape, affine, fit):
    """Length of the cube's edges over those of the scan's field of view, by axis: 1 for "stretch"."""
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: must be one of {', '.join(FITS)}")
    if fit == "stretch":
        return np.ones(3)
    extent = np.array(shape) * voxel_sizes(affine)          # mm
    return extent.max() / extent


def cube_affine(shape, affine, size, fit):
    """Affine of the cube that `to_cube` makes from a RAS array of this shape and affine: voxel edges aligned."""
    shape = np.array(shape, float)
    step = shape * cube_scale(shape, affine, fit) / size    # one cube voxel, in scan voxels
    to_scan = np.eye(4)
    to_scan[:3, :3] = np.diag(step)
    to_scan[:3, 3] = (shape - 1) / 2 - step * (size - 1) / 2  # the centres of both fields of view coincide
    return np.asarray(affine, float) @ to_scan


def grid_over(shape, affine, other):
    """Affine of a grid of `other` voxels over the field of view of one of `shape` and `affine`: voxel edges aligned."""
    step = np.array(shape, float) / np.array(other)
    to_scan = np.diag([*step, 1.0])
    to_scan[:3, 3] = (step - 1) / 2
    return np.asarray(affine, float) @ to_scan


def to_cube(array, affine, size, fit, outside=0.0):
    """Resamples a RAS array trilinearly onto a cube; the inverse, up to interpolation, of `from_cube`.

    "stretch" fills the cube with the field of view, voxel edges aligned; "pad" keeps voxels cubic, `outside` beyond the scan.

    :return: cube (size, size, size) float32; its affine is `cube_affine`
    """
    scale = cube_scale(array.shape, affine, fit)
    if fit == "pad" and outside:
        return resample(array - np.float32(outside), (size,) * 3, scale) + np.float32(outside)
    return resample(array, (size,) * 3, scale)


def from_cube(cube, shape, affine, fit):
    """Resamples a cube trilinearly back onto a RAS grid; the inverse, up to interpolation, of `to_cube`."""
    return resample(cube, shape, 1 / cube_scale(shape, affine, fit), "border")  # no point of it lies outside the cube


def resample(array, shape, scale=(1, 1, 1), padding="zeros"):
    """Samples `array` on a grid of `shape` voxels whose field of view is `scale` times its own, about one centre."""
    array, order, flipped = in_memory_order(array)
    shape, scale = ([v[axis] for axis in order] for v in (shape, scale))
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    if np.allclose(scale, 1, rtol=0, atol=1e-12):
        y = F.interpolate(x, tuple(shape), mode="trilinear", align_corners=False)
    else:
        theta = torch.zeros(1, 3, 4, dtype=torch.float64)
        theta[0, [0, 1, 2], [0, 1, 2]] = torch.from_numpy(np.array(scale)[::-1].copy())  # grid_sample: last axis first
        grid = F.affine_grid(theta, (1, 1, *shape), align_corners=False).float()
        y = F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return np.flip(y[0, 0].numpy(), flipped).transpose(np.argsort(order))


def in_memory_order(array):
    """The array with its axes turned as its voxels lie in memory, so that going through it, or copying it, is fastest.

    :return: that view; the axes of `array` in its order; which axes of the view run the other way. `np.flip` by the latter and a
        `transpose` by the argsort of the former undo it.
    """
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flipped = [i for i, axis in enumerate(order) if array.strides[axis] < 0]
    return np.flip(array.transpose(order), flipped), order, flipped


def cohort_grid(shapes, affines, size, fit):
    """The grid that stands for a cohort, for volumes that have no source scan: RAS, centred where the cohort is.

    :param shapes, affines: of the scans' RAS arrays
    :return: affine (4, 4) of a cube with the median voxel sizes; shape (3,) and affine (4, 4) of the median scan
    """
    median_shape = np.rint(np.median(shapes, axis=0)).astype(int)
    centres = [nib.affines.apply_affine(a, (np.array(s) - 1) / 2) for s, a in zip(shapes, affines)]
    centre = np.median(centres, axis=0)

    def affine(grid, sizes):
        out = np.diag([*sizes, 1.0])
        out[:3, 3] = centre - sizes * (np.array(grid) - 1) / 2
        return out

    cube = np.median([voxel_sizes(cube_affine(s, a, size, fit)) for s, a in zip(shapes, affines)], axis=0)
    scan = np.median([voxel_sizes(a) for a in affines], axis=0)
    if fit == "stretch":  # the medians of shapes and sizes need not belong together: the cube's field of view decides
        scan = cube * size / median_shape
    else:
        scan = scan * (cube[0] * size / (scan * median_shape).max())
    return affine((size,) * 3, cube), tuple(int(n) for n in median_shape), affine(median_shape, scan)


def voxel_sizes(affine):
    """Voxel edge lengths in mm, (3,)."""
    return np.sqrt((np.asarray(affine, float)[:3, :3] ** 2).sum(0))


def max_corner_distance(shape, a, b):
    """How far max_corner_distance two affines put a corner of the volume, at most."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    difference = np.asarray(a, float) - np.asarray(b, float)
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())


VIEWS = ("axial", "coronal", "sagittal")


NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of a RAS volume across the view


def view_slice(volume, name, depth=0.5):
    """One slice of a RAS volume as an image: anterior or superior up, left on the left (sagittal: anterior right).

    :param volume: (X, Y, Z)
    :param depth: 0…1 along the axis across the view
    """
    axis = NORMAL[name]
    k = min(int(depth * volume.shape[axis]), volume.shape[axis] - 1)
    return np.rot90(np.take(volume, k, axis))
