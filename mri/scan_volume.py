"""One 3D volume of a scan file, and what is checked of it whatever the file's format.

Files may come from anywhere, so a claimed shape is checked before memory is taken for it.
"""
from dataclasses import dataclass, replace

import numpy as np

from mri import geometry
from utils.errors import UserError

MAX_VOXELS = 2 ** 29        # of one volume; 0.25 mm over a whole head is 2^28.9
MAX_AXIS_VOXELS = 2 ** 15 - 1  # along one axis: what NIfTI-1 can write
MAX_FILE_BYTES = 2 ** 34    # of the voxels in a file, all its volumes together
MIN_VOXEL_MM = 0.01         # edge of a voxel; below it, the units or the affine are wrong
MAX_VOXEL_MM = 100.0        # the same, above it
MAX_AFFINE_VALUE = 1e6      # mm; of any number in an affine
MAX_MASK_VALUES = 3         # that a file holds which is no scan, but a mask or a label map
SAMPLE_VOXELS = 5000        # of a volume, that show in most cases that it holds more
MIN_RELATIVE_VOLUME = 1e-3  # of a voxel, over that of a box with its edges; below it, singular


@dataclass(frozen=True)
class ScanVolume:
    """One 3D volume of a scan file."""
    array: np.ndarray      # (X, Y, Z) float32, in the file's own axis order
    affine: np.ndarray     # (4, 4) float64, voxel -> world, mm
    codes: tuple = (1, 1)  # sform and qform codes that belong to this affine; 1: scanner
    volumes: int = 1       # how many the file has; 1 for 3D
    warnings: tuple = ()   # what a person should know, one line each


def check_shape(path, shape, volume):
    """Checks that a file's shape is that of a scan, and that it is known which volume is meant.

    :param shape: as the file's header claims it
    :param volume: number of the wanted volume, from 0; None: the file must have one
    :return: number of volumes in the file
    :raises UserError: not 3D, too large, several volumes and none chosen, or
        the chosen one does not exist
    """
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise UserError(f"{path}: shape {shape} is not 3D; a scan needs at least 2 voxels along "
                        "each axis")
    count = int(np.prod(shape[:3], dtype=object))
    if max(shape[:3]) > MAX_AXIS_VOXELS or count > MAX_VOXELS:
        raise UserError(f"{path}: its header claims {' x '.join(map(str, shape[:3]))} voxels, more "
                        f"than the {MAX_VOXELS} that are read; resample it, or take it out")
    volumes = int(np.prod(shape[3:], dtype=object)) if len(shape) > 3 else 1
    if volumes < 1 or any(n != 1 for n in shape[4:]):
        raise UserError(f"{path}: {len(shape)}D with shape {shape}: not a scan or a series of "
                        "scans; take it out")
    if volumes > 1 and volume is None:
        raise UserError(f"{path}: 4D with shape {shape}: {volumes} volumes; choose one with "
                        f"--volume 0 to {volumes - 1}, or extract one first")
    if volume is not None and volume >= volumes:
        raise UserError(f"{path}: has {volumes} volume{'s' if volumes > 1 else ''}; there is no "
                        f"--volume {volume} (they count from 0)")
    return volumes


def check_affine(path, affine):
    """Checks that an affine can be that of a scan of a head.

    :param affine: (4, 4), mm
    :raises UserError: not finite, singular, or voxels or positions of an implausible size
    """
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise UserError(f"{path}: its affine is not finite; correct it first (in a NIfTI, set the "
                        "sform)")
    voxel_sizes = geometry.voxel_sizes(affine)
    if not abs(np.linalg.det(affine[:3, :3])) > MIN_RELATIVE_VOLUME * voxel_sizes.prod():
        raise UserError(f"{path}: its affine is singular; correct it first (in a NIfTI, set the "
                        "sform)")
    plausible = voxel_sizes.min() >= MIN_VOXEL_MM and voxel_sizes.max() <= MAX_VOXEL_MM
    if not plausible or np.abs(affine).max() > MAX_AFFINE_VALUE:
        raise UserError(
            f"{path}: voxels of {' x '.join(f'{size:.3g}' for size in voxel_sizes)} mm at "
            f"{np.abs(affine[:3, 3]).max():.3g} mm from the origin cannot be a scan of a head; "
            "fix its affine or its units")


def check_intensities(path, array):
    """Checks that the intensities of a volume are finite and not all the same.

    :param array: float32
    :raises UserError: NaN, infinite or constant
    """
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        nan = np.count_nonzero(np.isnan(array))
        what = ("preprocess.py --nan zero sets NaN to 0" if nan == bad else
                "replace them first, as with numpy.nan_to_num")
        raise UserError(f"{path}: {bad} voxels are NaN or infinite in single precision ({nan} of "
                        f"them NaN); {what}")
    if array.min() == array.max():
        raise UserError(f"{path}: every voxel is {array.flat[0]:g}, so there is nothing to see; "
                        "take it out")


def replace_nan(scan):
    """A ScanVolume whose NaN voxels are 0, with a warning that counts them."""
    is_nan = np.isnan(scan.array)
    count = np.count_nonzero(is_nan)
    if not count:
        return scan
    warning = f"{count} voxels were NaN, now 0 (--nan zero)"
    return replace(scan, array=np.where(is_nan, np.float32(0), scan.array),
                   warnings=(*scan.warnings, warning))


def has_few_values(array):
    """Whether an array holds at most MAX_MASK_VALUES values: a mask or a label map, not a scan.

    A sample decides for nearly every scan; only where it is as poor are all voxels compared.
    """
    flat = geometry.in_memory_order(array)[0].reshape(-1)
    values = np.unique(flat[::max(1, flat.size // SAMPLE_VOXELS)])
    if len(values) > MAX_MASK_VALUES:
        return False
    return len(np.unique(flat)) <= MAX_MASK_VALUES
