"""Flags of sample.py that are about a model's covariates."""
from training.condition_choice import COHORT


def add_condition_flags(group):
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
