"""Scans for tests: every orientation, landmarks, and files that cannot be read."""
import gzip
import itertools

import nibabel as nib
import numpy as np
from helpers import AFFINE, brain, save_nifti
from nibabel.affines import apply_affine
from scipy import ndimage

ORIENTATIONS = [(o, f) for o in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


def turned(array, affine, order, flips):
    """The same scan with its axes in another order and direction."""
    ornt = np.column_stack([order, flips]).astype(float)
    return nib.apply_orientation(array, ornt), affine @ nib.orientations.inv_ornt_aff(ornt, array.shape)


def oblique(affine, degrees=8):
    a = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return turn @ affine


def blob(shape, affine, point):
    """A Gaussian of 3 mm standard deviation about a world point."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.exp(-0.5 * ((apply_affine(affine, ijk) - point) ** 2).sum(-1) / 3 ** 2).astype(np.float32)


def centroid(array, affine):
    return apply_affine(affine, ndimage.center_of_mass(np.asarray(array, float)))


def bad_files(folder):
    """{name: what its error must say}, written into the folder."""
    good = save_nifti(folder / "good.nii.gz", brain(), AFFINE)
    (folder / "text.nii").write_text("not an image at all")
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:2000])
    (folder / "cut_header.nii.gz").write_bytes(good.read_bytes()[:120])
    raw = gzip.decompress(good.read_bytes())
    (folder / "short.nii").write_bytes(raw[:len(raw) // 2])
    save_nifti(folder / "4d.nii.gz", np.stack([brain()] * 3, -1), AFFINE)
    save_nifti(folder / "2d.nii.gz", brain()[:, :, 0], AFFINE)
    save_nifti(folder / "slab.nii.gz", brain()[:, :, :1], AFFINE)
    nan = brain()
    nan[0, 0, :5] = np.nan
    save_nifti(folder / "nan.nii.gz", nan, AFFINE, np.float32)
    save_nifti(folder / "flat.nii.gz", np.full((8, 8, 8), 3), AFFINE)
    nib.save(nib.Nifti1Image(brain(), None), folder / "no_affine.nii.gz")
    return {"text.nii": "not a NIfTI", "empty.nii.gz": "not a NIfTI", "cut.nii.gz": "truncated or damaged",
            "cut_header.nii.gz": "truncated or damaged",
            "short.nii": "truncated or damaged", "4d.nii.gz": "4D with shape", "2d.nii.gz": "not 3D", "slab.nii.gz": "not 3D",
            "nan.nii.gz": "5 voxels are NaN", "flat.nii.gz": "every voxel is 3", "no_affine.nii.gz": "no affine"}
