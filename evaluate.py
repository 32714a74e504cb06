#!/usr/bin/env python3
"""Compares synthetic volumes with real ones: metrics.json, report.md, report.html and figures.

    python evaluate.py --real data/adni --synthetic samples/adni --train data/adni \\
        --output evaluation/adni

Each side is a data folder (of --real, by default the test split), a samples folder, or a folder of
NIfTI cubes, such as postprocess.py or another generator writes. All are read by the same loader.
With --train, copies of training volumes are searched for. With --vae, every number is also given
for real volumes that went through the VAE: the best that samples can reach.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import json
from pathlib import Path

import numpy as np
import torch

from metrics import (
    by_class,
    ceiling,
    evaluation,
    nifti_cubes,
    registry,
    statistic,
    volume_sets,
)
from metrics import flags as metric_flags
from metrics.options import MetricOptions
from mri import axis_orders, manifest
from mri.mosaic import SLICES_PER_TILE
from reporting import evaluation_figures, report
from utils.escaping import printable
from utils.files import atomic_folder, require_new_folder, write_text
from utils.flags import add_device_flag, flag_of, make_parser, positive, whole_number
from utils.provenance import git_commit, now, versions
from utils.version import __version__

SPLITS = (*manifest.SPLITS, "all")
DEFAULTS = MetricOptions()


# ----------------------------------------------------------------------------------------- flags

def parse_args():
    p = make_parser(__doc__)
    add_volume_flags(p.add_argument_group("volumes"))
    metric_flags.add_metric_flags(p.add_argument_group("metrics"))
    g = p.add_argument_group("ceiling")
    g.add_argument("--vae", metavar="ema|mse|DIR",
                   help="VAE that real volumes are encoded and decoded with, for the ceiling of "
                   "every number: ema or mse for a public one, or a folder that train_vae.py "
                   "wrote; default: no ceiling")
    g.add_argument("--vae-layouts", nargs="+", choices=tuple(SLICES_PER_TILE), metavar="NAME",
                   help="layouts of the mosaics that are encoded: rgb (three slices per tile), "
                   "gray (one slice per tile); default: both")
    g.add_argument("--refiner", metavar="DIR",
                   help="refiner of train_refiner.py, with which the ceiling is given once more; "
                   "default: none")
    g.add_argument("--precision", choices=("bf16", "fp32"),
                   help="compute dtype of the VAE; default: fp32")
    g = p.add_argument_group("computation")
    g.add_argument("--bootstrap", type=int, default=1000, metavar="N",
                   help="bootstrap replicates for the 95%% intervals; 0: no intervals")
    g.add_argument("--permutations", type=int, default=999, metavar="N",
                   help="permutations of the subjects for the p of every number; 0: no p")
    g.add_argument("--seed", type=whole_number, default=DEFAULTS.seed,
                   help="seed of random pairs, bootstrap replicates, permutations and halves")
    g.add_argument("--memory-gb", type=positive, default=DEFAULTS.memory_gb, metavar="GB",
                   help="RAM to use, in GB; sets that need more than half of it are kept in a "
                   "temporary file next to --output")
    add_device_flag(g)
    args = p.parse_args()
    check_flags(args)
    return args


def add_volume_flags(g):
    g.add_argument("--real", required=True, metavar="DIR",
                   help="folder of real volumes that the model was not trained on")
    g.add_argument("--synthetic", required=True, metavar="DIR", help="folder of synthetic volumes")
    g.add_argument("--train", metavar="DIR",
                   help="folder of the volumes that the model was trained on (the train split of a "
                   "data folder), to search for copies; default: no search")
    g.add_argument("--real-split", choices=SPLITS,
                   help="split of the data folder --real to use; default: test, or all volumes if "
                   "it has no test split")
    g.add_argument("--synthetic-split", choices=SPLITS,
                   help="split of --synthetic to use if it is a data folder; default: all volumes")
    g.add_argument("--real-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities that mean black and white in --real and --train, if these are "
                   "NIfTI cubes; default: 0 1")
    g.add_argument("--synthetic-range", nargs=2, type=float, metavar=("LO", "HI"),
                   help="intensities that mean black and white in --synthetic, if these are NIfTI "
                   "cubes, such as -1 1 or 0 255; default: 0 1")
    g.add_argument("--synthetic-axes", metavar="ORDER",
                   help="where the axes of the arrays in --synthetic run, whatever their affines "
                   "say: zyx for (z, y, x), or letters of R L A P S I; default: as the affines say")
    g.add_argument("--by-class", action="store_true",
                   help="give every number for each class, too; by default for the whole sets only")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="new folder for metrics.json, report.md, report.html and figures/")
    g.add_argument("--update", action="store_true",
                   help="keep an evaluation in --output if it is of the same volumes, recipe and "
                   "settings, and replace it otherwise; by default --output must be new")


def check_flags(args):
    """:raises UserError: a value out of range, a flag without effect, an --output that exists"""
    if not (args.update and evaluation.is_evaluation(args.output)):
        require_new_folder(args.output)
    for name in ("vae_layouts", "refiner", "precision"):
        if getattr(args, name) is not None and not args.vae:
            raise UserError(f"{flag_of(name)} is of no use without --vae")
    for metric in registry.METRICS:
        for name in metric.flags:
            if getattr(args, name) is not None and not metric.chosen(chosen_metrics(args)):
                raise UserError(f"{flag_of(name)} is of no use without "
                                f"{' or '.join(metric.titles)} among --metrics")
    for name in ("mmd_batch", "pairs", "shortlist", "slices"):
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{flag_of(name)} {value}: must be at least 1")
    if args.bootstrap < 0 or args.bootstrap == 1:
        raise UserError(f"--bootstrap {args.bootstrap}: must be 0, or at least 2")
    if args.permutations < 0 or 0 < args.permutations < 19:
        raise UserError(f"--permutations {args.permutations}: must be 0, or at least 19, with "
                        "which p can be as small as 0.05")
    if args.mmd_range and not -np.inf < args.mmd_range[0] < args.mmd_range[1] < np.inf:
        raise UserError(f"--mmd-range {args.mmd_range[0]:g} {args.mmd_range[1]:g}: the first must "
                        "be smaller than the second")
    for name in ("real_range", "synthetic_range"):
        if getattr(args, name):
            nifti_cubes.check_range(getattr(args, name), flag_of(name))
    if args.synthetic_axes:
        try:
            axis_orders.parse_codes(args.synthetic_axes)
        except ValueError as e:
            raise UserError(f"--synthetic-axes {e}") from None
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception-weights {args.inception_weights}: no such file; "
                        "`python download.py inception` fetches it")


# --------------------------------------------------------------------------------------- volumes

def find_sets(args):
    """The real, synthetic and training sets (None without --train).

    :raises UserError: sets of two volume sizes, or too small for --mmd-batch or --slices
    """
    real = volume_sets.find_set(args.real, args.real_split, "--real",
                                value_range=args.real_range)
    synthetic = volume_sets.find_set(
        args.synthetic, args.synthetic_split, "--synthetic", default_split="all",
        value_range=args.synthetic_range, axes=args.synthetic_axes, like=real)
    train = None
    if args.train:
        is_data_folder = (Path(args.train) / "manifest.json").is_file()
        train = volume_sets.find_set(
            args.train, "train" if is_data_folder else None, "--train", like=real,
            value_range=None if is_data_folder else args.real_range)
    for found in filter(None, (real, synthetic, train)):
        print(printable(evaluation.summary_of_set(found)), flush=True)
    for found in (synthetic, train):
        if found and found.side != real.side:
            raise UserError(f"{found.flag} {found.path}: volumes of {found.side} voxels a side, "
                            f"the real ones have {real.side}; preprocess both to one --size")
    smaller = min(len(real), len(synthetic))
    if args.mmd_batch and args.mmd_batch > smaller:
        raise UserError(f"--mmd-batch {args.mmd_batch}: the smaller set has {smaller} volumes")
    if args.slices > real.side:
        raise UserError(f"--slices {args.slices}: the volumes have {real.side}")
    return real, synthetic, train


def chosen_metrics(args):
    """Names of --metrics, or all of them."""
    return args.metrics or list(registry.NAMES)


def chosen_layouts(args):
    """Layouts of --vae-layouts, or all of them, each once."""
    return list(dict.fromkeys(args.vae_layouts or SLICES_PER_TILE))


# --------------------------------------------------------------------------------------- numbers

def options_of(args):
    """The options of the metrics, from the flags."""
    return MetricOptions(
        names=tuple(chosen_metrics(args)), protocol=args.protocol,
        pairs=metric_flags.pairs_option(args.pairs), shortlist=args.shortlist,
        mmd_batch=args.mmd_batch,
        mmd_range=tuple(args.mmd_range or DEFAULTS.mmd_range), slices=args.slices,
        inception_weights=args.inception_weights, seed=args.seed, memory_gb=args.memory_gb,
        device=args.device)


def computable_metrics(args, sets, options):
    """The metrics that can be computed, before any volume is read and the VAE is loaded.

    :return: list of registry.Metric, {title: why it is not computed}
    :raises UserError: nothing that --metrics names can be computed
    """
    metrics, skipped = registry.checked(options.names, statistic.Pool(*sets), options)
    evaluation.require_some(args.metrics, metrics, skipped)
    for title, reason in skipped.items():
        print(f"{title}: will not be computed, {reason}", flush=True)
    return metrics, skipped


def is_there_already(args, sets, skipped):
    """Whether --output holds this very evaluation; says so, or what has changed."""
    if not (args.update and evaluation.is_evaluation(args.output)):
        return False
    changes = evaluation.changes(args.output, sets, settings_of(args), skipped)
    if changes:
        print(f"{args.output}: is replaced, as it is of other volumes or settings: "
              f"{'; '.join(changes)}", flush=True)
    else:
        print(f"{args.output}: is there already, of the same volumes, recipe and settings")
    return not changes


def settings_of(args):
    """The flags as metrics.json holds them, with the layouts that were chosen."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {**settings, "metrics": chosen_metrics(args), "vae_layouts": chosen_layouts(args),
            "pairs": metric_flags.pairs_option(args.pairs) or metric_flags.ALL_PAIRS}


# ------------------------------------------------------------------------------------------ main

def evaluate(args, pool, metrics, best, folder):
    """Reads the volumes and computes everything.

    :param best: ceiling.Ceiling, or None
    :param folder: for temporary files
    :return: part of the content of metrics.json; evaluation.Numbers
    """
    pool.load(args.memory_gb, folder)
    warnings = evaluation.warnings_of(pool)
    for warning in warnings:
        print(f"warning: {printable(warning)}", flush=True)
    psnr = best.fill(pool) if best else {}
    how = (metrics, pool, options_of(args), args.bootstrap, args.permutations)
    found = evaluation.measure(*how)
    evaluation.require_some(args.metrics, found.entries, found.skipped)
    content = {"vae_psnr_db": psnr, "warnings": warnings, "skipped": found.skipped,
               "metrics": found.entries}
    if args.by_class:
        names = by_class.class_names(pool.sets["real"], pool.sets["synthetic"])
        content["by_class"] = evaluation.measure_classes(names, *how, folder)
    return content, found


def main():
    args = parse_args()
    real, synthetic, train = sets = find_sets(args)
    if args.by_class:
        by_class.class_names(real, synthetic)
    by_name = {found.flag[2:]: found for found in sets if found}
    metrics, skipped = computable_metrics(args, sets, options_of(args))
    if is_there_already(args, by_name, skipped):
        return evaluation.require_named(args.metrics, skipped, args.output)
    best, skipped_layouts = None, {}
    if args.vae:
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        best, skipped_layouts = ceiling.load(args.vae, dtype, args.device, chosen_layouts(args),
                                             real.side, args.refiner)
    pool = statistic.Pool(real, synthetic, train, best.names if best else [])
    replace = evaluation.is_evaluation if args.update else None
    with atomic_folder(args.output, replace) as folder:
        computed, numbers = evaluate(args, pool, metrics, best, folder)
        content = {
            "format": evaluation.FORMAT, "version": evaluation.FORMAT_VERSION,
            "mosaicdit_version": __version__, "git_commit": git_commit(), "date": now(),
            "size": pool.side, "sets": evaluation.describe_sets(by_name, pool),
            "settings": settings_of(args), **computed,
            "skipped": {**computed["skipped"], **skipped, **skipped_layouts},
            "versions": versions("torch", "torchmetrics", "numpy", "nibabel")}
        write_text(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        evaluation_figures.draw(folder / "figures", pool, numbers.entries, numbers.nearest)
        report.write_report(folder, content)
    for line in report.terminal_lines(content):
        print(printable(line))
    print(f"{args.output}: metrics.json, report.md, report.html, figures/", flush=True)
    evaluation.require_named(args.metrics, content["skipped"], args.output)


if __name__ == "__main__":
    run_script(main)
