"""Headers of NIfTI and MGH files: how the voxels lie in the file, and where the volume is.

nibabel parses a header and fixes small faults. Nothing that it claims is believed before it is
checked, and header extensions are not parsed.
"""
import contextlib
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from mri import geometry, scan_stream
from mri.scan_volume import check_affine
from utils.errors import UserError

MAX_OFFSET_BYTES = 2 ** 26     # before the voxels: header and extensions
HEADER_BYTES = 540             # of the largest header, NIfTI-2's
MGH_HEADER_BYTES = 284         # before the voxels
MM_PER_UNIT = {"unknown": 1, "mm": 1, "meter": 1000, "micron": 0.001}


@dataclass(frozen=True)
class VoxelLayout:
    """How the voxels lie in a file, as its header claims it."""
    shape: tuple
    dtype: np.dtype
    offset: int       # of the first voxel, bytes
    slope: float      # intensity = slope * stored + intercept
    intercept: float


@dataclass(frozen=True)
class Placement:
    """Where a volume lies in the world."""
    affine: np.ndarray     # (4, 4) float64, voxel -> world, mm
    codes: tuple = (1, 1)  # sform and qform codes to write with it
    warnings: tuple = ()   # what a person should know, one line each


def damaged(path, error):
    """The UserError for a file whose reader failed with `error`."""
    return UserError(f"{path}: cannot be read to its end, truncated or damaged "
                     f"({_first_line(error)}); copy it again")


def _no_nifti(path, error):
    return UserError(f"{path}: not a NIfTI image ({_first_line(error)}); convert it, or take it "
                     "out")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


# ----------------------------------------------------------------------------------------- header

class _Collector(logging.Handler):
    """Keeps the messages of a logger in a list."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def collected_warnings():
    """Yields a list of what nibabel's header checks find and fix, instead of printing it."""
    logger = nib.imageglobals.logger
    collector = _Collector()
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collector], False
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield collector.messages
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class AnalyzeError(UserError):
    """An Analyze 7.5 file, which does not say where left is."""


def read_header(path, analyze=False):
    """Reads the header of a NIfTI or MGH file.

    :param path: of the file; of a pair, either half
    :param analyze: read an Analyze 7.5 header, too
    :return: nibabel's header, checked and fixed; path of the file that holds the voxels
    :raises UserError: not such a file, an Analyze file, half of a pair, or MGH without an affine
    """
    path = _header_path(path)
    try:
        raw = scan_stream.read_beginning(path, HEADER_BYTES)
    except scan_stream.READ_ERRORS as e:
        raise damaged(path, e) from None
    try:
        header = _parse_header(path, raw, analyze)
    except UserError:
        raise
    except Exception as e:  # nibabel raises many kinds for a file that is not what its name says
        raise _no_nifti(path, e) from None
    is_single = path.name.lower().endswith((".mgz", ".mgh")) or getattr(header, "is_single", False)
    is_pair = not is_single
    return header, _voxel_path(path) if is_pair else path


def _header_path(path):
    """The .hdr of a pair that is named by its .img; any other path as it is."""
    if not path.name.lower().endswith((".img", ".img.gz")):
        return path
    base = _base_of_pair(path)
    candidates = [Path(base + suffix) for suffix in (".hdr", ".hdr.gz", ".HDR", ".HDR.GZ")]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _base_of_pair(path):
    """The path of a pair without its suffixes."""
    return re.sub(r"\.(hdr|img)(\.gz)?$", "", str(path), flags=re.IGNORECASE)


def _voxel_path(path):
    """The .img of a pair.

    :param path: of its .hdr
    """
    base = _base_of_pair(path)
    for suffix in (".img", ".img.gz", ".IMG", ".IMG.GZ"):
        candidate = Path(base + suffix)
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: half of a NIfTI pair; its voxels, {base}.img, are not beside it")


def _parse_header(path, raw, analyze):
    """nibabel's header of the right class from a file's first bytes; may raise anything."""
    if path.name.lower().endswith((".mgz", ".mgh")):
        if raw[28:30] == b"\0\0":
            raise UserError(f"{path}: no affine (its goodRASFlag is 0), so left and right are "
                            "unknown; set it first")
        # the footer, behind the voxels, holds no geometry
        return nib.freesurfer.MGHImage.header_class(raw[:MGH_HEADER_BYTES])
    if nib.Nifti1Header.may_contain_header(raw):
        is_single = raw[344:347] == b"n+1"
        header_class = nib.Nifti1Header if is_single else nib.nifti1.Nifti1PairHeader
    elif nib.Nifti2Header.may_contain_header(raw):
        is_single = raw[4:7] == b"n+2"
        header_class = nib.Nifti2Header if is_single else nib.nifti2.Nifti2PairHeader
    elif nib.AnalyzeImage.header_class.may_contain_header(raw):
        header_class = nib.AnalyzeImage.header_class
        if not analyze:
            raise AnalyzeError(f"{path}: an Analyze file, not a NIfTI: it does not say where left "
                               "is; convert the original to NIfTI, or state it, as by "
                               "--orientation LAS")
    else:
        raise UserError(f"{path}: not a NIfTI image; convert it, or take it out")
    return header_class(raw[:header_class.template_dtype.itemsize])


def read_layout(path, header):
    """How the voxels lie in the file.

    :return: VoxelLayout
    :raises UserError: no intensities (complex numbers, colors), or voxels at an impossible place
    """
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
        slope, intercept = None, None
        if hasattr(header, "get_slope_inter"):
            slope, intercept = header.get_slope_inter()
    except Exception as e:
        raise _no_nifti(path, e) from None
    if dtype.kind == "c":
        raise UserError(f"{path}: holds complex numbers ({dtype}); save their magnitude, and give "
                        "that")
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: holds colors ({len(dtype.names or [0])} values per voxel), not "
                        "intensities; convert it to one channel")
    if not _min_offset(header) <= offset <= MAX_OFFSET_BYTES:
        raise UserError(f"{path}: damaged header: its voxels begin at byte {offset}; "
                        "convert it again")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    return VoxelLayout(shape, dtype, offset, slope, intercept)


def _min_offset(header):
    """The first byte where voxels can begin."""
    if isinstance(header, nib.Nifti1Header):
        return header.single_vox_offset if header.is_single else 0
    return 0 if isinstance(header, nib.AnalyzeImage.header_class) else MGH_HEADER_BYTES


# -------------------------------------------------------------------------------------- placement

@dataclass(frozen=True)
class _Form:
    """A sform or qform of a NIfTI header; its code is 0 where it is not set."""
    affine: np.ndarray | None = None   # in the header's unit
    code: int = 0
    is_broken: bool = False


def read_placement(path, header, shape):
    """Where a volume lies. The sform is preferred to the qform, with a warning if they disagree.

    :param shape: (X, Y, Z) or more, voxels
    :return: Placement
    :raises UserError: the header does not say where the volume is, or nothing plausible
    """
    if isinstance(header, nib.Nifti1Header):
        placement = _nifti_placement(path, header, shape)
    else:  # MGH has one affine
        placement = Placement(np.asarray(header.get_affine(), float))
    check_affine(path, placement.affine)
    return placement


def _nifti_placement(path, header, shape):
    sform, qform = _sform(header), _qform(header)
    unit = _unit(header)
    mm_per_unit = MM_PER_UNIT[unit]
    found = []
    if sform.code and qform.code and not sform.affine[:3, :3].any():
        found.append(f"its sform is all zeros, although its code is {sform.code}; the qform is "
                     "used")
        sform = _Form()
    if sform.code:
        affine = sform.affine
        codes = (sform.code, qform.code or sform.code)
        disagreement = _disagreement(shape, sform, qform, mm_per_unit)
        if disagreement:
            codes = (sform.code, sform.code)
            found.append(disagreement)
    elif qform.code:
        affine = qform.affine
        codes = (qform.code, qform.code)
    else:
        also = ", or the qform broken" if qform.is_broken else ""
        raise UserError(f"{path}: no affine (sform and qform codes are 0{also}), so left and right "
                        "are unknown; set its sform first")
    affine = np.diag([mm_per_unit] * 3 + [1.0]) @ np.asarray(affine, float)
    if mm_per_unit != 1:
        found.append(f"its unit is {unit}; converted to mm")
    return Placement(affine, codes, tuple(found))


def _sform(header):
    try:
        affine, code = header.get_sform(coded=True)
    except Exception:
        return _Form()
    return _Form(affine, int(code)) if affine is not None else _Form()


def _qform(header):
    try:
        affine, code = header.get_qform(coded=True)
    except Exception:  # no rotation has such a quaternion
        return _Form(is_broken=True)
    return _Form(affine, int(code)) if affine is not None else _Form()


def _unit(header):
    """Unit of the header's affines; "unknown" is taken for mm."""
    try:
        return header.get_xyzt_units()[0]
    except KeyError:
        return "unknown"


def _disagreement(shape, sform, qform, mm_per_unit):
    """What is wrong with a qform beside a sform, as a warning; None if nothing is."""
    if qform.is_broken:
        return "its qform is broken; the sform is used"
    if not qform.code:
        return None
    distance = geometry.max_corner_distance(shape, sform.affine, qform.affine)
    if distance <= geometry.voxel_sizes(sform.affine).min() / 2:
        return None
    determinants = np.linalg.det(sform.affine[:3, :3]) * np.linalg.det(qform.affine[:3, :3])
    sides = " and about left and right" if determinants < 0 else ""
    return (f"sform and qform disagree by up to {distance * mm_per_unit:.3g} mm{sides}; "
            "the sform is used")
