"""The flags of evaluate.py that concern the report and reader studies."""
from pathlib import Path

from utils.flags import whole_number

VIEWER_VOLUMES = 8


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
