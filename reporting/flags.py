"""The flags of evaluate.py that concern the report and reader studies."""
from pathlib import Path

from utils.errors import UserError
from utils.flags import flag_of, whole_number

VIEWER_VOLUMES = 8
SETS = ("real", "synthetic", "real_split", "synthetic_split", "real_range", "synthetic_range",
        "synthetic_axes")   # flags that choose volumes, and say how they are read
SAMPLING = ("num_samples", "sampler", "num_sampling_steps", "class_label")
USEFUL = {                  # the flags that a purpose other than an evaluation takes
    "score": ("score", "key", "output", "bootstrap", "permutations", "seed"),
    "reader_study": ("reader_study", "output", "seed", *SETS),
    "ckpt_folder": ("ckpt_folder", *SAMPLING, "real", "real_split", "real_range", "train", "output",
                    "protocol", "pairs", "shortlist", "mmd_batch", "mmd_range", "features", "seed",
                    "memory_gb", "device"),
}
NEEDED = {"score": ("key",), "reader_study": ("real", "synthetic", "output"),
          "ckpt_folder": ("real", "train", "output")}


def add_report_flags(g):
    """Adds the flags of the report to a group of flags."""
    g.add_argument("--viewer-volumes", type=whole_number, default=VIEWER_VOLUMES, metavar="N",
                   help="volumes of each set that report.html shows to scroll through, fewer if "
                   "the page would exceed 30 MB (8 and 8 of 128 voxels a side take 16 MB); 0: none")
    g.add_argument("--latex", action="store_true",
                   help="write the numbers as a paper's table, table.tex, which needs the LaTeX "
                   "package booktabs; off by default")


def add_reader_study_flags(g):
    """Adds the flags of reader studies to a group of flags."""
    g.add_argument("--reader-study", type=int, metavar="N",
                   help="instead of an evaluation, write a page on which readers rate N real and "
                   "N synthetic volumes, each of another subject, in random order (--seed), and "
                   "key.json, which readers must not see; default: an evaluation")
    g.add_argument("--score", nargs="+", type=Path, metavar="FILE",
                   help="instead of an evaluation, score the answers of readers, CSV files that "
                   "the page saved; needs --key; default: an evaluation")
    g.add_argument("--key", type=Path, metavar="FILE",
                   help="key.json of the reader study that --score belongs to")


def check_purpose(parser, values):
    """Whether the flags fit to an evaluation, a run's checkpoints, a reader study or its scores.

    :param parser: that read them
    :param values: {name: value} of all flags
    :raises UserError: a flag is missing, or has no effect on what was asked
    """
    purpose = next((name for name in USEFUL if values[name] is not None), None)
    for name in NEEDED.get(purpose, ("real", "synthetic", "output")):
        if values[name] is None:
            wanted = f", which {flag_of(purpose)} needs" if purpose else \
                "; an evaluation needs --real, --synthetic and --output"
            raise UserError(f"{flag_of(name)} is missing{wanted}")
    for name, of in {"key": "score", **dict.fromkeys(SAMPLING, "ckpt_folder")}.items():
        if purpose != of and values[name] is not None:
            raise UserError(f"{flag_of(name)} has no effect without {flag_of(of)}")
    for name, value in values.items():
        if purpose and name not in USEFUL[purpose] and value != parser.get_default(name):
            raise UserError(f"{flag_of(name)} has no effect with {flag_of(purpose)}")
