"""Groups of the flags of train.py."""
from utils.flags import non_negative, whole_number


def add_token_drop_flags(g):
    """Adds the flags of `training.token_drop` to a group of flags."""
    g.add_argument("--token-drop", type=non_negative, default=0.0, metavar="SHARE",
                   help="share of the computed tokens that each step leaves out of the network and "
                   "of the loss, 0 to 1, drawn for each volume; 0: none")
    g.add_argument("--token-route", type=non_negative, default=0.0, metavar="SHARE",
                   help="share of the computed tokens that bypass the blocks of --route-blocks in "
                   "each step, 0 to 1, drawn for each volume; 0: none")
    g.add_argument("--route-blocks", type=whole_number, nargs=2, metavar=("FIRST", "LAST"),
                   help="blocks that tokens of --token-route bypass, counted from 1; default: all "
                   "but the first two and the last four (3 to 24 of DiT-XL)")
    g.add_argument("--full-steps", type=whole_number, default=0, metavar="N",
                   help="last steps of a run that compute all tokens despite --token-drop or "
                   "--token-route")
