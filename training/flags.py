"""Flags of train.py and sample.py that belong to one concept each."""
from training import lora
from training.condition_choice import COHORT
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


def add_condition_flags(group):
    """Adds the flags of sample.py about a model's covariates."""
    group.add_argument(
        "--condition", nargs="+", default=[], metavar="NAME=VALUE",
        help="covariates of all samples, such as age=70 sex=F, of a model of train.py "
        "--condition-on; what is left out may be anything")
    group.add_argument(
        "--conditions", metavar=f"TABLE|{COHORT}",
        help="covariates of each sample: a table (TSV or CSV) with a row per sample and a column "
        f"per covariate; {COHORT}: drawn from the training volumes' rows")
    group.add_argument(
        "--sweep", metavar="NAME=START:STOP:COUNT",
        help="sample one noise for several values of a covariate, such as age=55:85:7 or sex=F,M, "
        "and draw them side by side in sweep.png; adds to --condition")
