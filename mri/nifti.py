"""NIfTI and MGH files <-> arrays with their place in the world.

Reads NIfTI-1 and -2 (.nii, .nii.gz, .hdr with .img, the pair also gzipped) and MGH (.mgz, .mgh).
nibabel does the reading, once what the header claims has been checked: no file makes it take more
memory than the file could fill, or read without end.
"""
import io
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from mri import geometry, nifti_header, scan_stream
from mri.scan_volume import (
    MAX_FILE_BYTES,
    ScanVolume,
    check_affine,
    check_intensities,
    check_shape,
)
from utils.errors import UserError
from utils.escaping import printable
from utils.files import write_bytes

MAX_TRAILING_BYTES = 2 ** 20   # after the voxels
BLOCK_BYTES = 2 ** 20          # of decompressed data read at a time
MAX_DEFLATE_RATIO = 1032       # bytes that one byte of gzip can stand for
GZIP_LEVEL = 2                 # of written files
MAX_DESCRIPTION_BYTES = 79     # the header has 80, the last one zero
SYNTHETIC_CODES = (2, 2)       # of sform and qform: aligned to the cohort, not from a scanner


def read_nifti(path):
    """Reads a NIfTI or MGH file of one volume; warnings about it go to stderr.

    :return: array (X, Y, Z) float32 in the file's axis order; affine (4, 4), mm
    :raises UserError: see `read_volume`; or NaN, infinite or constant
    """
    scan = read_volume(path)
    check_intensities(path, scan.array)
    for warning in scan.warnings:
        print(f"warning: {printable(path)}: {warning}", file=sys.stderr)
    return scan.array, scan.affine


def read_volume(path, volume=None):
    """Reads one 3D volume of a NIfTI or MGH file.

    The sform is preferred to the qform where both are set, with a warning where they disagree.

    :param volume: number of the volume, from 0; None: the file must have one
    :return: ScanVolume
    :raises UserError: not a NIfTI or MGH file, truncated, larger than it can be, not 3D, colors or
        complex numbers, no affine or an implausible one
    """
    path = Path(path)
    with nifti_header.collected_warnings() as header_warnings:
        header, voxel_path = nifti_header.read_header(path)
        layout = nifti_header.read_layout(path, header)
        volumes = check_shape(path, layout.shape, volume)
        placement = nifti_header.read_placement(path, header, layout.shape)
        array, more = _read_voxels(voxel_path, layout, volume or 0, volumes)
    faults = tuple(f"header: {' '.join(text.split())}" for text in header_warnings)
    return ScanVolume(array, placement.affine, placement.codes, volumes,
                      (*placement.warnings, *faults, *more))


def is_analyze(path):
    """Whether a file is the header or the voxels of an Analyze 7.5 image."""
    try:
        with nifti_header.collected_warnings():
            nifti_header.read_header(Path(path))
    except nifti_header.AnalyzeError:
        return True
    except UserError:  # which its reader raises again
        pass
    return False


def read_analyze(path, volume, orientation):
    """Reads one 3D volume of an Analyze 7.5 image, which says how large its voxels are, not more.

    :param volume: number of the volume, from 0; None: the file must have one
    :param orientation: directions of the axes, such as "LAS": the first runs to the left
    :return: ScanVolume; the origin of its affine is the volume's center, its code 2 ("aligned")
    :raises UserError: see `read_volume`
    """
    path = Path(path)
    with nifti_header.collected_warnings():
        header, voxel_path = nifti_header.read_header(path, analyze=True)
        layout = nifti_header.read_layout(path, header)
        volumes = check_shape(path, layout.shape, volume)
        affine = geometry.affine_of_orientation(
            layout.shape[:3], np.abs(np.array(header.get_zooms()[:3], float)), orientation)
        check_affine(path, affine)
        array, more = _read_voxels(voxel_path, layout, volume or 0, volumes)
    return ScanVolume(array, affine, (2, 2), volumes, more)


def read_affine(path):
    """Reads the affine of a NIfTI or MGH file, and none of its voxels.

    :return: affine (4, 4), mm; warnings, a tuple of lines
    :raises UserError: not a NIfTI or MGH file, no affine or an implausible one
    """
    path = Path(path)
    with nifti_header.collected_warnings():
        header, _ = nifti_header.read_header(path)
        shape = nifti_header.read_layout(path, header).shape[:3]
        check_shape(path, shape, None)
        placement = nifti_header.read_placement(path, header, shape)
    return placement.affine, placement.warnings


def write_nifti(path, volume, affine, codes=(1, 1), description=""):
    """Writes a volume as .nii.gz, atomically, the same bytes every time; units are mm.

    A qform cannot hold a sheared affine: then it holds the nearest unsheared one, and its code is 0
    so that no reader trusts it.

    :param volume: (X, Y, Z); uint8 is written as it is with slope 1/255, so that readers see
        [0, 1]; anything else as float32
    :param affine: (4, 4) voxel -> world, mm
    :param codes: of sform and qform; 1 is "scanner", 2 "aligned"
    :param description: for the header's descrip: what made the volume; cut to 79 bytes
    """
    volume = np.asarray(volume)
    # not copied: a large volume would take twice its memory
    stored = volume if volume.dtype == np.uint8 else volume.astype(np.float32, copy=False)
    image = nib.Nifti1Image(stored, None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    shift = geometry.max_corner_distance(volume.shape, image.get_qform(), affine)
    if shift > geometry.voxel_sizes(affine).min() / 2:
        image.set_qform(affine, code=0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:MAX_DESCRIPTION_BYTES]
    raw = image.to_bytes()
    if volume.dtype == np.uint8:
        # nibabel would rescale the voxels if the header had a slope before it writes them
        header = nib.Nifti1Header(raw[:348], check=False)
        header["scl_slope"], header["scl_inter"] = 1 / 255, 0
        header["cal_min"], header["cal_max"] = 0, 1
        raw = header.binaryblock + raw[348:]
    write_bytes(path, igzip.compress(raw, compresslevel=GZIP_LEVEL, mtime=0))


# ----------------------------------------------------------------------------------------- voxels

def _read_voxels(path, layout, volume, volumes):
    """One volume's intensities, (X, Y, Z) float32; warnings, a tuple of lines.

    :param volume: its number, from 0, of `volumes`
    """
    total_bytes = int(np.prod(layout.shape, dtype=object)) * layout.dtype.itemsize
    volume_bytes = total_bytes // volumes
    skipped_bytes = volume * total_bytes // volumes
    file, offset, warnings = _open_voxels(
        path, layout.offset, total_bytes, skipped_bytes, volume_bytes)
    spec = (tuple(layout.shape[:3]), layout.dtype, offset, layout.slope, layout.intercept)
    try:
        array = np.asarray(nib.arrayproxy.ArrayProxy(file, spec, mmap=False), dtype=np.float32)
    except MemoryError:
        raise
    except Exception as e:  # whatever a decoder raises
        raise nifti_header.damaged(path, e) from None
    return array, warnings


def _open_voxels(path, offset, total_bytes, skipped_bytes, volume_bytes):
    """Where nibabel finds a volume's voxels, once the file is known to hold all that it promises.

    A compressed file is read through once, to the checksum at its end, and of its bytes only those
    of the volume are kept.

    :param offset: of the first volume in the file
    :param total_bytes: of all volumes
    :param skipped_bytes, volume_bytes: before the wanted volume, and of it
    :return: file name, or file in memory; offset of the volume in it; warnings, a tuple of lines
    """
    file_bytes = path.stat().st_size
    promised = offset + total_bytes
    if promised > MAX_FILE_BYTES:
        raise UserError(f"{path}: its header claims {promised / 1e9:.3g} GB, more than the "
                        f"{MAX_FILE_BYTES / 1e9:.3g} GB that are read")
    is_gzip = scan_stream.is_gzip_name(path)
    if promised > file_bytes * (MAX_DEFLATE_RATIO if is_gzip else 1):
        raise UserError(f"{path}: truncated or damaged: its header claims {promised} bytes, the "
                        f"file has {file_bytes}{' compressed' if is_gzip else ''}; copy it again")
    first = offset + skipped_bytes
    scan_stream.check_stream(path)
    if not is_gzip:
        return str(path), first, ()
    kept, read_bytes, junk_bytes = _read_through(path, first, first + volume_bytes, promised)
    if read_bytes < promised:
        raise UserError(f"{path}: truncated or damaged: its header claims {promised} bytes, it "
                        f"holds {read_bytes}; copy it again")
    if read_bytes > promised + MAX_TRAILING_BYTES:
        raise UserError(f"{path}: holds more than the {promised} bytes that its header claims; "
                        "convert it again")
    warnings = ()
    if junk_bytes:
        warnings = (f"{junk_bytes} bytes after its gzip stream are not gzip and were not read",)
    return io.BytesIO(kept), 0, warnings


def _read_through(path, first, last, promised):
    """Decompresses a file to its end, or until it holds clearly more than it promised.

    :return: bytes first…last - 1 of it; the number of bytes read; the number of bytes of the file
        after its gzip stream, which gunzip and nibabel skip, too
    """
    kept, read_bytes = bytearray(), 0
    blocks = scan_stream.GzipBlocks(path, BLOCK_BYTES)
    try:
        for block in blocks:
            kept += block[max(first - read_bytes, 0):max(last - read_bytes, 0)]
            read_bytes += len(block)
            if read_bytes > promised + MAX_TRAILING_BYTES:
                break
    except scan_stream.READ_ERRORS as e:
        raise nifti_header.damaged(path, e) from None
    return kept, read_bytes, blocks.junk_bytes
