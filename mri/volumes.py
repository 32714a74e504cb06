"""Scan <-> volume: finding scans, orientation, resampling, intensity window, affine. Each pair of inverses side by side.

A *volume* is a cube (D, D, D) in RAS orientation with intensities in [0, 1], stored as uint8 * 1/255. Nothing moves in
the world: whenever the grid changes, the affine changes with it, so that a point keeps its world coordinates (mm).
"""
import csv
import glob
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from mri.nifti import SUFFIXES, read_nifti, read_scan, stem, voxel_sizes, write_nifti  # noqa: F401 - by these names too
from utils.cli import UserError, safe_name

FITS = ("stretch", "pad")
MAX_TSV = 2 ** 26  # bytes


# ------------------------------------------------------------------------------------------------- finding scans

@dataclass(frozen=True)
class Scan:
    """Where a scan is, and whose it is."""
    id: str         # unique in the cohort; names its files
    subject: str    # one person may have several scans
    path: Path


def find_scans(source, flag="--input"):
    """The scans of a folder, a glob pattern or a TSV, sorted by id.

    In a folder, searched with its subfolders, a BIDS tree is known by its `*_T1w` files: those alone are taken, and
    derivatives/ and sourcedata/ are left out. A TSV has a column `path` (relative to the TSV), and may have `id` and
    `subject` (or `participant_id`). Else the id is the file's name, the subject its BIDS entity `sub-…`, or the id.

    :raises UserError: no scans, two of one id, a TSV without the column, an id that cannot name a file
    """
    source = str(source)
    if source.endswith(".tsv"):
        scans = _scans_of_tsv(Path(source))
    else:
        if Path(source).is_dir():
            root = Path(source)
            paths = [p for p in root.rglob("*") if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
            if any(stem(p).endswith("_T1w") for p in paths):
                derived = {"derivatives", "sourcedata"}
                paths = [p for p in paths if stem(p).endswith("_T1w") and not derived & set(p.relative_to(root).parts)]
        elif Path(source).is_file():
            paths = [Path(source)]
        else:
            paths = [Path(p) for p in glob.glob(source, recursive=True) if p.endswith(SUFFIXES)]
        scans = [Scan(stem(p), _bids_subject(p) or stem(p), p) for p in paths]
    if not scans:
        raise UserError(f"{flag} {source}: no .nii or .nii.gz (or .hdr, .mgz) files; name a folder, a glob in quotes, or a .tsv")
    seen = {}
    for scan in scans:
        if not safe_name(scan.id):
            raise UserError(f"{scan.path}: its id {scan.id!r} cannot name a file; give another in a TSV's column `id`")
        if scan.id in seen:
            raise UserError(f"{scan.path}: has the id {scan.id!r} of {seen[scan.id]} too; "
                            "rename one, or list both in a TSV with columns `path` and `id`")
        seen[scan.id] = scan.path
    return sorted(scans, key=lambda s: s.id)


def _scans_of_tsv(path):
    rows = read_tsv(path)
    if rows and "path" not in rows[0]:
        raise UserError(f"{path}: has no column `path`; its columns are {', '.join(rows[0])}")
    scans = []
    for row in rows:
        file = path.parent / row["path"]
        scan_id = row.get("id") or stem(file)
        subject = row.get("subject") or row.get("participant_id") or _bids_subject(file) or scan_id
        scans.append(Scan(scan_id, subject, file))
    return scans


def read_tsv(path):
    """The rows of a tab-separated file as dicts. Raises UserError when it cannot be read as one."""
    try:
        if Path(path).stat().st_size > MAX_TSV:
            raise UserError(f"{path}: larger than the {MAX_TSV >> 20} MiB that are read; is it a table?")
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f, delimiter="\t", restval="", strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: not a tab-separated text file ({e})") from None
    if any(None in row for row in rows):
        raise UserError(f"{path}: a row has more cells than the header; is it tab-separated?")
    return rows


def _bids_subject(path):
    found = re.match(r"(sub-[A-Za-z0-9]+)(?:_|$)", stem(path))
    return found and found[1]


# -------------------------------------------------------------------------------------------- file order <-> RAS

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


# --------------------------------------------------------------------------------------------- RAS array <-> cube

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


# -------------------------------------------------------------------------------------------- intensities <-> uint8

def intensity_window(array, percentiles):
    """The intensities (lo, hi) at two percentiles of all voxels. Raises ValueError when they coincide."""
    values = in_memory_order(np.asarray(array))[0].ravel()
    lo, hi = (percentile(values, p) for p in percentiles)
    if not hi > lo:
        raise ValueError(f"the percentiles {percentiles[0]:g} and {percentiles[1]:g} are both {lo:g}")
    return lo, hi


def percentile(values, q):
    """`np.percentile(values, [q])` to the bit; near the ends, such as 99.9, several times faster.

    Only the values beyond a threshold are sorted. A sample suggests it; that enough lie beyond it is counted.

    :param values: (N,), finite
    """
    if q in (0, 100):
        return float(values.min() if q == 0 else values.max())
    n = len(values)
    below, part = divmod(q / 100 * (n - 1), 1)          # the value sought lies between those of rank `below` and `below` + 1
    below, sample = int(below), np.sort(values[::max(1, n // 50_000)])
    reach = int(2 * min(q, 100 - q) / 100 * len(sample)) + 8
    if reach < len(sample):
        beyond = values[values >= sample[-reach]] if q > 50 else values[values <= sample[reach - 1]]
        rank = below - (n - len(beyond)) if q > 50 else below
        if 0 <= rank <= len(beyond) - (2 if part else 1):
            pair = np.partition(beyond, (rank, min(rank + 1, len(beyond) - 1)))[rank:rank + 2]
            return float(np.quantile(pair, [part])[0])
    return float(np.percentile(values, [q])[0])  # in a list, for a number alone is rounded to the array's float32


def to_uint8(array, window):
    """Maps lo…hi to 0…255, clipped and rounded; the inverse, up to that, of `from_uint8`."""
    lo, hi = window
    x = (np.asarray(array, np.float32) - lo) / (hi - lo)
    np.clip(x, 0, 1, out=x)
    x *= 255
    return np.rint(x, out=x).astype(np.uint8)


def from_uint8(volume, window=(0.0, 1.0)):
    """Maps 0…255 to lo…hi (float32)."""
    lo, hi = window
    return (np.asarray(volume, np.float32) / 255 * (hi - lo) + lo).astype(np.float32)
