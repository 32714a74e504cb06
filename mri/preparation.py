"""What people do to scans by hand before a model sees them: brain mask, crop, bias correction.

Each is beside what undoes it; a mask cannot be undone, as what it removed is gone. Arrays are in
RAS order, (X, Y, Z) float32; affines are (4, 4), voxel -> world, mm. A box is [[start, stop], …],
voxels along each axis.
"""
import glob
import re
from pathlib import Path

import numpy as np

from mri import geometry, nifti
from mri.scan_formats import stem
from mri.scans import real_path
from utils.errors import UserError

MASK_THRESHOLD = 0.5
PLACEHOLDERS = ("id", "subject", "session", "run", "name", "dir")  # in a pattern for masks
MIN_BORDER_FRACTION = 0.9    # of a skull-stripped scan's border that has one value
MAX_BRAIN_FRACTION = 0.9     # of a skull-stripped scan that differs from the border
MIN_AXIS_VOXELS = 2          # of a volume
N4_MAX_AXIS_VOXELS = 64      # of the grid that N4 works on
N4_MIN_AXIS_VOXELS = 4
N4_MAX_NEGATIVE = 0.1        # of the highest intensity: interpolation leaves such, z-scores do not
OTSU_BINS = 200              # of the histogram that Otsu's threshold is found in
MAX_LOG_BIAS = 5             # larger ones are estimated where there is no signal


# ------------------------------------------------------------------------------------------- mask

def check_mask_pattern(pattern):
    """Checks the placeholders of a pattern for masks.

    :raises UserError: braces hold anything but PLACEHOLDERS
    """
    names = re.findall(r"\{(.*?)\}", pattern)
    unknown = [name for name in names if name not in PLACEHOLDERS]
    if unknown or pattern.count("{") != pattern.count("}"):
        known = ", ".join("{" + name + "}" for name in PLACEHOLDERS)
        raise UserError(f"--mask {pattern}: knows {known}, and nothing else in braces; for example "
                        "'{dir}/{name}_mask.nii.gz'")


def mask_paths(pattern, scan):
    """Paths that a scan's mask may have; several only where the pattern has a `*`.

    :param pattern: with {id} and {subject} as in the manifest, {session} and {run} such as "ses-1"
        and "run-1", {name} for the file's name without suffix, {dir} for its folder, and `*` for
        anything in a name; None: the scan's own mask, from its list, alone
    :param scan: Scan
    :return: list, empty where the scan has none or lacks the session or run
    """
    if scan.mask is not None:
        return [scan.mask]
    if pattern is None:
        return []
    values = {"id": scan.id, "subject": scan.subject, "session": scan.session, "run": scan.run,
              "name": stem(scan.path), "dir": str(scan.path.parent)}
    names = re.findall(r"\{(\w+)\}", pattern)
    if any(values[name] is None for name in names):
        return []
    if "*" not in pattern:
        return [Path(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], pattern))]
    text = re.sub(r"\{(\w+)\}", lambda match: glob.escape(values[match[1]]), pattern)
    return [Path(name) for name in sorted(glob.glob(text))]


def masks_of(pattern, cohort):
    """Real paths of the masks of scans, as a set.

    :param cohort: list of Scan
    """
    return {real_path(path) for scan in cohort for path in mask_paths(pattern, scan)}


def find_mask(pattern, scan):
    """Path of a scan's mask, or None where neither a pattern nor a list says that it has one.

    :raises UserError: no file, or several, fit the pattern
    """
    paths = mask_paths(pattern, scan)
    if len(paths) == 1:
        return paths[0]
    if pattern is None:
        return None
    lacks = [name for name in ("session", "run")
             if "{" + name + "}" in pattern and getattr(scan, name) is None]
    if lacks:
        raise UserError(f"--mask {pattern}: the scan has no {lacks[0]} in its name")
    listed = f" ({paths[0]}, {paths[1]}, …)" if paths else ""
    raise UserError(f"--mask {pattern}: {len(paths) or 'no'} files fit{listed}; one must")


def read_mask(path, shape, affine):
    """Reads a brain mask that lies on the grid of a RAS array.

    :param shape, affine: of the array
    :return: bool, of `shape`: True where the file holds more than MASK_THRESHOLD
    :raises UserError: missing, unreadable, on another grid, or empty
    """
    mask, mask_affine = geometry.to_ras(*nifti.read_nifti(path))
    distance = geometry.max_corner_distance(shape, mask_affine, affine)
    if mask.shape != tuple(shape) or distance > geometry.voxel_sizes(affine).min() / 2:
        raise UserError(f"{path}: a mask of {' x '.join(map(str, mask.shape))} voxels up to "
                        f"{distance:.3g} mm away, the scan has {' x '.join(map(str, shape))}; "
                        "resample the mask to the scan's grid")
    mask = mask > MASK_THRESHOLD
    if not mask.any():
        raise UserError(f"{path}: an empty mask, no voxel is above {MASK_THRESHOLD}; make it again")
    return mask


def apply_mask(array, mask):
    """Sets what is outside a mask to 0, or to the brain's minimum where that is negative: dark."""
    return np.where(mask, array, np.float32(min(0.0, array[mask].min())))


# ------------------------------------------------------------------------------------------- crop

def border(array):
    """The most common value of an array's outermost voxels, and the fraction that has it."""
    faces = [np.moveaxis(array, axis, 0)[k].ravel() for axis in range(3) for k in (0, -1)]
    voxels = np.concatenate(faces)
    values, counts = np.unique(voxels, return_counts=True)
    return float(values[counts.argmax()]), counts.max() / len(voxels)


def brain_box(array, voxel_sizes, margin, mask=None):
    """The box around the brain: of the mask, or of all that differs from the border's one value.

    :param voxel_sizes: (3,), mm
    :param margin: kept around the brain, mm
    :param mask: bool, of the array's shape, or None
    :return: box
    :raises UserError: no mask, and a background of several values, so that nothing says where the
        brain ends
    """
    if mask is None:
        mask = differs_from_border(
            array, "--crop brain: its background is not of one value, so it is not known where "
            "the brain ends; give --mask, or skull-strip it")
    box = []
    for axis in range(3):
        across = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.any(axis=across))
        margin_voxels = int(np.ceil(margin / voxel_sizes[axis]))
        length = array.shape[axis]
        start = max(0, int(inside[0]) - margin_voxels)
        stop = min(length, int(inside[-1]) + 1 + margin_voxels)
        if stop - start < MIN_AXIS_VOXELS:
            start = min(start, length - MIN_AXIS_VOXELS)
            stop = start + MIN_AXIS_VOXELS
        box.append([start, stop])
    return box


def differs_from_border(array, error):
    """Which voxels of a skull-stripped scan are not background, which has one value all around.

    :param error: message where the background has several
    :return: bool, of the array's shape
    :raises UserError: it has
    """
    value, fraction = border(array)
    mask = array != value
    if fraction < MIN_BORDER_FRACTION or mask.mean() > MAX_BRAIN_FRACTION:
        raise UserError(error)
    return mask


def crop(array, box):
    """The part of an array inside a box; the inverse of `uncrop`."""
    return np.ascontiguousarray(array[tuple(slice(*interval) for interval in box)])


def cropped_affine(affine, box):
    """Affine of what `crop` keeps, from that of the whole array."""
    shift = np.eye(4)
    shift[:3, 3] = [start for start, _ in box]
    return affine @ shift


def uncrop(array, box, shape, outside):
    """Puts what `crop` took back into its place.

    :param shape: of the whole array
    :param outside: intensity around the box
    """
    whole = np.full(shape, outside, array.dtype)
    whole[tuple(slice(*interval) for interval in box)] = array
    return whole


def prepared_grid(entry):
    """Shape and affine of the RAS array that became a volume's cube: the scan's, or its crop's.

    Of a registered scan, those of the field of view in the template's space.

    :param entry: of the manifest
    :raises UserError: the entry's crop is not inside its scan
    """
    registered = entry.get("registration")
    if registered:
        return tuple(registered["shape"]), np.array(registered["affine"], float)
    shape, affine = geometry.ras_grid(entry["shape"], np.array(entry["affine"], float))
    box = entry.get("crop")
    if not box:
        return shape, affine
    if any(stop > length for (_, stop), length in zip(box, shape)):
        raise UserError(f"{entry['id']}: the manifest says that it was cropped to more than it "
                        "was; preprocess again")
    return tuple(stop - start for start, stop in box), cropped_affine(affine, box)


# ------------------------------------------------------------------------------------- bias field

def load_sitk(flag="--n4"):
    """The module SimpleITK.

    :param flag: that needs it, for the error
    :raises UserError: it is not installed
    """
    try:
        import SimpleITK
    except ImportError:
        raise UserError(f"{flag}: needs SimpleITK; pip install -r requirements-extra.txt"
                        ) from None
    return SimpleITK


def bias_field(array, voxel_sizes, mask=None, threads=1):
    """The logarithm of a scan's bias field by N4 (Tustison et al. 2010, IEEE TMI 29:1310).

    N4 works on the scan sampled to at most N4_MAX_AXIS_VOXELS along an axis, inside the mask, or
    else above Otsu's threshold.

    :param voxel_sizes: (3,), mm
    :param mask: bool, of the array's shape, or None
    :return: float32, smooth, on that coarse grid over the same field of view; for `divide_bias` and
        `multiply_bias`; what was added to the intensities for this, 0 or more: negative ones have
        no logarithm
    :raises UserError: clearly negative intensities, or N4 fails
    """
    sitk = load_sitk()
    shift = max(0.0, -float(array.min()))
    if shift > N4_MAX_NEGATIVE * array.max():
        raise UserError(f"--n4: its intensities go down to {array.min():g}, and N4 takes their "
                        "logarithm; give the scan as it was before they were scaled")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    shape = np.array(array.shape)
    shrink = max(1, shape.max() / N4_MAX_AXIS_VOXELS)
    coarse_shape = np.maximum(N4_MIN_AXIS_VOXELS, np.ceil(shape / shrink)).astype(int)
    coarse = geometry.resample(array, coarse_shape)
    image = _to_sitk(sitk, coarse + np.float32(shift) if shift else coarse)
    image.SetSpacing([float(size) for size in np.array(voxel_sizes) * shape / coarse_shape])
    region = _n4_region(sitk, image, mask, coarse_shape)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    try:
        n4.Execute(image, region)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    except RuntimeError as e:
        last_line = str(e).strip().splitlines()[-1].strip()
        raise UserError(f"--n4: no bias field can be estimated ({last_line}); "
                        "leave the scan out") from None
    return np.clip(field, -MAX_LOG_BIAS, MAX_LOG_BIAS).astype(np.float32), shift


def _n4_region(sitk, image, mask, coarse_shape):
    """Where N4 estimates the bias field, as a SimpleITK image."""
    if mask is None:
        return sitk.OtsuThreshold(image, 0, 1, OTSU_BINS)
    coarse_mask = geometry.resample(mask.astype(np.float32), coarse_shape) >= 0.5
    if not coarse_mask.any():
        raise UserError("--n4: its mask is too small to estimate a bias field in")
    region = _to_sitk(sitk, coarse_mask.astype(np.uint8))
    region.CopyInformation(image)
    return region


def _to_sitk(sitk, array):
    return sitk.GetImageFromArray(array.transpose(2, 1, 0))  # ITK counts the axes from the last


def divide_bias(array, field):
    """Removes a bias field from a scan; the inverse of `multiply_bias`.

    :param field: its logarithm, on any grid over the same field of view
    """
    return array / np.exp(geometry.resample(field, array.shape))


def multiply_bias(array, field):
    """Puts a bias field back into a scan; the inverse of `divide_bias`."""
    return array * np.exp(geometry.resample(field, array.shape))
