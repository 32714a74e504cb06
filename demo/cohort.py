#!/usr/bin/env python3
"""Makes a cohort of NIfTI "subjects" from the MNI152 template that nilearn's package carries. Nothing is downloaded.

    python demo/cohort.py --contrast flash --n 48 --seed 0 --output demo/out/flash

Each subject is the template's brain under a random affine (rotation <= 4 degrees, scale +-6 %, half of the time a
left-right mirror) and a smooth random displacement (2.5 mm standard deviation), with tissue intensities, bias field and
noise of its own, on a 3 mm grid. Every other file is stored in LAS order, as some scanners
do. The anatomy is one template's: enough to try the toolkit on, no substitute for data.
"""
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nilearn import datasets
from scipy import ndimage, signal

from utils.errors import run_script
from utils.files import atomic_folder
from utils.flags import make_parser, whole_number
from utils.progress import progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# mean intensity of cerebrospinal fluid, grey and white matter; the standard deviation between subjects is 0.04
CONTRASTS = {"flash": (0.42, 0.70, 0.92), "mprage": (0.10, 0.50, 0.92)}  # weak and strong T1 weighting
MARGIN = 6      # mm around the brain
SPACING = 3     # mm
SPREAD = 2.6    # mm, standard deviation of the scanner's point spread


def template():
    """Grey and white matter and CSF maps in [0, 1], each (X, Y, Z) at 1 mm, cropped about the brain, and their affine."""
    maps = [datasets.load_mni152_template(resolution=1), datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1)]
    brain, grey, white = (np.asarray(m.dataobj, np.float32) for m in maps)
    mask = ndimage.binary_fill_holes(brain > 0)
    grey, white = (np.clip(m / m.max(), 0, 1) * mask for m in (grey, white))
    csf = np.clip(mask - grey - white, 0, 1)
    box = [slice(max(0, np.flatnonzero(mask.any(o))[0] - MARGIN), np.flatnonzero(mask.any(o))[-1] + MARGIN)
           for o in ((1, 2), (0, 2), (0, 1))]
    affine = maps[0].affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [b.start for b in box]
    return [m[tuple(box)] for m in (csf, grey, white)], affine


def smooth_field(rng, std, knots, shape):
    """A random field of `shape`, band-limited: white noise on a grid of `knots`, resampled along each axis by FFT."""
    field = rng.normal(0, std, knots)
    for axis, n in enumerate(shape):
        field = signal.resample(field, n, axis=axis)
    return field


def subject(tissues, contrast, rng):
    """One subject's volume, uint8, on the SPACING grid."""
    shape = np.array(tissues[0].shape)
    centre = (shape - 1) / 2
    angles = np.deg2rad(rng.uniform(-4, 4, 3))
    matrix = np.diag(1 / rng.uniform(0.94, 1.06, 3))
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1, 1, 1])
    out_shape = shape // SPACING
    out = np.stack(np.meshgrid(*[np.arange(n) * SPACING - c for n, c in zip(out_shape, centre)], indexing="ij"))
    where = np.tensordot(matrix, out, 1) + centre[:, None, None, None]
    for k in range(3):
        where[k] += smooth_field(rng, 2.5, (6, 7, 6), out_shape)  # knots about 28 mm apart
    levels = np.array(CONTRASTS[contrast]) + rng.normal(0, 0.04, 3)
    mixed = ndimage.gaussian_filter(sum(level * t for level, t in zip(levels, tissues)), SPREAD)
    volume = ndimage.map_coordinates(mixed, where, order=1)
    bias = smooth_field(rng, 0.05, (3, 3, 3), out_shape)
    volume = np.where(volume > 0.02, volume * np.exp(bias) + rng.normal(0, 0.01, volume.shape), 0)
    return np.rint(np.clip(volume, 0, 1.2) / 1.2 * 255).astype(np.uint8)


def write(i, tissues, affine, args, folder):
    image = nib.Nifti1Image(subject(tissues, args.contrast, np.random.default_rng([args.seed, i])), affine)
    if i % 2:
        image = image.as_reoriented([[0, -1], [1, 1], [2, 1]])
    image.header.set_xyzt_units("mm")
    nib.save(image, folder / f"sub-{i:03d}_acq-{args.contrast}_T1w.nii.gz")


def main():
    p = make_parser(__doc__)
    p.add_argument("--contrast", choices=CONTRASTS, default="flash", help="tissue intensities")
    p.add_argument("--n", type=int, default=48, help="number of subjects")
    p.add_argument("--seed", type=whole_number, default=0, help="subject i draws from (seed, i)")
    p.add_argument("--output", type=Path, required=True, help="new folder for the NIfTI files")
    args = p.parse_args()
    with atomic_folder(args.output) as folder:
        tissues, affine = template()
        affine = affine @ np.diag([SPACING] * 3 + [1])
        written = Parallel(n_jobs=-1, return_as="generator")(delayed(write)(i, tissues, affine, args, folder) for i in range(args.n))
        for _ in progress(written, f"{args.contrast} subjects", args.n):
            pass


if __name__ == "__main__":
    run_script(main)
