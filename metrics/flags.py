"""The flags of evaluate.py that concern the volumes and single metrics."""
from pathlib import Path

from metrics import inception, ms_ssim, registry
from metrics.options import MetricOptions
from mri import manifest, structures
from mri.mosaic import SLICES_PER_TILE
from utils.errors import UserError
from utils.files import WEIGHTS_DIR
from utils.flags import add_device_flag, positive, whole_number

DEFAULTS = MetricOptions()
SPLITS = (*manifest.SPLITS, "all")
SAMPLES = 16    # of each checkpoint
ALL_PAIRS = "all"       # value of --pairs


def add_set_flags(g):
    """Adds --real, --synthetic, how they are read, and --output to a group of flags."""
    g.add_argument("--real", metavar="DIR",
                   help="folder of real volumes that the model was not trained on")
    g.add_argument("--synthetic", metavar="DIR", help="folder of synthetic volumes")
    g.add_argument("--train", metavar="DIR",
                   help="folder of the volumes that the model was trained on (the train split of a "
                   "data folder), to search for copies; default: no search")
    g.add_argument("--real-split", choices=SPLITS,
                   help="split of the data folder --real to use; default: test, or all volumes if "
                   "it has no test split")
    g.add_argument("--synthetic-split", choices=SPLITS,
                   help="split of --synthetic to use if it is a data folder; default: all volumes")
    g.add_argument("--real-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities that mean black and white in --real and --train, if these are "
                   "NIfTI cubes; default: 0 1")
    g.add_argument("--synthetic-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities that mean black and white in --synthetic, if these are NIfTI "
                   "cubes, such as -1 1 or 0 255; default: 0 1")
    g.add_argument("--synthetic-axes", metavar="ORDER",
                   help="axes of the arrays in --synthetic, instead of what their affines say: zyx "
                   "for (z, y, x), or three of the letters R L A P S I; default: the affines'")
    g.add_argument("--by-class", action="store_true",
                   help="also compute every number for each class; default: only for whole sets")
    g.add_argument("--output", type=Path, metavar="DIR",
                   help="new folder for metrics.json, report.md, report.html and figures/")
    g.add_argument("--update", action="store_true",
                   help="keep an evaluation in --output if it is of the same volumes, recipe and "
                   "settings, and replace it otherwise; by default --output must be new")


def pairs_option(value):
    """MetricOptions.pairs for a value of --pairs, or for None where it is not given."""
    if value == ALL_PAIRS:
        return None
    return DEFAULTS.pairs if value is None else value


def _pairs(text):
    """The type of --pairs."""
    return ALL_PAIRS if text == ALL_PAIRS else whole_number(text)


def add_metric_flags(g):
    """Adds --metrics and the options of each metric to a group of flags."""
    g.add_argument("--metrics", nargs="+", type=registry.metric_name, choices=registry.NAMES,
                   metavar="NAME",
                   help=f"metrics to compute: {registry.help_text()}; default: all, utility "
                   "only with --utility")
    g.add_argument("--protocol", choices=tuple(ms_ssim.PROTOCOLS), default=DEFAULTS.protocol,
                   help="published protocol that MS-SSIM follows")
    g.add_argument("--pairs", type=_pairs, metavar=f"N|{ALL_PAIRS}",
                   help="largest number of pairs of volumes per set for MS-SSIM; from a set with "
                   f"more pairs, N are drawn; {ALL_PAIRS}: every pair (500 volumes have 124,750, "
                   f"29 minutes on two cores at 128 voxels); default: {DEFAULTS.pairs}")
    g.add_argument("--shortlist", type=int, default=DEFAULTS.shortlist, metavar="K",
                   help="number of training volumes, the most correlated ones, that each synthetic "
                   "volume is compared with by MS-SSIM")
    g.add_argument("--mmd-batch", type=int, metavar="B",
                   help="number of volumes per batch that the linear MMD is averaged over; "
                   "default: whole sets at once")
    g.add_argument("--mmd-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities of black and white voxels in MMD; with -1 1, the range of "
                   "3dbraingen, linear MMD is 4 times that with 0 1; default: 0 1, but -1 1 in the "
                   "table of published numbers")
    g.add_argument("--slices", type=int, default=DEFAULTS.slices, metavar="K",
                   help="number of middle slices of each view for Inception features")
    g.add_argument("--inception-weights", type=Path, metavar="FILE",
                   help="weights of the Inception net for FID, KID and coverage; default: "
                   f"{WEIGHTS_DIR}/{inception.WEIGHTS_FILE}, or torch-fidelity's cache")
    g.add_argument("--meshnet", type=Path, metavar="DIR",
                   help="folder of the network for anatomy, model18cls; default: "
                   f"{WEIGHTS_DIR}/{structures.NETWORK_FOLDER}, from download.py meshnet")
    g.add_argument("--anatomy-real", nargs="+", metavar="TABLE",
                   help="volumes of structures of the real set, for anatomy: tables of SynthSeg "
                   "(volumes, and QC scores), of asegstats2table, aseg.stats files, or a "
                   "SUBJECTS_DIR; default: volumes are segmented by the network")
    g.add_argument("--anatomy-synthetic", nargs="+", metavar="TABLE",
                   help="volumes of structures of the synthetic set, for anatomy: tables such as "
                   "those of --anatomy-real; both are given, or neither")
    g.add_argument("--features", type=Path, metavar="FILE",
                   help="network of 3D features, TorchScript (.pt) or ONNX (.onnx), that maps "
                   "(N, 1, D, D, D) in [0, 1] to (N, F); for the Fréchet distance, MMD and "
                   "coverage beside those of the random network; a TorchScript file is a program: "
                   "run only files that you trust; default: the random network alone")
    g.add_argument("--utility", metavar="LABEL",
                   help="label that a small network learns from real, synthetic and both, tested "
                   "on other real subjects: class, or the name of a covariate in manifest.json "
                   "and samples.json; default: none")


def add_training_flags(g):
    """Adds --ckpt-folder, and how each checkpoint is sampled, to a group of flags."""
    g.add_argument("--ckpt-folder", type=Path, metavar="RUN",
                   help="run folder of train.py whose checkpoints are sampled, to draw quality "
                   "against copying by step, in place of --synthetic; needs --real, --train and "
                   "--output, where the samples stay; default: none")
    g.add_argument("--num-samples", type=int, metavar="N",
                   help=f"volumes to sample from each checkpoint; default: {SAMPLES}")
    g.add_argument("--sampler", metavar="NAME",
                   help="sampling method, as --sampler of sample.py; default: that of sample.py")
    g.add_argument("--num-sampling-steps", type=int, metavar="N",
                   help="denoising steps, as --num-sampling-steps of sample.py; default: that of "
                   "sample.py")
    g.add_argument("--class-label", metavar="INDEX|NAME|cohort",
                   help="classes to sample, as --class-label of sample.py; default: cohort, each "
                   "as frequent as among the training volumes")


def add_ceiling_flags(g):
    """Adds --vae and what it goes with to a group of flags."""
    g.add_argument("--vae", metavar="ema|mse|DIR",
                   help="VAE that real volumes are encoded and decoded with, for the ceiling of "
                   "every number: ema or mse for a public one, or a folder that train_vae.py "
                   "wrote; default: no ceiling")
    g.add_argument("--vae-layouts", nargs="+", choices=tuple(SLICES_PER_TILE), metavar="NAME",
                   help="layouts of the mosaics that are encoded: rgb (three slices per tile), "
                   "gray (one slice per tile); default: both")
    g.add_argument("--refiner", metavar="DIR",
                   help="refiner of train_refiner.py, for one more ceiling: real volumes after the "
                   "VAE and the refiner; default: none")
    g.add_argument("--precision", choices=("bf16", "fp32"),
                   help="compute dtype of the VAE; default: fp32")


def add_computation_flags(g):
    """Adds the flags of resampling, memory and device to a group of flags."""
    g.add_argument("--bootstrap", type=int, default=1000, metavar="N",
                   help="bootstrap replicates for the 95%% intervals; 0: no intervals")
    g.add_argument("--permutations", type=int, default=999, metavar="N",
                   help="permutations of the subjects for the p-value of every number; 0: no p")
    g.add_argument("--seed", type=whole_number, default=DEFAULTS.seed,
                   help="seed of random pairs, bootstrap replicates, permutations and halves")
    g.add_argument("--memory-gb", type=positive, default=DEFAULTS.memory_gb, metavar="GB",
                   help="RAM to use, in GB; sets that need more than half of it are kept in a "
                   "temporary file next to --output")
    add_device_flag(g)


def check_resampling(bootstrap, permutations):
    """:raises UserError: too few replicates or permutations"""
    if bootstrap < 0 or bootstrap == 1:
        raise UserError(f"--bootstrap {bootstrap}: must be 0, or at least 2")
    if permutations < 0 or 0 < permutations < 19:
        raise UserError(f"--permutations {permutations}: must be 0, or at least 19, with which p "
                        "can be as small as 0.05")
