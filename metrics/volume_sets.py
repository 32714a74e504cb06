"""A set of volumes to evaluate: a data folder, a samples folder, or a folder of NIfTI cubes.

All are read by the same loader, so that no side of a comparison is treated differently.
"""
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from metrics import nifti_cubes
from mri import geometry, manifest, mosaic, mosaic_files, preparation, scans
from mri.origin import read_origin
from utils.errors import UserError
from utils.progress import progress

BLOCK_BYTES = 2 ** 24


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of one side of a comparison: where they are and how to read them."""
    flag: str                   # that named the folder, such as "--real"
    path: str
    split: str | None           # of a data folder
    ids: list
    subjects: list              # of each volume; a volume without one is its own subject
    side: int                   # D, voxels
    voxel_sizes: np.ndarray     # mm, (3,)
    read: Callable              # index -> (D, D, D) uint8, axes right, anterior, superior
    classes: list | None = None     # name of the class of each volume; None: not known
    made_by: dict = field(default_factory=dict)     # recipe of samples, see mri/origin.py
    header: dict | None = None      # of the manifest of a data or samples folder
    affine: np.ndarray | None = None    # of the first volume, or typical of the set; None: unknown
    warnings: list = field(default_factory=list)    # what is odd about the folder, as sentences
    notes: Callable = list          # () -> lines about what was read so far, such as clipping
    affine_of: Callable | None = None   # index -> (4, 4); None: only voxel_sizes are known

    def __len__(self):
        return len(self.ids)

    def grid_of(self, i):
        """Affine of one volume, (4, 4): its own, or one with the set's voxel sizes."""
        if self.affine_of is None:
            return np.diag([*self.voxel_sizes, 1.0])
        return np.asarray(self.affine_of(i), float)


def find_set(path, split, flag, default_split="test", value_range=None, axes=None, like=None):
    """Finds out what a folder holds; of its volumes, reads at most the first.

    :param split: split of a data folder to take, one of mri.manifest.SPLITS or "all"; None:
        `default_split`, or all volumes if it is empty
    :param flag: flag that named the folder, for error messages
    :param value_range, axes: of a folder of NIfTI cubes, see `nifti_cubes.CubeReader`
    :param like: VolumeSet with which this one is compared, or None
    :raises UserError: no such folder, fewer than 2 volumes, or a flag that is of no use for it
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    if (path / "manifest.json").is_file() or (path / "samples.json").is_file():
        for name, value in (("range", value_range), ("axes", axes)):
            if value is not None:
                raise UserError(f"{flag}-{name}: {path} holds mosaics, which do not need it; leave "
                                "the flag out")
        found = _find_mosaics(path, split, flag, default_split)
    else:
        reader = nifti_cubes.CubeReader(flag, path, value_range, axes, like and like.header)
        found = _find_nifti_cubes(path, split, flag, reader)
    if len(found) < 2:
        raise UserError(f"{flag} {path}: holds {len(found)} volumes; at least 2 are needed")
    return found


def _find_mosaics(path, split, flag, default_split):
    """The set of a data folder or samples folder."""
    header, entries = manifest.read_manifest(path)
    origin = read_origin(path)
    warnings = []
    if entries:
        if split is None:
            has_default = any(entry["split"] == default_split for entry in entries)
            split = default_split if has_default else "all"
        chosen = manifest.select_split(entries, split, path)
        ids = [entry["id"] for entry in chosen]
    else:
        _refuse_split(split, flag, path)
        ids = sorted(p.stem for p in (path / "mosaics").glob("[!.]*.png"))
        warnings = _compare_with_list(f"{flag} {path}", ids, origin.listed)
    return VolumeSet(
        flag, str(path), split, ids, [origin.subject_of.get(name, name) for name in ids],
        side=header["size"], voxel_sizes=geometry.voxel_sizes(header["affine"]),
        read=partial(_read_mosaic_volume, path, header, ids), classes=_classes(origin, ids),
        affine_of=partial(_mosaic_affine, header, chosen if entries else None),
        made_by=origin.made_by, header=header, affine=np.array(header["affine"], float),
        warnings=warnings)


def _compare_with_list(name, ids, listed):
    """Sentences about mosaics that are missing, or that samples.json does not list."""
    if listed is None:
        return []
    sentences = []
    missing = sorted(set(listed) - set(ids))
    if missing:
        sentences.append(f"{name} holds {len(listed) - len(missing)} of the {len(listed)} samples "
                         f"that its samples.json lists, without {short_list(missing)}; the same "
                         "sample.py command computes the others")
    unknown = sorted(set(ids) - set(listed))
    if unknown:
        sentences.append(f"{name} holds {len(unknown)} mosaics that its samples.json does not "
                         f"list: {short_list(unknown)}")
    return sentences


def short_list(ids):
    """The first few ids, and how many more there are."""
    rest = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + rest


def _classes(origin, ids):
    """The class of each volume; None unless all are known."""
    if all(name in origin.class_of for name in ids):
        return [origin.class_of[name] for name in ids]
    return None


def _read_mosaic_volume(folder, header, ids, i):
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, ids[i]), header)
    return mosaic.untile(pixels, header["size"], header["layout"])


def _mosaic_affine(header, entries, i):
    """Affine of a volume of a data folder, or of a samples folder, which has no entries."""
    if entries is None:
        return header["affine"]
    return geometry.cube_affine(*preparation.prepared_grid(entries[i]), header["size"],
                                header["fit"])


def _find_nifti_cubes(path, split, flag, reader):
    """The set of a folder of NIfTI cubes."""
    _refuse_split(split, flag, path)
    found = scans.search(path, flag=flag)
    paths = [scan.path for scan in found.scans]
    nifti_cubes.refuse_arrays(reader, {*paths, *path.rglob("*.npy")})
    first, affine = reader.read(paths[0])
    origin = read_origin(path)
    ids = [scan.id for scan in found.scans]
    subjects = [origin.subject_of.get(scan.id, scan.subject) for scan in found.scans]
    left_out = [f"{count} {reason}" for reason, count in found.left_out.items()
                if not reason.endswith("(.json)")]
    warnings = [f"{flag} {path}: left out {', '.join(left_out)}"] if left_out else []
    return VolumeSet(
        flag, str(path), split, ids, subjects, side=first.shape[0],
        voxel_sizes=geometry.voxel_sizes(affine), affine=None if reader.axes else affine,
        read=lambda i: reader.read(paths[i])[0], affine_of=lambda i: reader.read(paths[i])[1],
        classes=_classes(origin, ids),
        made_by=origin.made_by, warnings=[*found.warnings, *warnings], notes=reader.notes)


def _refuse_split(split, flag, path):
    if split is not None:
        raise UserError(f"{flag}-split {split}: {path} is not a data folder and has no splits; "
                        "leave the flag out")


def allocate(count, side, memory_gb, folder):
    """Uninitialized room for `count` volumes, (count, side, side, side) uint8.

    :param memory_gb: RAM to use; volumes that take more than half of it are kept in a temporary
        file in `folder`, which has no name and ends with the process
    :raises UserError: the disk has no room for it
    """
    shape = (count, side, side, side)
    size = count * side ** 3
    if size <= memory_gb * 1e9 / 2:
        return np.empty(shape, np.uint8)
    file = tempfile.TemporaryFile(dir=folder)
    try:
        _fill_with_zeros(file, size)
    except OSError as e:
        file.close()
        raise UserError(f"{folder}: no room for a temporary file of {size / 1e9:.3g} GB, for "
                        f"{count} volumes of {side} voxels a side ({e.strerror}); make room there, "
                        "name another disk, or allow more RAM with --memory-gb") from None
    return np.memmap(file, np.uint8, "r+", shape=shape)


def _fill_with_zeros(file, size):
    """Takes the room on the disk now.

    If a disk is full when a page of a mapped file is first written, the system kills the process:
    SIGBUS, and no exception.

    :raises OSError: there is no room
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, BLOCK_BYTES):
        file.write(bytes(min(BLOCK_BYTES, size - start)))
    file.flush()


def read_all(volume_set):
    """Yields the volumes of a set, (D, D, D) uint8, with progress."""
    for i in progress(range(len(volume_set)), f"{volume_set.flag[2:]} volumes"):
        yield volume_set.read(i)


def load(volume_set, out):
    """Reads the volumes of a set into `out`, (N, D, D, D) uint8.

    :raises UserError: a volume of another size than the first, or constant
    """
    name = f"{volume_set.flag} {volume_set.path}"
    for i, cube in enumerate(read_all(volume_set)):
        if cube.shape != out.shape[1:]:
            raise UserError(
                f"{name}: {volume_set.ids[i]} is {cube.shape}, {volume_set.ids[0]} is "
                f"{out.shape[1:]}; preprocess them to one --size")
        if cube.min() == cube.max():
            raise UserError(f"{name}: {volume_set.ids[i]} is constant, {cube.flat[0]}; remove it")
        out[i] = cube


def fingerprint(volumes):
    """SHA-256 of the voxels of a whole set, in hex.

    :param volumes: (D, D, D) uint8 each, in the order of the set
    """
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume))
    return digest.hexdigest()


def digests(volumes):
    """SHA-256 of the voxels of each volume: equal for equal volumes, whatever they are called."""
    return [hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for v in volumes]
