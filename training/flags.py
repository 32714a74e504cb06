"""Flags of train.py that belong together."""
from training import lora
from utils.flags import positive


def add_lora_flags(group):
    """Adds the flags of --tune lora; each is None where the user does not give it."""
    group.add_argument(
        "--lora-rank", type=int, metavar="R",
        help=f"with --tune lora: rank of the added matrices; default: {lora.DEFAULT_RANK}")
    group.add_argument(
        "--lora-alpha", type=positive, metavar="ALPHA",
        help="with --tune lora: their product is multiplied by ALPHA / R; default: R, a factor of "
        "1")
    group.add_argument(
        "--lora-targets", nargs="+", choices=lora.TARGETS, metavar="LAYER",
        help="with --tune lora: linear layers of every block that get such matrices: qkv and proj "
        "of the attention, both of the mlp; default: " + " ".join(lora.TARGETS))
