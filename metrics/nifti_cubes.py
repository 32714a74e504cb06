"""Cubes of other generators, as NIfTI or MGH files: their range of intensities and axis order."""
from collections import Counter
from pathlib import Path

import numpy as np

from mri import axis_orders, geometry, intensity, nifti
from utils.errors import UserError

DEFAULT_RANGE = (0.0, 1.0)  # intensities that mean black and white
TOLERANCE = 1e-3            # of the range: what exceeds it by less is clipped
COMMON_RANGES = ((0, 1), (-1, 1), (0, 255))
MIN_SHARE = 0.25            # of a common range that a volume takes which is said to look like it
ARRAY_SUFFIX = ".npy"       # of arrays, which preprocess.py reads


class CubeReader:
    """Reads the cubes of a folder as uint8, and counts what it clips.

    :param flag: that named the folder, such as "--synthetic"
    :param folder: of the cubes
    :param value_range: (LO, HI), intensities that mean black and white; None: 0 and 1
    :param axes: where the axes of the arrays run, see axis_orders.parse_codes; None: as the
        affines say
    :param like: header of a data folder with which the cubes are compared, for advice; or None
    """

    def __init__(self, flag, folder, value_range=None, axes=None, like=None):
        self.flag = flag
        self.folder = folder
        self.range = tuple(value_range or DEFAULT_RANGE)
        self.axes = axes and axis_orders.parse_codes(axes)
        self.like = like
        self._beyond = {}           # {path: how far its intensities exceed the range}

    def read(self, path):
        """A cube, (D, D, D) uint8 with axes right, anterior, superior, and its affine, (4, 4).

        With `axes`, where the voxels are is not known: the affine then tells their sizes alone.

        :raises UserError: no cube, or intensities outside the range
        """
        array, affine = nifti.read_nifti(path)
        if self.axes:
            array = axis_orders.to_ras(array, self.axes)
            affine = np.diag([*_turned_sizes(geometry.voxel_sizes(affine), self.axes), 1.0])
        else:
            array, affine = geometry.to_ras(array, affine)
        if len(set(array.shape)) != 1:
            raise UserError(f"{path}: shape {' x '.join(map(str, array.shape))}, not a cube; "
                            f"{self.command()} makes cubes")
        self._check_range(path, array)
        return intensity.to_uint8(array, self.range), affine

    def notes(self):
        """What was clipped so far, as lines."""
        if not self._beyond:
            return []
        lo, hi = self.range
        return [f"{self.flag} {self.folder}: clipped {len(self._beyond)} volumes to "
                f"{lo:g} … {hi:g}, which they exceed by at most {max(self._beyond.values()):.2g} "
                f"({self.flag}-range sets the range)"]

    def command(self, options=""):
        """The command that makes cubes of what the folder holds."""
        how = "--size N"
        if self.like:
            window = " ".join(f"{p:g}" for p in self.like["window_percentiles"])
            how = (f"--size {self.like['size']} --layout {self.like['layout']} "
                   f"--fit {self.like['fit']} --window {window}")
        folder = Path(self.folder)
        return (f"`python preprocess.py --input {folder}{options} {how} "
                f"--output {folder.with_name(folder.name + '-cubes')}`")

    def _check_range(self, path, array):
        lo, hi = self.range
        low, high = float(array.min()), float(array.max())
        beyond = max(lo - low, high - hi)
        if beyond > TOLERANCE * (hi - lo):
            raise UserError(
                f"{path}: intensities {low:g} to {high:g}, not within {lo:g} … {hi:g}; "
                f"{_advice(self.flag, low, high)}, or {self.command()}")
        if beyond > 0:
            self._beyond[str(path)] = beyond


def check_range(value_range, flag):
    """Raises UserError for a range that is none."""
    lo, hi = value_range
    if not (np.isfinite([lo, hi]).all() and hi > lo):
        raise UserError(f"{flag} {lo:g} {hi:g}: two finite numbers, LO < HI")


def refuse_arrays(reader, paths):
    """Raises UserError if there are .npy files, which do not say where their voxels are."""
    suffixes = Counter(Path(path).suffix.lower() for path in paths)
    count = suffixes[ARRAY_SUFFIX]
    if count:
        raise UserError(
            f"{reader.flag} {reader.folder}: holds {count} {ARRAY_SUFFIX} files, which do not say "
            f"where their voxels are; {reader.command(' --affine identity')} makes a data folder "
            "of them")


def _advice(flag, low, high):
    """Which range volumes with these intensities seem to have."""
    for lo, hi in COMMON_RANGES:
        slack = TOLERANCE * (hi - lo)
        if lo - slack <= low and high <= hi + slack and high - low > MIN_SHARE * (hi - lo):
            return f"they look like {flag}-range {lo} {hi}"
    return f"give {flag}-range LO HI, the intensities that mean black and white"


def _turned_sizes(voxel_sizes, codes):
    """Voxel sizes of an array whose axes run as the codes say, in the order R, A, S."""
    ras = np.empty(3)
    for size, code in zip(voxel_sizes, codes):
        ras["RLAPSI".index(code) // 2] = size
    return ras
