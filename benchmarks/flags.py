"""The flags of bench.py's commands that do not measure a whole step of a network."""
from pathlib import Path

import models
from mri import recipes
from utils import flags


def add_attention_flags(command):
    group = command.add_argument_group("attention")
    group.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME",
                       help="network whose heads are computed")
    group.add_argument("--tokens", type=int, nargs="+", default=(3136, 2132, 6267), metavar="N",
                       help="lengths of the sequences; by default all tokens of 896 x 896, the "
                       "foreground of 14 skull-stripped brains there, and at 1536 x 1536")
    group.add_argument("--batch-size", type=int, default=1, help="sequences at a time")
    group.add_argument("--mean", type=float, default=1.0, help="added to keys and values, which "
                       "are otherwise standard normal: biases give them a mean in a network, too")
    flags.add_precision_flag(group, default=None)
    group = command.add_argument_group("measurement")
    group.add_argument("--repeats", type=int, default=7, help="timed repetitions of each kernel")
    flags.add_device_flag(group)


def add_layouts_flags(command):
    group = command.add_argument_group("data and output")
    group.add_argument("--data-path", type=Path, required=True, metavar="DIR", help="data folder: "
                       "train split for decoders and refiners, test split for the numbers")
    group.add_argument("--vae", required=True, metavar="ema|mse|PATH", help="VAE that encodes and "
                       "decodes in both layouts")
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the "
                       "results, decoders and refiners; the same command again continues it")
    group = command.add_argument_group("training and cost")
    group.add_argument("--decoder-steps", type=int, default=2000, help="steps of train_vae.py")
    group.add_argument("--refiner-steps", type=int, default=1000, help="steps of a refiner")
    group.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME",
                       help="network whose tokens and operations are counted")
    flags.add_precision_flag(group, "decoders and refiners in training")
    flags.add_device_flag(group)


def add_preprocess_flags(command):
    group = command.add_argument_group("measurement")
    group.add_argument("--input", type=Path, metavar="DIR", help="folder of .nii.gz files, used "
                       "repeatedly; default: made-up heads of 144 x 176 x 144 voxels")
    group.add_argument("--scans", type=int, default=95, help="number of scans for preprocess.py")
    group.add_argument("--plain-scans", type=int, default=14,
                       help="number of these scans for the baseline")
    group.add_argument("--workers", type=int, default=flags.CPU_CORES,
                       help="processes of preprocess.py; by default one per CPU core")
    group.add_argument("--turns", type=int, default=3, help="turns of each way")
    group.add_argument("--recipe", choices=recipes.RECIPES,
                       help="print the time that each stage of this recipe of preprocess.py takes, "
                       "in one process, instead; needs --input; default: no recipe")


def add_metrics_flags(command):
    group = command.add_argument_group("measurement")
    group.add_argument("--size", type=int, default=128, help="side of the volumes, voxels")
    group.add_argument("--volumes", type=int, default=24,
                       help="number of volumes for MS-SSIM, of which all pairs are computed")
    group.add_argument("--mmd-volumes", type=int, default=32,
                       help="number of volumes of each of the two sets for MMD")
    group.add_argument("--report-volumes", type=int, default=12,
                       help="number of real, synthetic and training volumes each, for a report")
    group.add_argument("--repeats", type=int, default=7, help="timed repetitions of each way")
    flags.add_device_flag(group)


def add_study_flags(command):
    """Adds the flags of a study of train.py."""
    group = command.add_argument_group("task")
    group.add_argument("--data-path", type=Path, required=True, metavar="DIR", help="data folder: "
                       "train split to train on, test split for the numbers")
    group.add_argument("--train-flags", default="", metavar="TEXT", help="flags of train.py that "
                       "all variants share, as one text; data, seed and steps are added; default: "
                       "none")
    group.add_argument("--sample-flags", metavar="TEXT", help="flags of sample.py, as one text",
                       default="--num-samples 32 --batch-size 16 --num-sampling-steps 50")
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for "
                       "study.md, study.json, study.png and all runs; the same command again "
                       "continues it")
    group = command.add_argument_group("comparison")
    group.add_argument("--variant", action="append", required=True, metavar="NAME:FLAGS",
                       help="a name, a colon, and flags of train.py, as one text, such as "
                       "'bf16: --precision bf16'; once per variant, the reference first")
    group.add_argument("--steps", type=int, default=300, help="training steps at equal steps")
    group.add_argument("--seeds", type=int, default=3, metavar="N",
                       help="number of seeds of each variant: 0, 1, …")
    group.add_argument("--jobs", type=int, default=1, metavar="N",
                       help="runs that are computed at the same time, each with its share of the "
                       "CPU cores")
    group.add_argument("--turns", type=int, default=3, metavar="N", help="short runs of each "
                       "variant, alternating and one at a time, that measure its speed")
