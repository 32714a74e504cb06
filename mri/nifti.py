"""Scan files <-> arrays with their place in the world. nibabel does the reading; what a header claims is checked before it.

Reads NIfTI-1 and -2 (.nii, .nii.gz, .hdr with .img, the pair also gzipped) and MGH (.mgz, .mgh). Files may come from anywhere:
no header makes this module take more memory than the file could fill, or read on for ever; header extensions are not parsed.
"""
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

from mri.geometry import max_corner_distance, voxel_sizes
from utils.errors import UserError
from utils.files import write_bytes

SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".mgz", ".mgh")  # a pair goes by its .hdr
MAX_VOXELS = 2 ** 29            # of one volume: 0.25 mm over a whole head is 2^28.9
MAX_AXIS = 2 ** 15 - 1          # voxels along an axis, what NIfTI-1 can write
MAX_BYTES = 2 ** 34             # of a file's data, all volumes of it
MAX_OFFSET = 2 ** 26            # bytes before the voxels: header and extensions
DEFLATE = 1032                  # bytes that one byte of gzip can stand for, at most
SLACK = 2 ** 20                 # bytes that may come after the voxels
EDGE = (0.01, 100.0)            # mm, of a voxel; beyond it the units or the affine are wrong
UNREADABLE = (OSError, EOFError, isal_zlib.error)  # what a gzip stream's reader raises
TO_MM = {"unknown": 1, "mm": 1, "meter": 1000, "micron": 0.001}


@dataclass(frozen=True)
class Source:
    """One 3D volume of a scan file."""
    array: np.ndarray   # (X, Y, Z) float32, in the file's own axis order
    affine: np.ndarray  # (4, 4) float64, voxel -> world, mm
    codes: tuple        # sform and qform codes that go with this affine
    volumes: int        # how many the file has; 1 for 3D
    warnings: tuple     # what a person should know, one line each


def stem(path):
    """A scan's file name without its suffix, .nii.gz and the like."""
    name = Path(path).name
    return next((name[:-len(s)] for s in (*SUFFIXES, ".img.gz", ".img") if name.endswith(s)), name)


def read_nifti(path):
    """The array and affine of `read_scan`, for a file of one volume; warnings go to stderr."""
    source = read_scan(path)
    for warning in source.warnings:
        print(f"warning: {path}: {warning}", file=sys.stderr)
    return source.array, source.affine


def read_scan(path, volume=None):
    """Reads one 3D volume of a scan. sform before qform where both are set, and a warning where they disagree.

    :param volume: which of several, from 0; None: the file must have one
    :raises UserError: not a NIfTI or MGH, truncated, larger than it can be, not 3D, colours or complex numbers, no affine,
        an affine that is no head's, NaN, infinite or constant
    """
    path = Path(path)
    with np.errstate(all="ignore"), warnings.catch_warnings(), _Faults() as said:
        warnings.simplefilter("ignore")
        header, data = _read_header(path)
        shape, dtype, offset, slope, inter = _layout(path, header)
        volumes = _check_shape(path, shape, volume)
        affine, codes, forms = _place(path, header, shape)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        file, offset = _checked(data, offset, size, (volume or 0) * size // volumes, size // volumes)
        try:
            proxy = nib.arrayproxy.ArrayProxy(file, (tuple(shape[:3]), dtype, offset, slope, inter), mmap=False)
            array = np.asarray(proxy, dtype=np.float32)
        except MemoryError:
            raise
        except Exception as e:  # whatever a decoder raises
            raise _damaged(data, e) from None
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise UserError(f"{path}: {bad} voxels are NaN or infinite in single precision; replace them (numpy.nan_to_num) first")
    if array.min() == array.max():
        raise UserError(f"{path}: every voxel is {array.flat[0]:g}; nothing to see, take it out")
    return Source(array, affine, codes, volumes, (*forms, *(f"header: {' '.join(s.split())}" for s in said)))


def write_nifti(path, volume, affine, codes=(1, 1)):
    """Writes a volume as .nii.gz, atomically, the same bytes every time; sform and qform set, units mm.

    A qform cannot hold a sheared affine: then it holds the nearest unsheared one and its code is 0, so that no reader trusts it.

    :param volume: (X, Y, Z); uint8 is written as it is with slope 1/255, so that readers see [0, 1]; else float32
    :param affine: (4, 4) voxel -> world, mm
    :param codes: of sform and qform; 1 is "scanner"
    """
    volume = np.asarray(volume)
    stored = volume if volume.dtype == np.uint8 else volume.astype(np.float32)
    image = nib.Nifti1Image(stored, None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    if max_corner_distance(volume.shape, image.get_qform(), affine) > voxel_sizes(affine).min() / 2:
        image.set_qform(affine, code=0)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    if volume.dtype == np.uint8:
        # nibabel would rescale the data when the header has a slope, so the slope goes into the finished header
        header = nib.Nifti1Header(bytes(raw[:348]), check=False)
        header["scl_slope"], header["scl_inter"] = 1 / 255, 0
        header["cal_min"], header["cal_max"] = 0, 1
        raw[:348] = header.binaryblock
    write_bytes(path, igzip.compress(bytes(raw), compresslevel=2, mtime=0))


# --------------------------------------------------------------------------------------- what a header says, and is worth

class _Faults(logging.Handler):
    """Collects what nibabel's header checks find and mend, instead of letting it go to stderr."""

    def __enter__(self):
        self.said, logger = [], nib.imageglobals.logger
        self.before = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [self], False
        return self.said

    def emit(self, record):
        self.said.append(record.getMessage())

    def __exit__(self, *_):
        nib.imageglobals.logger.handlers, nib.imageglobals.logger.propagate = self.before


def _open(path):
    """The file as a stream of decompressed bytes. Raises UserError when its name and its first bytes contradict each other."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    named = path.name.endswith((".gz", ".mgz"))
    if zipped and not named:
        raise UserError(f"{path}: not a NIfTI image but gzip-compressed; add .gz to its name")
    if named and not zipped:
        raise UserError(f"{path}: not a NIfTI image: not gzip-compressed as its name says; rename it, or copy it anew")
    return igzip.open(path) if zipped else open(path, "rb")


def _read_header(path):
    """nibabel's header of a scan, checked and mended, and the path of the file that holds the voxels."""
    if path.name.endswith((".img", ".img.gz")):
        base = str(path).removesuffix(".gz").removesuffix(".img")
        path = next((p for p in (Path(base + ".hdr"), Path(base + ".hdr.gz")) if p.is_file()), Path(base + ".hdr"))
    try:
        with _open(path) as f:
            raw = f.read(540)
    except UNREADABLE as e:
        raise _damaged(path, e) from None
    try:
        if path.name.endswith((".mgz", ".mgh")):
            if raw[28:30] == b"\0\0":
                raise UserError(f"{path}: no affine (its goodRASFlag is 0), so left and right are unknown; set it first")
            return nib.freesurfer.MGHImage.header_class(raw[:284]), path  # the footer, behind the voxels, holds no geometry
        if nib.Nifti1Header.may_contain_header(raw):
            single, one = raw[344:347] == b"n+1", True
        elif nib.Nifti2Header.may_contain_header(raw):
            single, one = raw[4:7] == b"n+2", False
        elif nib.AnalyzeImage.header_class.may_contain_header(raw):
            raise UserError(f"{path}: an Analyze file, not a NIfTI: it does not say where left is; convert the original to NIfTI")
        else:
            raise UserError(f"{path}: not a NIfTI image; convert it, or take it out")
        if single:
            cls = nib.Nifti1Header if one else nib.Nifti2Header
        else:
            cls = nib.nifti1.Nifti1PairHeader if one else nib.nifti2.Nifti2PairHeader
        header = cls(raw[:cls.template_dtype.itemsize])
    except UserError:
        raise
    except Exception as e:  # nibabel raises many kinds for a file that is not what its name says
        raise UserError(f"{path}: not a NIfTI image ({_first_line(e)}); convert it, or take it out") from None
    if single:
        return header, path
    base = str(path).removesuffix(".gz").removesuffix(".hdr")
    data = next((p for p in (Path(base + ".img"), Path(base + ".img.gz")) if p.is_file()), None)
    if data is None:
        raise UserError(f"{path}: half of a NIfTI pair; its voxels, {base}.img, are not beside it")
    return header, data


def _layout(path, header):
    """Shape, dtype, offset, slope and intercept of the voxels in the file."""
    try:
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
        offset = int(header.get_data_offset())
        slope, inter = header.get_slope_inter() if hasattr(header, "get_slope_inter") else (None, None)
    except Exception as e:
        raise UserError(f"{path}: not a NIfTI image ({_first_line(e)}); convert it, or take it out") from None
    if dtype.kind == "c":
        raise UserError(f"{path}: holds complex numbers ({dtype}); save their magnitude, and give that")
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: holds colours ({len(dtype.names or [0])} values a voxel), not intensities; convert it to one channel")
    least = 284 if not isinstance(header, nib.Nifti1Header) else header.single_vox_offset if header.is_single else 0
    if not least <= offset <= MAX_OFFSET:
        raise UserError(f"{path}: damaged header: its voxels begin at byte {offset}; convert it anew")
    return shape, dtype, offset, 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)


def _check_shape(path, shape, volume):
    """The number of volumes; UserError unless one of them is chosen, 3D, and of a size that a head can have."""
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise UserError(f"{path}: shape {shape} is not 3D; a scan needs at least 2 voxels along each axis")
    count = int(np.prod(shape[:3], dtype=object))
    if max(shape[:3]) > MAX_AXIS or count > MAX_VOXELS:
        raise UserError(f"{path}: its header claims {' x '.join(map(str, shape[:3]))} voxels, more than the {MAX_VOXELS} that are read; "
                        "resample it, or take it out")
    n = int(np.prod(shape[3:], dtype=object)) if len(shape) > 3 else 1
    if n < 1 or any(m != 1 for m in shape[4:]):
        raise UserError(f"{path}: {len(shape)}D with shape {shape}: not a scan or a series of scans; take it out")
    if n > 1 and volume is None:
        raise UserError(f"{path}: 4D with shape {shape}: {n} volumes; choose one with --volume 0 to {n - 1}, or extract one first")
    if volume is not None and volume >= n:
        raise UserError(f"{path}: has {n} volume{'s' * (n > 1)}; there is no --volume {volume} (they count from 0)")
    return n


def _place(path, header, shape):
    """Affine in mm, the codes that go with it, and warnings. Raises UserError when the file does not say where it is."""
    if not isinstance(header, nib.Nifti1Header):                  # MGH has one affine
        affine, codes, said = np.asarray(header.get_affine(), float), (1, 1), []
    else:
        try:
            unit = header.get_xyzt_units()[0]
        except KeyError:
            unit = "unknown"
        try:
            sform, s = header.get_sform(coded=True)
        except Exception:
            sform, s = None, 0
        try:
            qform, q, broken = *header.get_qform(coded=True), False
        except Exception:  # a quaternion that is none
            qform, q, broken = None, 0, True
        s, q, said = int(s), int(q), []
        if (sform is None or not s) and (qform is None or not q):
            raise UserError(f"{path}: no affine (sform and qform codes are 0{', or the qform broken' if broken else ''}), "
                            "so left and right are unknown; set its sform first")
        if s and sform is not None:
            affine, codes = np.asarray(sform, float), (s, q or s)
            if broken:
                said.append("its qform is broken; the sform is used")
                codes = (s, s)
            elif q:
                distance = max_corner_distance(shape, sform, qform)
                if not distance <= voxel_sizes(affine).min() / 2:
                    sides = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
                    said.append(f"sform and qform disagree by up to {distance * TO_MM[unit]:.3g} mm"
                                f"{' and about left and right' if sides else ''}; the sform is used")
                    codes = (s, s)
        else:
            affine, codes = np.asarray(qform, float), (q, q)
        affine = np.diag([TO_MM[unit]] * 3 + [1.0]) @ affine
        if TO_MM[unit] != 1:
            said.append(f"its unit is {unit}; converted to mm")
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise UserError(f"{path}: its affine is not finite; set its sform first")
    edges = voxel_sizes(affine)
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * edges.prod():
        raise UserError(f"{path}: its affine is singular; set its sform first")
    if edges.min() < EDGE[0] or edges.max() > EDGE[1] or np.abs(affine).max() > 1e6:
        raise UserError(f"{path}: voxels of {' x '.join(f'{e:.3g}' for e in edges)} mm at {np.abs(affine[:3, 3]).max():.3g} mm from the "
                        "origin are no head's; mend its affine or its units")
    return affine, codes, said


def _checked(path, offset, size, skip, own):
    """Where nibabel finds the chosen volume's voxels, once the file is known to hold what its header promises, whole.

    A compressed file is read through once, to the checksum at its end, and of its bytes those of the volume are kept.

    :param offset, size: of all volumes' voxels in the file, bytes
    :param skip, own: of the chosen volume's in these
    :return: file name or file in memory, offset in it
    """
    length, promised = path.stat().st_size, offset + size
    if promised > MAX_BYTES:
        raise UserError(f"{path}: its header claims {promised / 1e9:.3g} GB, more than the {MAX_BYTES / 1e9:.3g} GB that are read")
    zipped = path.name.endswith((".gz", ".mgz"))
    if promised > length * (DEFLATE if zipped else 1):
        raise UserError(f"{path}: truncated or damaged: its header claims {promised} bytes, the file has {length}"
                        f"{' compressed' if zipped else ''}; copy it anew")
    kept, have, begin = bytearray(), 0, offset + skip
    try:
        with _open(path) as f:
            if not zipped:
                return str(path), begin
            while have <= promised + SLACK and (block := f.read(SLACK)):  # at its end gzip compares the checksum
                kept += block[max(begin - have, 0):max(begin + own - have, 0)]
                have += len(block)
    except UNREADABLE as e:
        raise _damaged(path, e) from None
    if have < promised:
        raise UserError(f"{path}: truncated or damaged: its header claims {promised} bytes, it holds {have}; copy it anew")
    if have > promised + SLACK:
        raise UserError(f"{path}: holds more than the {promised} bytes that its header claims; convert it anew")
    return io.BytesIO(kept), 0






def _damaged(path, error):
    return UserError(f"{path}: cannot be read to its end, truncated or damaged ({_first_line(error)}); copy it anew")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
