"""Flags of train.py and sample.py that belong to one concept each."""
import argparse
from pathlib import Path

from diffusion import samplers
from training import lora, step
from training.class_choice import COHORT
from utils.flags import (
    add_compile_flag,
    add_device_flag,
    add_precision_flag,
    non_negative,
    positive,
    whole_number,
)


def add_optimization_flags(g):
    """Adds the flags of the optimizer, its steps and its random draws."""
    g.add_argument("--lr", type=positive, default=5e-4, help="learning rate of AdamW")
    g.add_argument("--lr-schedule", choices=step.LR_SCHEDULES, default="constant",
                   help="learning rate over time; cosine falls to zero at --max-steps")
    g.add_argument("--weight-decay", type=float, default=0.0, help="weight decay of AdamW")
    g.add_argument("--label-dropout", type=float, default=0.1,
                   help="probability of training a volume without its class, for guidance")
    g.add_argument("--condition-dropout", type=float, default=0.1,
                   help="probability of leaving out a covariate of a volume, separately for each "
                   "covariate, so that any subset of them can be asked for")
    g.add_argument("--max-steps", type=int, default=66000, help="number of optimizer steps")
    g.add_argument("--epochs", type=positive,
                   help="passes over the data, instead of --max-steps; default: --max-steps")
    g.add_argument("--global-batch-size", type=int, default=4,
                   help="volumes per step, over all processes")
    g.add_argument("--ema-decay", type=float, default=0.9999,
                   help="decay per step of the moving average (EMA) of the trainable parameters")
    g.add_argument("--ema-warmup", action=argparse.BooleanOptionalAction, default=True,
                   help="limit the decay at step s to (1 + s) / (10 + s), so that early averages "
                   "are not the base model's weights; default: yes")
    g.add_argument("--global-seed", type=whole_number, default=0,
                   help="random seed; the same seed trains the same model")
    g.add_argument("--skip-nonfinite", action="store_true",
                   help="skip steps whose loss or gradient is not finite and count them in the "
                   "log; default: stop")


def add_cost_flags(g):
    """Adds the flags that trade time for memory and name the device."""
    add_precision_flag(g, "the transformer; trainable parameters stay fp32", default=None)
    g.add_argument("--accum", type=int, default=1, metavar="N",
                   help="gradient accumulation: compute the batch in N parts, one after another, "
                   "to save memory")
    g.add_argument("--grad-checkpoint", type=int, nargs="?", const=1, default=0, metavar="K",
                   help="recompute every K-th block in the backward pass, to save memory; without "
                   "a number every block; 0: none")
    g.add_argument("--keep-activations", action="store_true",
                   help="keep gates, norms and the attention's output projection for the backward "
                   "pass: more memory, 2%% faster; default: recompute them")
    add_compile_flag(g)
    g.add_argument("--prefetch", action=argparse.BooleanOptionalAction, default=True,
                   help="prepare the next batches while one is computed; default: yes")
    g.add_argument("--cuda-graphs", action="store_true",
                   help="run the forward and backward pass of each step as one CUDA graph: faster "
                   "where the host cannot keep up with the GPU, as with small models or batches; "
                   "works with a single process only; default: kernel by kernel")
    add_device_flag(g)


def add_lora_flags(group):
    """Adds the flags of --tune lora; each is None where the user does not give it."""
    group.add_argument(
        "--lora-rank", type=int, metavar="R",
        help=f"with --tune lora: rank of the added matrices; default: {lora.DEFAULT_RANK}")
    group.add_argument(
        "--lora-alpha", type=positive, metavar="ALPHA",
        help="with --tune lora: the product of the added matrices is multiplied by ALPHA / R; "
        "default: R, a factor of 1")
    group.add_argument(
        "--lora-targets", nargs="+", choices=lora.TARGETS, metavar="LAYER",
        help="with --tune lora: linear layers of every block that get added matrices: qkv and proj "
        "of the attention, both of the mlp; default: " + " ".join(lora.TARGETS))


def add_condition_flags(group):
    """Adds the flags of sample.py about a model's covariates."""
    group.add_argument(
        "--condition", nargs="+", default=[], metavar="NAME=VALUE",
        help="covariates of all samples, such as age=70 sex=F, of a model of train.py "
        "--condition-on; those that are left out count as missing; default: none")
    group.add_argument(
        "--conditions", metavar=f"TABLE|{COHORT}",
        help="covariates of each sample: a table (TSV or CSV) with a row per sample and a column "
        f"per covariate; {COHORT}: drawn from the training volumes' rows")
    group.add_argument(
        "--sweep", metavar="NAME=START:STOP:COUNT",
        help="sample one noise for several values of a covariate, such as age=55:85:7 or sex=F,M, "
        "and draw them side by side in sweep.png; adds to --condition")


def add_logging_flags(group):
    """Adds the flags of logs, checkpoints, previews and the held-out loss."""
    group.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR",
                       help="folder in which each run gets a folder NNN-MODEL")
    group.add_argument("--log-every", type=int, default=100, metavar="N",
                       help="write a line to the log every N steps")
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


def add_sampling_flags(g):
    """Adds the flags of sample.py about how samples are drawn."""
    g.add_argument("--seed", type=whole_number, default=0,
                   help="random seed; the same seed gives the same volumes")
    g.add_argument("--sampler", choices=samplers.SAMPLERS, default="ddpm",
                   help="sampling method. " + samplers.describe_samplers())
    g.add_argument("--num-sampling-steps", type=int, metavar="N",
                   help="denoising steps; default: " + samplers.describe_default_steps())
    g.add_argument("--cfg-scale", type=float, default=1.0,
                   help="scale of classifier-free guidance; 1: none, at half the cost")
    g.add_argument("--cfg-channels", type=int, metavar="N",
                   help="number of latent channels that are guided; 3: as in the published DiT "
                   "code; default: all")
    g.add_argument("--cfg-interval", type=whole_number, nargs=2, metavar=("LO", "HI"),
                   default=list(samplers.EVERYWHERE),
                   help="timesteps LO <= t < HI at which guidance acts, from 0 (no noise) to 1000 "
                   "(pure noise); other steps take half the time")
    g.add_argument("--class-label", default="0", metavar=f"INDEX|NAME|{COHORT}",
                   help="class to sample, by its index or name in the manifest; cohort: each "
                   "sample's class is drawn, as frequent as among the training volumes")


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
                   help="number of steps at the end of a run that compute all tokens in spite of "
                   "--token-drop or --token-route")
