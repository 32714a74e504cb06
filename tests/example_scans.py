"""Scans for tests: every orientation, landmarks, and files that cannot be read."""
import gzip
import itertools

import nibabel as nib
import numpy as np
from helpers import AFFINE, brain, save_nifti
from nibabel.affines import apply_affine
from scipy import ndimage

# (order of the axes, their directions): all 48
ORIENTATIONS = [(order, flips) for order in itertools.permutations(range(3))
                for flips in itertools.product((1, -1), repeat=3)]


def turned(array, affine, order, flips):
    """The same scan with its axes in another order and direction."""
    orientation = np.column_stack([order, flips]).astype(float)
    to_old = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.apply_orientation(array, orientation), affine @ to_old


def oblique(affine, degrees=8):
    """An affine rotated about the superior axis."""
    angle = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return rotation @ affine


def sheared(affine, by=0.25):
    out = affine.copy()
    out[0, 1] += by * affine[1, 1]
    out[0, 3] -= by * affine[1, 1] * 12
    return out


def blob(shape, affine, point):
    """A Gaussian of 3 mm standard deviation around a world point."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    squared_mm = ((apply_affine(affine, ijk) - point) ** 2).sum(-1)
    return np.exp(-0.5 * squared_mm / 3 ** 2).astype(np.float32)


def ball(shape, center, radius):
    """Whether each voxel is inside an ellipsoid, in voxels."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (((ijk - center) / radius) ** 2).sum(-1) < 1


def head(seed=0, shape=(24, 28, 26)):
    """A noisy head of 100 with a textured brain in it, and the brain's mask."""
    rng = np.random.default_rng(seed)
    mask = ball(shape, (12, 13, 14), (7, 8, 6))
    noise = np.abs(rng.normal(0, 4, shape))
    array = noise + np.where(ball(shape, (12, 14, 13), (10, 12, 11)), 100, 0)
    return np.where(mask, 300 + brain(shape, seed) / 4, array).astype(np.float32), mask


def centroid(array, affine):
    """World coordinates of an array's center of mass."""
    return apply_affine(affine, ndimage.center_of_mass(np.asarray(array, float)))


def bad_files(folder):
    """{name: what its error must say}, written into the folder; beside them, good.nii.gz."""
    good = save_nifti(folder / "good.nii.gz", brain(), AFFINE)
    packed = good.read_bytes()
    plain = gzip.decompress(packed)
    (folder / "text.nii").write_text("not an image at all")
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "cut.nii.gz").write_bytes(packed[:2000])
    (folder / "cut_header.nii.gz").write_bytes(packed[:120])
    (folder / "short.nii").write_bytes(plain[:len(plain) // 2])
    save_nifti(folder / "4d.nii.gz", np.stack([brain()] * 3, -1), AFFINE)
    save_nifti(folder / "2d.nii.gz", brain()[:, :, 0], AFFINE)
    save_nifti(folder / "slab.nii.gz", brain()[:, :, :1], AFFINE)
    nan = brain()
    nan[0, 0, :5] = np.nan
    save_nifti(folder / "nan.nii.gz", nan, AFFINE, np.float32)
    save_nifti(folder / "flat.nii.gz", np.full((8, 8, 8), 3), AFFINE)
    nib.save(nib.Nifti1Image(brain(), None), folder / "no_affine.nii.gz")
    return {
        "text.nii": "not a NIfTI",
        "empty.nii.gz": "empty, 0 bytes",
        "cut.nii.gz": "truncated or damaged",
        "cut_header.nii.gz": "truncated or damaged",
        "short.nii": "truncated or damaged",
        "4d.nii.gz": "4D with shape",
        "2d.nii.gz": "not 3D",
        "slab.nii.gz": "not 3D",
        "nan.nii.gz": "5 voxels are NaN",
        "flat.nii.gz": "every voxel is 3",
        "no_affine.nii.gz": "no affine",
    }
