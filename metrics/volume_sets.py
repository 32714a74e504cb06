"""A set of volumes to evaluate: a data folder, a samples folder, or a folder of NIfTI cubes.

All are read by the same loader, so that no side of a comparison is treated differently.
"""
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mri import geometry, intensity, manifest, mosaic, mosaic_files, nifti, scans
from utils.errors import UserError
from utils.progress import progress


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

    def __len__(self):
        return len(self.ids)


def find_set(path, split, flag):
    """Finds out what a folder holds; of its volumes, reads at most the first.

    :param split: split of a data folder to take: "train", "test" or "all"; None: the test split,
        or all volumes if there is none
    :param flag: flag that named the folder, for error messages
    :raises UserError: no such folder, fewer than 2 volumes, or a split of a folder without splits
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    if (path / "manifest.json").is_file() or (path / "samples.json").is_file():
        found = _find_mosaics(path, split, flag)
    else:
        found = _find_nifti_cubes(path, split, flag)
    if len(found) < 2:
        raise UserError(f"{flag} {path}: holds {len(found)} volumes; at least 2 are needed")
    return found


def _find_mosaics(path, split, flag):
    """The set of a data folder or samples folder."""
    header, entries = manifest.read_manifest(path)
    if entries:
        if split is None:
            split = "test" if any(entry["split"] == "test" for entry in entries) else "all"
        chosen = manifest.select_split(entries, split, path)
        ids = [entry["id"] for entry in chosen]
        subjects = [entry["subject"] for entry in chosen]
    else:
        _refuse_split(split, flag, path)
        ids = sorted(p.stem for p in (path / "mosaics").glob("*.png"))
        subjects = list(ids)
    return VolumeSet(
        flag, str(path), split, ids, subjects, side=header["size"],
        voxel_sizes=geometry.voxel_sizes(header["affine"]),
        read=partial(_read_mosaic_volume, path, header, ids))


def _read_mosaic_volume(folder, header, ids, i):
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, ids[i]), header)
    return mosaic.untile(pixels, header["size"], header["layout"])


def _find_nifti_cubes(path, split, flag):
    """The set of a folder of NIfTI cubes in [0, 1]."""
    _refuse_split(split, flag, path)
    found = scans.find_scans(path, flag)
    first, affine = _read_cube(found[0].path, path, flag)
    return VolumeSet(
        flag, str(path), split, ids=[scan.id for scan in found],
        subjects=[scan.subject for scan in found], side=first.shape[0],
        voxel_sizes=geometry.voxel_sizes(affine),
        read=lambda i: _read_cube(found[i].path, path, flag)[0])


def _read_cube(file, folder, flag):
    """The volume of a NIfTI cube, (D, D, D) uint8, and its affine in RAS order."""
    volume, affine = geometry.to_ras(*nifti.read_nifti(file))
    if len(set(volume.shape)) != 1 or volume.min() < 0 or volume.max() > 1:
        raise UserError(
            f"{file}: shape {volume.shape}, intensities {volume.min():g} to {volume.max():g}: "
            f"not a cube in [0, 1]; run preprocess.py on {folder} and give {flag} the data folder")
    return intensity.to_uint8(volume, (0, 1)), affine


def _refuse_split(split, flag, path):
    if split is not None:
        raise UserError(f"{flag}-split {split}: {path} is not a data folder and has no splits; "
                        "leave the flag out")


def allocate(count, side, memory_gb, folder):
    """Uninitialized room for `count` volumes, (count, side, side, side) uint8.

    :param memory_gb: RAM to use; volumes that take more than half of it are kept in a temporary
        file in `folder`, which has no name and ends with the process
    """
    shape = (count, side, side, side)
    if count * side ** 3 <= memory_gb * 1e9 / 2:
        return np.empty(shape, np.uint8)
    return np.memmap(tempfile.TemporaryFile(dir=folder), np.uint8, "w+", shape=shape)


def load(volume_set, out):
    """Reads the volumes of a set into `out`, (N, D, D, D) uint8.

    :raises UserError: a volume of another size than the first, or constant
    """
    name = f"{volume_set.flag} {volume_set.path}"
    for i in progress(range(len(volume_set)), f"{volume_set.flag[2:]} volumes"):
        cube = volume_set.read(i)
        if cube.shape != out.shape[1:]:
            raise UserError(
                f"{name}: {volume_set.ids[i]} is {cube.shape}, {volume_set.ids[0]} is "
                f"{out.shape[1:]}; preprocess them to one --size")
        if cube.min() == cube.max():
            raise UserError(f"{name}: {volume_set.ids[i]} is constant, {cube.flat[0]}; remove it")
        out[i] = cube


def digests(volumes):
    """SHA-256 of the voxels of each volume: equal for equal volumes, whatever they are called."""
    return [hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for v in volumes]
