"""The flags of evaluate.py that concern single metrics."""
from pathlib import Path

from metrics import inception, ms_ssim, registry
from metrics.options import MetricOptions
from utils.files import WEIGHTS_DIR
from utils.flags import whole_number

DEFAULTS = MetricOptions()
ALL_PAIRS = "all"       # value of --pairs


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
                   help=f"metrics to compute: {registry.help_text()}; default: all")
    g.add_argument("--protocol", choices=tuple(ms_ssim.PROTOCOLS), default=DEFAULTS.protocol,
                   help="published protocol that MS-SSIM follows")
    g.add_argument("--pairs", type=_pairs, metavar=f"N|{ALL_PAIRS}",
                   help="largest number of pairs of volumes per set for MS-SSIM: of a set that has "
                   f"more, so many random ones; {ALL_PAIRS}: every pair (500 volumes have 124,750, "
                   f"29 minutes of two cores at 128 voxels); default: {DEFAULTS.pairs}")
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
