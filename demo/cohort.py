#!/usr/bin/env python3
"""Makes a cohort of NIfTI "subjects" from the MNI152 template in nilearn's package; no download.

    python demo/cohort.py --contrast flash --n 48 --seed 0 --output demo/out/flash

Each subject is the template's brain under a random affine (rotation <= 4 degrees, scale +-6 %, half
of the time a left-right mirror) and a smooth random displacement (standard deviation 2.5 mm), with
tissue intensities, bias field and noise of its own, on a 3 mm grid. Every other file is stored in
LAS order, as some scanners do. The anatomy is one template's: enough to try the toolkit, no
substitute for data.

With --contrast mixed, each subject's contrast and the size of its ventricles are drawn as well, and
participants.tsv tells both: covariates whose effect on a scan can be measured.
"""
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from nilearn import datasets
from scipy import ndimage, signal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.errors import run_script  # noqa: E402
from utils.files import atomic_folder, write_text  # noqa: E402
from utils.flags import make_parser, whole_number  # noqa: E402
from utils.progress import progress  # noqa: E402

# mean intensity of cerebrospinal fluid, gray and white matter: weak and strong T1 weighting
CONTRASTS = {"flash": (0.42, 0.70, 0.92), "mprage": (0.10, 0.50, 0.92)}
MIXED = "mixed"
TABLE_NAME = "participants.tsv"
VENTRICLES_MM = (0, -14, 14)  # MNI coordinates of the middle of the lateral ventricles
VENTRICLES_REACH_MM = 30      # standard deviation of the Gaussian within which they are magnified
VENTRICLES_PERCENT = (50, 200)  # range of their linear size; 100: as in the template
TISSUE_DEVIATION = 0.04       # of those intensities between subjects
MARGIN_MM = 15                # around the brain, so that none leaves the field of view
VOXEL_SIZE_MM = 3             # of the scans
POINT_SPREAD_MM = 2.6         # standard deviation of the scanner's point spread
MAX_ROTATION_DEGREES = 4
MAX_SCALE_CHANGE = 0.06
DISPLACEMENT_MM = 2.5         # standard deviation
DISPLACEMENT_KNOTS = (6, 7, 6)  # about 28 mm apart
BIAS_DEVIATION = 0.05         # of the bias field's logarithm
BIAS_KNOTS = (3, 3, 3)
NOISE_DEVIATION = 0.01
MIN_INTENSITY = 0.02          # of the brain; voxels below are background, 0
MAX_INTENSITY = 1.2           # becomes 255


def load_template():
    """Tissue maps of the template at 1 mm, cropped to the brain and blurred as by a scanner.

    :return: list of CSF, gray and white matter, each (X, Y, Z) in [0, 1]; their affine
    """
    images = [datasets.load_mni152_template(resolution=1),
              datasets.load_mni152_gm_template(resolution=1),
              datasets.load_mni152_wm_template(resolution=1)]
    brain, gray, white = (np.asarray(image.dataobj, np.float32) for image in images)
    mask = ndimage.binary_fill_holes(brain > 0)
    gray = np.clip(gray / gray.max(), 0, 1) * mask
    white = np.clip(white / white.max(), 0, 1) * mask
    csf = np.clip(mask - gray - white, 0, 1)
    box = []
    for across in ((1, 2), (0, 2), (0, 1)):
        inside = np.flatnonzero(mask.any(across))
        box.append(slice(inside[0], inside[-1] + 1))
    affine = images[0].affine.copy()  # voxels of 1 mm
    affine[:3, 3] += affine[:3, :3] @ [interval.start - MARGIN_MM for interval in box]
    tissues = [np.pad(tissue[tuple(box)], MARGIN_MM) for tissue in (csf, gray, white)]
    return [ndimage.gaussian_filter(tissue, POINT_SPREAD_MM) for tissue in tissues], affine


def smooth_field(rng, deviation, knots, shape):
    """A random band-limited field: white noise at `knots`, resampled to `shape` by FFT."""
    field = rng.normal(0, deviation, knots)
    for axis, length in enumerate(shape):
        field = signal.resample(field, length, axis=axis)
    return field


def random_matrix(rng):
    """A random scaling, rotation and, half of the time, left-right mirror, (3, 3)."""
    angles = np.deg2rad(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES, 3))
    matrix = np.diag(1 / rng.uniform(1 - MAX_SCALE_CHANGE, 1 + MAX_SCALE_CHANGE, 3))
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        rotation = np.eye(3)
        rotation[i, i] = rotation[j, j] = np.cos(angle)
        rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
        matrix = rotation @ matrix
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1, 1, 1])
    return matrix


def magnify(position, center, size):
    """Positions in the template from which a part of it appears in another size.

    :param position: (3, X, Y, Z), voxels of 1 mm
    :param center: of the part, (3,)
    :param size: linear, 1: as it is; fades out with VENTRICLES_REACH_MM
    """
    offset = position - np.reshape(center, (3, 1, 1, 1))
    weight = np.exp(-np.square(offset).sum(0) / (2 * VENTRICLES_REACH_MM ** 2))
    return position - (1 - 1 / size) * weight * offset


def draw_covariates(seed, index):
    """Contrast and size of the ventricles, in percent, of a subject of a mixed cohort."""
    rng = np.random.default_rng([seed, index, 1])   # apart from what `make_subject` draws
    return list(CONTRASTS)[rng.integers(len(CONTRASTS))], round(rng.uniform(*VENTRICLES_PERCENT), 1)


def make_subject(tissues, contrast, rng, ventricles=None):
    """One subject's scan, uint8, with voxels of VOXEL_SIZE_MM.

    :param tissues: of `load_template`
    :param contrast: a key of CONTRASTS
    :param ventricles: their middle in voxels of the template, and their linear size, 1: as it is;
        None: as it is
    """
    shape = np.array(tissues[0].shape)
    center = (shape - 1) / 2
    matrix = random_matrix(rng)
    out_shape = shape // VOXEL_SIZE_MM
    axes = [np.arange(length) * VOXEL_SIZE_MM - c for length, c in zip(out_shape, center)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))                         # (3, X, Y, Z), mm
    position = np.tensordot(matrix, grid, 1) + center[:, None, None, None]     # in the template
    for k in range(3):
        position[k] += smooth_field(rng, DISPLACEMENT_MM, DISPLACEMENT_KNOTS, out_shape)
    if ventricles:
        position = magnify(position, *ventricles)
    levels = np.array(CONTRASTS[contrast]) + rng.normal(0, TISSUE_DEVIATION, 3)
    mixed = sum(level * tissue for level, tissue in zip(levels, tissues))
    volume = ndimage.map_coordinates(mixed, position, order=1)
    bias = np.exp(smooth_field(rng, BIAS_DEVIATION, BIAS_KNOTS, out_shape))
    noise = rng.normal(0, NOISE_DEVIATION, volume.shape)
    volume = np.where(volume > MIN_INTENSITY, volume * bias + noise, 0)
    volume = np.clip(volume, 0, MAX_INTENSITY) / MAX_INTENSITY
    return np.rint(volume * 255).astype(np.uint8)


def write_subject(index, tissues, affine, contrast, seed, folder):
    """Draws subject `index` from (seed, index), and writes its file."""
    ventricles = None
    if contrast == MIXED:
        contrast, percent = draw_covariates(seed, index)
        ventricles = np.linalg.solve(affine, [*VENTRICLES_MM, 1])[:3], percent / 100
    volume = make_subject(tissues, contrast, np.random.default_rng([seed, index]), ventricles)
    affine = affine @ np.diag([VOXEL_SIZE_MM] * 3 + [1])
    image = nib.Nifti1Image(volume, affine)
    if index % 2:
        image = image.as_reoriented([[0, -1], [1, 1], [2, 1]])
    image.header.set_xyzt_units("mm")
    nib.save(image, folder / f"sub-{index:03d}_acq-{contrast}_T1w.nii.gz")


def write_participants(count, seed, folder):
    """Writes the table of a mixed cohort's covariates."""
    lines = ["participant_id\tventricles\tcontrast"]
    for index in range(count):
        contrast, percent = draw_covariates(seed, index)
        lines.append(f"sub-{index:03d}\t{percent}\t{contrast}")
    write_text(folder / TABLE_NAME, "\n".join(lines) + "\n")


def main():
    p = make_parser(__doc__)
    g = p.add_argument_group("cohort")
    g.add_argument("--contrast", choices=(*CONTRASTS, MIXED), default="flash",
                   help="tissue intensities: flash has weak, mprage strong T1 weighting; mixed: "
                   f"one or the other, and ventricles of another size, as {TABLE_NAME} tells")
    g.add_argument("--n", type=int, default=48, help="number of subjects")
    g.add_argument("--seed", type=whole_number, default=0,
                   help="random seed of the cohort; subject i is drawn from (seed, i)")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="folder to create, for the NIfTI files")
    args = p.parse_args()
    with atomic_folder(args.output) as folder:
        tissues, affine = load_template()
        if args.contrast == MIXED:
            write_participants(args.n, args.seed, folder)
        jobs = (delayed(write_subject)(i, tissues, affine, args.contrast, args.seed, folder)
                for i in range(args.n))
        written = Parallel(n_jobs=-1, return_as="generator")(jobs)
        for _ in progress(written, f"{args.contrast} subjects", args.n):
            pass


if __name__ == "__main__":
    run_script(main)
