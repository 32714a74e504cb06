"""The formats of scan files: one entry each in SCAN_FORMATS, read by `read_scan`.

What users see of formats (which files a folder search takes, ids, errors, preprocess.py --help)
follows from the registry. To add a format, write its reader and its entry here, and a test.
"""
import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mri import nifti
from mri.not_a_scan import check_file
from mri.scan_volume import (
    MAX_FILE_BYTES,
    ScanVolume,
    check_affine,
    check_intensities,
    check_shape,
    replace_nan,
)
from utils.errors import UserError, shorten

IDENTITY = "identity"                # value of --affine: 1 mm voxels, axes R A S
MAX_AFFINE_FILE_BYTES = 2 ** 16      # of a text file or a .npy that holds an affine
MAX_NPY_HEADER_BYTES = 10_000        # np.load's own limit, which it checks after reading


@dataclasses.dataclass(frozen=True)
class ScanFormat:
    """How scans of one format are recognized and read."""
    help: str                   # a phrase for --help
    suffixes: tuple             # of a scan's file name
    read: Callable              # (path, volume) -> ScanVolume; without an affine if files have none
    read_affine: Callable | None  # path -> (affine, warnings); None: files of the format have none
    voxel_suffixes: tuple = ()  # of a second file that holds the voxels; it can name the scan, too

    @property
    def has_affine(self):
        """Whether a file says where its voxels are in the world."""
        return self.read_affine is not None

    @property
    def all_suffixes(self):
        """Suffixes of every file that can name a scan."""
        return self.suffixes + self.voxel_suffixes


# --------------------------------------------------------------------------------------- registry

def _read_npy(path, volume):
    """Reads one volume of a NumPy array, (X, Y, Z) or (X, Y, Z, N), without its affine."""
    mapped = _open_npy(path)
    volumes = check_shape(path, mapped.shape, volume)
    try:
        with np.errstate(all="ignore"):
            array = _read_volume_of_npy(path, mapped, volume or 0)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: changed while it was read ({shorten(e)}); run again once it is "
                        "complete") from None
    return ScanVolume(array, affine=None, volumes=volumes)


def _read_volume_of_npy(path, mapped, volume):
    """One volume, (X, Y, Z) float32, read plane by plane.

    Not through the map: where a file becomes shorter, that would end the process.

    :raises ValueError: the file has become shorter
    """
    array = np.empty(mapped.shape[:3], np.float32)
    first_is_slowest = mapped.flags.c_contiguous
    volumes = math.prod(mapped.shape[3:])
    planes = array if first_is_slowest else array.transpose(2, 0, 1)
    with open(path, "rb") as f:
        f.seek(mapped.offset + (0 if first_is_slowest else volume * array.size * mapped.itemsize))
        for plane in planes:
            if first_is_slowest:
                read = np.fromfile(f, mapped.dtype, plane.size * volumes)
                plane[...] = read.reshape(*plane.shape, volumes)[..., volume]
            else:
                plane[...] = np.fromfile(f, mapped.dtype, plane.size).reshape(plane.shape,
                                                                              order="F")
    return array


SCAN_FORMATS = {
    "nifti": ScanFormat(
        help="NIfTI (.nii, .nii.gz)",
        suffixes=(".nii", ".nii.gz"),
        read=nifti.read_volume,
        read_affine=nifti.read_affine),
    "nifti-pair": ScanFormat(
        help="NIfTI pairs (.hdr with .img)",
        suffixes=(".hdr", ".hdr.gz"),
        voxel_suffixes=(".img", ".img.gz"),
        read=nifti.read_volume,
        read_affine=nifti.read_affine),
    "mgh": ScanFormat(
        help="FreeSurfer MGH (.mgz, .mgh)",
        suffixes=(".mgz", ".mgh"),
        read=nifti.read_volume,
        read_affine=nifti.read_affine),
    "npy": ScanFormat(
        help="NumPy arrays (.npy, with --affine)",
        suffixes=(".npy",),
        read=_read_npy,
        read_affine=None),
}
SCAN_SUFFIXES = tuple(suffix for f in SCAN_FORMATS.values() for suffix in f.suffixes)


def format_of(path):
    """The ScanFormat that a file's name stands for; None for a name that no format has.

    Capitals do not matter: .NII.GZ is .nii.gz.
    """
    name = Path(path).name.lower()
    for scan_format in SCAN_FORMATS.values():
        if name.endswith(scan_format.all_suffixes):
            return scan_format
    return None


def is_scan_name(path):
    """Whether a file is named as a scan, in capitals or not; the second half of a pair is not."""
    return Path(path).name.lower().endswith(SCAN_SUFFIXES)


def needs_affine(path):
    """Whether a file is of a format that does not say where its voxels are."""
    return Path(path).name.lower().endswith(suffixes_without_affine())


def may_be_analyze(path):
    """Whether a file's name is that of one half of a pair, NIfTI or Analyze."""
    return format_of(path) is SCAN_FORMATS["nifti-pair"]


def stem(path):
    """A scan's file name without its suffix: "sub-01_T1w" for sub-01_T1w.nii.gz."""
    name = Path(path).name
    scan_format = format_of(path)
    if scan_format is None:
        return name
    suffix = next(s for s in scan_format.all_suffixes if name.lower().endswith(s))
    return name[:-len(suffix)]


def suffix_phrase():
    """All suffixes, for errors: ".nii or .nii.gz (or .hdr, …)"."""
    first, *others = SCAN_FORMATS.values()
    more = [suffix for scan_format in others for suffix in scan_format.suffixes]
    return f"{' or '.join(first.suffixes)} (or {', '.join(more)})"


def help_phrase():
    """All formats, for --help."""
    return ", ".join(scan_format.help for scan_format in SCAN_FORMATS.values())


def suffixes_without_affine():
    """Suffixes of the formats that need --affine."""
    return tuple(suffix for scan_format in SCAN_FORMATS.values() if not scan_format.has_affine
                 for suffix in scan_format.suffixes)


def read_scan(path, volume=None, affine=None, orientation=None, nan_to_zero=False):
    """Reads one 3D volume of a scan file of any format.

    :param volume: number of the volume, from 0; None: the file must have one
    :param affine: (4, 4), mm, for formats without an affine; not used for the others
    :param orientation: directions of the axes, such as "LAS", for Analyze 7.5 files, which do not
        say it; not used for the others
    :param nan_to_zero: set NaN to 0, with a warning, instead of refusing the scan
    :return: ScanVolume
    :raises UserError: damaged, truncated, larger than it can be, not 3D, no real numbers, without
        an affine or with an implausible one, NaN, infinite or constant
    """
    path = Path(path)
    scan_format = format_of(path) or SCAN_FORMATS["nifti"]  # which says so if it is none
    if scan_format.has_affine and orientation and nifti.is_analyze(path):
        scan = nifti.read_analyze(path, volume, orientation)
    elif scan_format.has_affine:
        scan = scan_format.read(path, volume)
    elif affine is None:
        raise UserError(
            f"{path}: has no affine, so left and right are unknown; give --affine FILE, "
            f"or --affine {IDENTITY} for voxels of 1 mm and axes right, anterior, superior")
    else:
        scan = scan_format.read(path, volume)
        scan = dataclasses.replace(scan, affine=np.array(affine, float))
    if nan_to_zero:
        scan = replace_nan(scan)
    check_intensities(path, scan.array)
    return scan


# ------------------------------------------------------------------------------------ NumPy files

def _open_npy(path):
    """The array of a .npy file, mapped from disk, not read."""
    array = _load_npy(path, MAX_FILE_BYTES)
    if array.dtype.kind == "c":
        raise UserError(f"{path}: holds complex numbers ({array.dtype}); save their magnitude, and "
                        "give that")
    if array.dtype.kind not in "iuf":
        raise UserError(f"{path}: holds values of type {shorten(array.dtype, 60)}, not "
                        "intensities; save integers or floats")
    return array


def _load_npy(path, max_bytes):
    """np.load without pickles; the size is checked first, and any error is a UserError."""
    check_file(path)
    file_bytes = path.stat().st_size
    if file_bytes > max_bytes:
        raise UserError(f"{path}: {file_bytes} bytes, more than the {max_bytes} that are read")
    try:
        _check_npy_header(path)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # a damaged header can end its parser in any way, even in MemoryError
        raise UserError(f"{path}: cannot be read as a NumPy array of numbers ({shorten(e)}); "
                        "save it again with numpy.save") from None


def _check_npy_header(path):
    """Raises ValueError unless a file begins like a .npy file with a header of plausible length.

    np.load would take any other file for a pickle, and memory for any length.
    """
    with open(path, "rb") as f:
        version = np.lib.format.read_magic(f)
        length = int.from_bytes(f.read(2 if version == (1, 0) else 4), "little")
    if length > MAX_NPY_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes")


# ----------------------------------------------------------------------------------------- affine

def read_affine(source):
    """The affine that --affine names.

    :param source: "identity"; or a file: a scan that has an affine, a .npy or text file with 4 x 4
        numbers, as numpy.savetxt writes it
    :return: affine (4, 4) float64, mm; warnings, a tuple of lines
    :raises UserError: missing, unreadable, not 4 x 4, or no plausible affine
    """
    if source == IDENTITY:
        return np.eye(4), ()
    path = Path(source)
    scan_format = format_of(path)
    found_warnings = ()
    try:
        if path.name.lower().endswith(".npy"):
            affine = _load_npy(path, MAX_AFFINE_FILE_BYTES)
        elif scan_format and scan_format.has_affine:
            affine, found_warnings = scan_format.read_affine(path)
        else:
            affine = _read_text(path)
        if affine.shape != (4, 4) or affine.dtype.kind not in "iuf":
            raise UserError(f"{path}: holds an array of shape {affine.shape}, type "
                            f"{shorten(affine.dtype, 60)}, not the 4 x 4 numbers of an affine")
        affine = np.array(affine, float)
        with np.errstate(all="ignore"):
            check_affine(path, affine)
    except UserError as e:
        raise UserError(f"--affine {e}") from None
    return affine, found_warnings


def _read_text(path):
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file, or {IDENTITY}")
    if path.stat().st_size > MAX_AFFINE_FILE_BYTES:
        raise UserError(f"{path}: larger than the {MAX_AFFINE_FILE_BYTES >> 10} KiB that are read; "
                        "does it hold 4 x 4 numbers?")
    try:
        # an open file, as np.loadtxt would decompress a .gz by its name
        with open(path, encoding="utf-8") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.loadtxt(f, ndmin=2)
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: does not hold 4 rows of 4 numbers ({shorten(e)})") from None
