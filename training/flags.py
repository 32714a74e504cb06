"""Flags of train.py that its file has no room for."""
from pathlib import Path

from utils.flags import positive, whole_number


def add_logging_flags(group):
    """Adds the flags of logs, checkpoints, previews and the held-out loss."""
    group.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR",
                       help="folder in which each run gets a folder NNN-MODEL")
    group.add_argument("--log-every", type=int, default=100, metavar="N", help="log every N steps")
    group.add_argument("--ckpt-every", type=int, default=5000, metavar="N",
                       help="write a checkpoint and a state to resume from every N steps")
    group.add_argument("--ckpt-minutes", type=positive, default=30.0, metavar="MIN",
                       help="also write a state every MIN minutes; the last two are kept")
    group.add_argument("--keep", type=int, metavar="N",
                       help="keep only the last N checkpoints, and as many states, at least 2; "
                       "default: keep all checkpoints")
    group.add_argument("--keep-every", type=int, metavar="N",
                       help="with --keep: also keep the checkpoints of every N-th step; default: "
                       "none")
    group.add_argument("--sample-every", type=int, default=0, metavar="N",
                       help="sample a mosaic every N steps, into the run folder and with its three "
                       "views into TensorBoard; 0: never")
    group.add_argument("--val-every", type=whole_number, default=0, metavar="N",
                       help="measure the loss of held-out volumes every N steps; 0: never")
    group.add_argument("--val-split", choices=("test", "val"), default="test",
                       help="split that --val-every measures; choose val, if there is one, to "
                       "pick a checkpoint by it")
    group.add_argument("--wandb", metavar="PROJECT",
                       help="also show numbers and samples in this project of Weights & Biases; "
                       "default: in TensorBoard alone")
