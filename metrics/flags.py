"""The flags of evaluate.py that concern single metrics."""
from pathlib import Path

from metrics import inception, ms_ssim, registry
from metrics.options import MetricOptions
from utils.files import WEIGHTS_DIR

DEFAULTS = MetricOptions()


def add_metric_flags(g):
    """Adds --metrics and the options of each metric to a group of flags."""
    g.add_argument("--metrics", nargs="+", type=registry.metric_name, choices=registry.NAMES,
                   metavar="NAME",
                   help=f"metrics to compute: {registry.help_text()}; default: all")
    g.add_argument("--protocol", choices=tuple(ms_ssim.PROTOCOLS), default=DEFAULTS.protocol,
                   help="published protocol that MS-SSIM follows")
    g.add_argument("--pairs", type=int, metavar="N",
                   help="number of random pairs of volumes per set for MS-SSIM; default: all pairs "
                   "(500 volumes have 124,750)")
    g.add_argument("--shortlist", type=int, default=DEFAULTS.shortlist, metavar="K",
                   help="training volumes per synthetic volume, the most correlated ones, that are "
                   "compared by MS-SSIM")
    g.add_argument("--mmd-batch", type=int, metavar="B",
                   help="number of volumes per batch that the linear MMD is averaged over; "
                   "default: whole sets at once")
    g.add_argument("--mmd-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities of black and white voxels in MMD; with -1 1, the range of "
                   "3dbraingen, linear MMD is 4 times that with 0 1; default: 0 1, but -1 1 in the "
                   "table of published numbers")
    g.add_argument("--slices", type=int, default=DEFAULTS.slices, metavar="K",
                   help="number of middle slices of each view for FID and KID")
    g.add_argument("--inception-weights", type=Path, metavar="FILE",
                   help="weights of the Inception net for FID and KID; default: "
                   f"{WEIGHTS_DIR}/{inception.WEIGHTS_FILE}, or torch-fidelity's cache")
    g.add_argument("--features", type=Path, metavar="FILE",
                   help="network of 3D features, TorchScript (.pt) or ONNX (.onnx), that maps "
                   "(N, 1, D, D, D) in [0, 1] to (N, F); for the Fréchet distance, MMD and "
                   "coverage beside those of the random network; a TorchScript file is a program: "
                   "only from those you trust; default: the random network alone")
    g.add_argument("--utility", metavar="LABEL",
                   help="label that a small network learns from real, synthetic and both, tested "
                   "on other real subjects: class, or the name of a covariate in manifest.json "
                   "and samples.json; default: none")
