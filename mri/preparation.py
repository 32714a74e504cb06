"""What people do to scans by hand before a model sees them: brain mask, crop, bias correction. Each with its undoing.

Arrays are in RAS order, (X, Y, Z) float32; affines (4, 4) voxel -> world in mm. A mask cannot be undone: what it took is gone.
"""
import re
from pathlib import Path

import numpy as np

from mri import geometry, nifti
from utils.errors import UserError

FIELDS = ("id", "subject", "name", "dir")  # that a mask's pattern may hold
N4_GRID = 64                               # voxels along the longest axis of the grid that N4 works on


# ------------------------------------------------------------------------------------------------------------ mask

def check_pattern(pattern):
    """Raises UserError when a mask's pattern holds a placeholder that is none."""
    unknown = [f for f in re.findall(r"\{(.*?)\}", pattern) if f not in FIELDS]
    if unknown or pattern.count("{") != pattern.count("}"):
        known = ", ".join("{" + f + "}" for f in FIELDS)
        raise UserError(f"--mask {pattern}: knows {known}, and nothing else in braces; for example '{{dir}}/{{name}}_mask.nii.gz'")


def mask_path(pattern, scan):
    """The mask of a scan: {id} and {subject} as in the manifest, {name} the file's name without suffix, {dir} its folder."""
    values = {"id": scan.id, "subject": scan.subject, "name": nifti.stem(scan.path), "dir": str(scan.path.parent)}
    return Path(re.sub(r"\{(\w+)\}", lambda m: values[m[1]], pattern))


def read_mask(path, shape, affine):
    """A brain mask on the grid of a RAS array: True where the file holds more than 0.5.

    :raises UserError: missing, unreadable, on another grid, or empty
    """
    mask, theirs = geometry.to_ras(*nifti.read_nifti(path))
    apart = geometry.max_corner_distance(shape, theirs, affine)
    if mask.shape != tuple(shape) or apart > geometry.voxel_sizes(affine).min() / 2:
        raise UserError(f"{path}: a mask of {' x '.join(map(str, mask.shape))} voxels up to {apart:.3g} mm away, the scan has "
                        f"{' x '.join(map(str, shape))}; resample the mask to the scan's grid")
    mask = mask > 0.5
    if not mask.any():
        raise UserError(f"{path}: an empty mask, no voxel is above 0.5; make it anew")
    return mask


def apply_mask(array, mask):
    """Sets what is outside the mask to 0, or to the brain's least intensity where that is negative, so that it is dark."""
    return np.where(mask, array, np.float32(min(0.0, array[mask].min())))


# ------------------------------------------------------------------------------------------------------------ crop

def border(array):
    """The most common value of the array's outermost voxels, and which part of these has it (0…1)."""
    shell = np.concatenate([np.moveaxis(array, axis, 0)[k].ravel() for axis in range(3) for k in (0, -1)])
    values, counts = np.unique(shell, return_counts=True)
    return float(values[counts.argmax()]), counts.max() / len(shell)


def brain_box(array, edges, margin, mask=None):
    """The box about the brain, with a margin: of the mask, or of all that is not the border's one value.

    :param edges: voxel sizes, mm, (3,)
    :param margin: mm
    :return: [[start, stop], …] along each axis, voxels
    :raises UserError: no mask, and the background is not of one value, so that nothing says where the brain ends
    """
    if mask is None:
        value, part = border(array)
        mask = array != value
        if part < 0.9 or mask.mean() > 0.9:
            raise UserError("--crop brain: its background is not of one value, so it is not known where the brain ends; "
                            "give --mask, or skull-strip it")
    box = []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        more, n = int(np.ceil(margin / edges[axis])), array.shape[axis]
        start, stop = max(0, int(where[0]) - more), min(n, int(where[-1]) + 1 + more)
        if stop - start < 2:                                   # a volume has 2 voxels at least
            start, stop = (start, start + 2) if start + 2 <= n else (n - 2, n)
        box.append([start, stop])
    return box


def crop(array, box):
    """The part of an array inside the box; the inverse of `uncrop`."""
    return np.ascontiguousarray(array[tuple(slice(*b) for b in box)])


def uncrop(array, box, shape, outside):
    """Puts what `crop` took back into its place in an array of `shape`, `outside` around it."""
    out = np.full(shape, outside, array.dtype)
    out[tuple(slice(*b) for b in box)] = array
    return out


def prepared_grid(entry):
    """Shape and affine of the RAS array that became a volume's cube: the scan's, or its cropped part's.

    :param entry: of the manifest
    """
    shape, affine = geometry.ras_grid(entry["shape"], np.array(entry["affine"], float))
    if entry.get("crop"):
        if any(stop > n for (_, stop), n in zip(entry["crop"], shape)):
            raise UserError(f"{entry['id']}: the manifest says that it was cropped to more than it was; preprocess anew")
        shift = np.eye(4)
        shift[:3, 3] = [start for start, _ in entry["crop"]]
        shape, affine = tuple(stop - start for start, stop in entry["crop"]), affine @ shift
    return shape, affine


# ------------------------------------------------------------------------------------------------------ bias field

def load_n4():
    """SimpleITK, or UserError with the mend."""
    try:
        import SimpleITK
    except ImportError:
        raise UserError("--n4: needs SimpleITK; pip install -r requirements-extra.txt") from None
    return SimpleITK


def bias_field(array, edges, mask=None, threads=1):
    """The logarithm of a scan's bias field by N4 (Tustison et al. 2010), on a coarse grid over the same field of view.

    N4 runs on the scan sampled to at most N4_GRID voxels an axis, inside the mask, or else above Otsu's threshold.

    :return: float32, smooth; `divide_bias` and `multiply_bias` take it
    :raises UserError: negative intensities, which have no logarithm
    """
    sitk = load_n4()
    if array.min() < 0:
        raise UserError(f"--n4: its intensities go down to {array.min():g}, and N4 takes their logarithm; give the scan as it was "
                        "before they were scaled")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    shape = np.array(array.shape)
    coarse = np.maximum(4, np.ceil(shape / max(1, shape.max() / N4_GRID))).astype(int)
    image = sitk.GetImageFromArray(geometry.resample(array, coarse).transpose(2, 1, 0))    # ITK counts the last axis first
    image.SetSpacing([float(s) for s in np.array(edges) * shape / coarse])
    if mask is None:
        where = sitk.OtsuThreshold(image, 0, 1, 200)
    else:
        small = geometry.resample(mask.astype(np.float32), coarse) >= 0.5
        if not small.any():
            raise UserError("--n4: its mask is too small to estimate a bias field in")
        where = sitk.GetImageFromArray(small.astype(np.uint8).transpose(2, 1, 0))
        where.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    try:
        n4.Execute(image, where)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    except RuntimeError as e:
        raise UserError(f"--n4: no bias field can be estimated ({str(e).strip().splitlines()[-1].strip()}); leave the scan out") from None
    return np.clip(field, -5, 5).astype(np.float32)


def divide_bias(array, field):
    """Takes a bias field out of a scan; the inverse of `multiply_bias`."""
    return array / np.exp(geometry.resample(field, array.shape))


def multiply_bias(array, field):
    """Puts a bias field back; the inverse of `divide_bias`."""
    return array * np.exp(geometry.resample(field, array.shape))
