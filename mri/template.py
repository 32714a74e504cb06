"""The template that scans are registered to: a brain in a standard space, and what is shown of it.
"""
import functools
import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry, scan_formats
from utils.errors import UserError

MNI_NAME = "MNI152NLin2009aSym"
MNI_CODE = 4              # of NIfTI's sform and qform: MNI152
OTHER_CODE = 2            # the same: aligned to something else
MAX_TEMPLATE_FRACTION = 0.9  # of a template's voxels that are brain


@dataclass(frozen=True, eq=False)
class Template:
    """A brain in a standard space."""
    name: str               # for the manifest, with a hash of its voxels
    code: int               # sform code of volumes in its space
    array: np.ndarray       # (X, Y, Z) float32, RAS, 0 outside the brain
    affine: np.ndarray      # (4, 4)
    mask: np.ndarray        # bool, of the array's shape


@functools.cache
def load_template(path=None):
    """The template that scans are registered to.

    :param path: text, a scan file that holds a skull-stripped brain: what is above 0 is the brain;
        None: the MNI152 template in nilearn's package
    :return: Template
    :raises UserError: no nilearn, or a file that cannot be read or is no skull-stripped brain
    """
    if path is None:
        name, code = MNI_NAME, MNI_CODE
        array, affine = _mni152()
    else:
        try:
            scan = scan_formats.read_scan(path)
        except UserError as e:
            raise UserError(f"--template {e}") from None
        name, code = str(path), OTHER_CODE
        array, affine = scan.array, scan.affine
    array, affine = geometry.to_ras(array, affine)
    array = np.ascontiguousarray(array, np.float32)
    mask = ndimage.binary_fill_holes(array > 0)
    if not 0 < mask.mean() <= MAX_TEMPLATE_FRACTION:
        raise UserError(f"--template {path}: {100 * mask.mean():.3g} % of its voxels are above 0, "
                        "which are taken for the brain; give a skull-stripped brain, 0 outside")
    digest = hashlib.sha256(array.tobytes() + affine.tobytes()).hexdigest()
    return Template(f"{name} (sha256 {digest[:12]})", code, np.where(mask, array, 0), affine, mask)


def _mni152():
    """Voxels and affine of the template in nilearn's package, of 1 mm; no download."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nilearn import datasets
            image = datasets.load_mni152_template(resolution=1)
    except ImportError:
        raise UserError("--register mni: the template is in nilearn's package; pip install -r "
                        "requirements-extra.txt, or give another one by --template FILE") from None
    return image.get_fdata(dtype=np.float32), image.affine


@functools.cache
def field_of_view(template, extent=None):
    """The grid of 1 mm over the part of a template's space that volumes show.

    :param extent: tuple of 3, mm, placed along each axis where it holds the most of the
        template's brain; None: the template's own field of view
    :return: shape (3,), affine (4, 4)
    """
    shape, affine = template.mask.shape, template.affine
    sizes = geometry.voxel_sizes(affine)
    if extent is None:
        new_shape = tuple(int(n) for n in np.maximum(2, np.rint(np.array(shape) * sizes)))
        return new_shape, geometry.grid_over(shape, affine, new_shape)
    new_shape = tuple(int(n) for n in np.rint(extent))
    to_template = np.diag([*(np.array(extent) / new_shape / sizes), 1.0])
    for axis in range(3):
        across = tuple(other for other in range(3) if other != axis)
        start = _best_start(template.mask.sum(across), extent[axis] / sizes[axis])
        to_template[axis, 3] = start + (to_template[axis, axis] - 1) / 2
    return new_shape, affine @ to_template


def _best_start(profile, length):
    """Where an interval of `length` begins that holds the most of a profile, in voxels.

    Between the first and the last of equally good ones; it may reach beyond the profile.
    """
    margin = int(np.ceil(length))
    cumulative = np.cumsum(np.pad(profile, (margin + 1, margin)))
    starts = np.arange(len(profile) + margin)
    ends = np.interp(starts + length, np.arange(len(cumulative)), cumulative)
    kept = ends - cumulative[starts]
    best = starts[kept == kept.max()]
    return (best[0] + best[-1]) / 2 - margin


def describe(template, extent):
    """What volumes will show, as a line for a person; see `field_of_view`."""
    shape, affine = field_of_view(template, extent)
    size = " x ".join(f"{n * mm:g}" for n, mm in zip(shape, geometry.voxel_sizes(affine)))
    kept = 100 * kept_fraction(template, shape, affine)
    return (f"--register: template {template.name}; the field of view, {size} mm, holds {kept:.1f} "
            "% of its brain")


def kept_fraction(template, shape, affine):
    """How much of a template's brain lies inside a grid over a field of view, 0…1."""
    inverse = np.linalg.inv(affine) @ template.affine
    voxels = apply_affine(inverse, np.argwhere(template.mask))
    return float(((voxels >= -0.5) & (voxels <= np.array(shape) - 0.5)).all(1).mean())


@functools.cache
def regions(template, extent, size, fit):
    """A template's brain and the brighter half of it, on the cube of registered volumes.

    For pictures: their borders are the edges of the template.

    :param extent: see `field_of_view`
    :param size, fit: of the cube
    :return: two arrays (size, size, size), 0…1
    """
    grid = geometry.cube_affine(*field_of_view(template, extent), size, fit)
    bright = template.array > np.median(template.array[template.mask])
    return tuple(geometry.to_grid(region, template.affine, (size,) * 3, grid)
                 for region in (template.mask, bright))
