"""A set of volumes to be judged: from a data folder, a samples folder, or a folder of NIfTI cubes, by one loader."""
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri import geometry, intensity, manifest, mosaic, mosaic_files, nifti, scans
from utils.errors import UserError
from utils.progress import progress


@dataclass
class VolumeSet:
    """The volumes of one side of a comparison; `load` fills `volumes`."""
    flag: str               # that named it
    path: str
    split: str | None
    ids: list
    subjects: list          # of each volume; whoever has none stands for himself
    side: int
    spacing: np.ndarray     # mm, (3,)
    read: Callable          # index -> (D, D, D) uint8
    volumes: np.ndarray = None   # (N, D, D, D) uint8, RAS

    def __len__(self):
        return len(self.ids)


def find_set(path, split, flag):
    """Finds out what a folder holds, and reads none of it but its first NIfTI.

    :param split: of a data folder; None: its test split, or all where it has none
    :raises UserError: nothing there, fewer than 2 volumes, a split where there are none
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    if (path / "manifest.json").is_file() or (path / "samples.json").is_file():
        header, entries = manifest.read_manifest(path)
        if entries:
            if split is None:
                split = "test" if any(v["split"] == "test" for v in entries) else "all"
            chosen = manifest.select_split(entries, split, path)
            ids, subjects = [v["id"] for v in chosen], [v["subject"] for v in chosen]
        else:
            _no_split(split, flag, path)
            ids = subjects = sorted(p.stem for p in (path / "mosaics").glob("*.png"))
        side, spacing = header["size"], geometry.voxel_sizes(header["affine"])

        def read(i):
            sheet = mosaic_files.read_mosaic(mosaic_files.mosaic_path(path, ids[i]), header)
            return mosaic.untile(sheet, header["size"], header["layout"])
    else:
        _no_split(split, flag, path)
        found = scans.find_scans(path, flag)
        ids, subjects = [s.id for s in found], [s.subject for s in found]

        def read(i):
            ras, affine = geometry.to_ras(*nifti.read_nifti(found[i].path))
            if len(set(ras.shape)) != 1 or ras.min() < 0 or ras.max() > 1:
                raise UserError(f"{found[i].path}: shape {ras.shape}, intensities {ras.min():g} to {ras.max():g}: not a cube in [0, 1]; "
                                f"run preprocess.py on {path} and give {flag} the data folder")
            read.affine = affine
            return intensity.to_uint8(ras, (0, 1))

        side = read(0).shape[0]
        spacing = geometry.voxel_sizes(read.affine)
    if len(ids) < 2:
        raise UserError(f"{flag} {path}: holds {len(ids)} volumes; at least 2 are needed")
    return VolumeSet(flag, str(path), split, list(ids), list(subjects), side, spacing, read)


def _no_split(split, flag, path):
    if split is not None:
        raise UserError(f"{flag}-split {split}: {path} is no data folder and has no splits; leave the flag out")


def allocate(count, side, memory_gb, folder):
    """Room for `count` volumes: in memory if they take less than half of it, else in a file without a name in `folder`."""
    shape = (count, side, side, side)
    if count * side ** 3 <= memory_gb * 1e9 / 2:
        return np.empty(shape, np.uint8)
    return np.memmap(tempfile.TemporaryFile(dir=folder), np.uint8, "w+", shape=shape)


def load(group, room):
    """Reads the volumes of a set into `room` (N, D, D, D), and points its `volumes` there.

    :raises UserError: a volume of another size than the first, or constant
    """
    for i in progress(range(len(group)), f"{group.flag[2:]} volumes"):
        cube = group.read(i)
        if cube.shape != room.shape[1:]:
            raise UserError(f"{group.flag} {group.path}: {group.ids[i]} is {cube.shape}, {group.ids[0]} is {room.shape[1:]}; "
                            "preprocess them to one --size")
        if cube.min() == cube.max():
            raise UserError(f"{group.flag} {group.path}: {group.ids[i]} is constant, {cube.flat[0]}; take it out")
        room[i] = cube
    group.volumes = room


def digests(group):
    """SHA-256 of each volume's voxels: equal for equal volumes, whatever they are called."""
    return [hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for v in group.volumes]
