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
    anatomy_tables,
    by_class,
    ceiling,
    evaluation,
    nifti_cubes,
    over_training,
    reader_scores,
    registry,
    statistic,
    volume_sets,
)
from metrics import flags as metric_flags
from metrics.options import MetricOptions
from mri import axis_orders
from mri.mosaic import SLICES_PER_TILE
from reporting import (
    evaluation_figures,
    latex,
    reader_report,
    reader_study,
    report,
    viewer,
)
from reporting import flags as report_flags
from reporting import over_training as over_training_report
from utils.escaping import printable
from utils.files import atomic_folder, require_new_folder, write_text
from utils.flags import flag_of, make_parser
from utils.provenance import git_commit, now, versions
from utils.skipped import lines_of_skipped
from utils.version import __version__

DEFAULTS = MetricOptions()


# ----------------------------------------------------------------------------------------- flags

def parse_args():
    p = make_parser(__doc__)
    metric_flags.add_set_flags(p.add_argument_group("volumes"))
    metric_flags.add_metric_flags(p.add_argument_group("metrics"))
    metric_flags.add_ceiling_flags(p.add_argument_group("ceiling"))
    report_flags.add_report_flags(p.add_argument_group("report"))
    report_flags.add_reader_study_flags(p.add_argument_group("reader study"))
    metric_flags.add_training_flags(p.add_argument_group("checkpoints of a run"))
    metric_flags.add_computation_flags(p.add_argument_group("computation"))
    args = p.parse_args()
    report_flags.check_purpose(p, vars(args))
    metric_flags.check_resampling(args.bootstrap, args.permutations)
    if not args.score:
        check_flags(args)
    return args


def check_flags(args):
    """:raises UserError: a value out of range, a flag without effect, an --output that exists"""
    check_output(args)
    for name in ("vae_layouts", "refiner", "precision"):
        if getattr(args, name) is not None and not args.vae:
            raise UserError(f"{flag_of(name)} has no effect without --vae")
    for metric in registry.METRICS:
        for name in metric.flags:
            if getattr(args, name) is not None and not metric.chosen(chosen_metrics(args)):
                raise UserError(f"{flag_of(name)} has no effect without "
                                f"{' or '.join(metric.titles)} among --metrics")
    for name in ("mmd_batch", "num_samples", "pairs", "shortlist", "slices"):
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{flag_of(name)} {value}: must be at least 1")
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


def check_output(args):
    """:raises UserError: --output exists, and is not to be replaced or continued"""
    if args.ckpt_folder and (args.output / over_training.SAMPLES_FOLDER).is_dir():
        return      # resumed: samples that are there stay
    if not (args.update and evaluation.is_evaluation(args.output)):
        require_new_folder(args.output)


# --------------------------------------------------------------------------------------- volumes

def find_sets(args):
    """The real, synthetic and training sets (None without --train)."""
    real, train = find_real_and_training(args)
    return real, find_synthetic(args, args.synthetic, real), train


def find_real_and_training(args):
    """The real and training sets (None without --train).

    :raises UserError: sets of two volume sizes, or too small for --slices
    """
    real = volume_sets.find_set(args.real, args.real_split, "--real",
                                value_range=args.real_range)
    train = None
    if args.train:
        is_data_folder = (Path(args.train) / "manifest.json").is_file()
        train = volume_sets.find_set(
            args.train, "train" if is_data_folder else None, "--train", like=real,
            value_range=None if is_data_folder else args.real_range)
    for found in filter(None, (real, train)):
        evaluation.announce(found, real)
    if args.slices > real.side:
        raise UserError(f"--slices {args.slices}: the volumes have {real.side}")
    return real, train


def find_synthetic(args, path, real):
    """The synthetic set.

    :raises UserError: its volumes are not of the real ones' size, or too few for --mmd-batch
    """
    synthetic = volume_sets.find_set(
        path, args.synthetic_split, "--synthetic", default_split="all",
        value_range=args.synthetic_range, axes=args.synthetic_axes, like=real)
    evaluation.announce(synthetic, real)
    smaller = min(len(real), len(synthetic))
    if args.mmd_batch and args.mmd_batch > smaller:
        raise UserError(f"--mmd-batch {args.mmd_batch}: the smaller set has {smaller} volumes")
    return synthetic


def chosen_metrics(args):
    """Names of --metrics, or all that need no request."""
    return args.metrics or registry.default_names(vars(args))


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
        features=args.features, utility=args.utility,
        inception_weights=args.inception_weights, meshnet=args.meshnet,
        anatomy_real=tuple(args.anatomy_real or ()),
        anatomy_synthetic=tuple(args.anatomy_synthetic or ()), seed=args.seed,
        memory_gb=args.memory_gb, device=args.device)


def computable_metrics(args, sets, options):
    """The metrics that can be computed, before any volume is read and the VAE is loaded.

    :return: list of registry.Metric, {title: why it is not computed}
    :raises UserError: nothing that was asked for by name can be computed
    """
    metrics, skipped = registry.checked(options.names, statistic.Pool(*sets), options)
    evaluation.require_some(registry.requested(vars(args)), metrics, skipped)
    for line in lines_of_skipped(skipped, "will not be computed"):
        print(printable(line), flush=True)
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
    tables = [*(args.anatomy_real or ()), *(args.anatomy_synthetic or ())]
    return {**settings, "metrics": chosen_metrics(args), "vae_layouts": chosen_layouts(args),
            "pairs": metric_flags.pairs_option(args.pairs) or metric_flags.ALL_PAIRS,
            "anatomy_tables": anatomy_tables.checksum(tables) if tables else None}


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
    evaluation.require_some(registry.requested(vars(args)), found.entries, found.skipped)
    content = {"vae_psnr_db": psnr, "warnings": warnings, "skipped": found.skipped,
               "metrics": found.entries}
    if args.by_class:
        names = by_class.class_names(pool.sets["real"], pool.sets["synthetic"])
        content["by_class"] = evaluation.measure_classes(names, *how, folder)
    return content, found


def make_reader_study(args):
    """Writes the page of a reader study, and its key."""
    real, synthetic, _ = find_sets(args)
    page, key = reader_study.make({"real": real, "synthetic": synthetic}, args.reader_study,
                                  args.seed)
    with atomic_folder(args.output) as folder:
        write_text(folder / reader_study.PAGE_FILE, page)
        write_text(folder / reader_study.KEY_FILE, json.dumps(key, indent=1) + "\n")
    for line in (*real.warnings, *synthetic.warnings, *real.notes(), *synthetic.notes()):
        print(f"warning: {printable(line)}", flush=True)
    print(reader_study.summary(args.output, key, page), flush=True)


def score_readers(args):
    """Scores the answers of readers; writes scores.json and scores.md to --output, if given."""
    truth, study = reader_study.read_key(args.key)
    answers = reader_study.read_all_answers(args.score, truth, study)
    scores = {"study": study, **reader_scores.score(
        truth, {found.reader: found.ratings for found in answers}, args.bootstrap,
        args.permutations, args.seed)}
    for line in reader_report.terminal_lines(scores):
        print(printable(line), flush=True)
    if args.output:
        with atomic_folder(args.output) as folder:
            write_text(folder / "scores.json", json.dumps(scores, indent=1) + "\n")
            write_text(folder / "scores.md", reader_report.markdown(scores))


def evaluate_run(args):
    """--ckpt-folder: quality and copying of samples of each checkpoint."""
    # here, as TensorBoard takes seconds
    from training import checkpoint_choice, condition_choice, log_lines

    checkpoints = checkpoint_choice.checkpoints_by_step(args.ckpt_folder)
    first = next(iter(checkpoints.values()))
    losses = log_lines.values_by_step(args.ckpt_folder / "log.jsonl", "held_out_loss")
    covariates = condition_choice.covariates_of(first)
    flags = {"--conditions": condition_choice.COHORT if covariates else None,
             "--sampler": args.sampler, "--num-sampling-steps": args.num_sampling_steps,
             "--class-label": args.class_label or "cohort", "--seed": args.seed,
             "--device": args.device}
    real, train = find_real_and_training(args)
    pools, rows = over_training.PoolOfRun(real, train, args.memory_gb, args.output), []
    for step, checkpoint in checkpoints.items():
        folder = args.output / over_training.SAMPLES_FOLDER / checkpoint.stem
        over_training.sample(checkpoint, folder, args.num_samples or metric_flags.SAMPLES, flags)
        pool = pools.with_samples(find_synthetic(args, folder, real))
        rows.append(over_training.numbers(step, pool, options_of(args), losses))
    over_training_report.write(args.output, rows, over_training.COLUMNS, str(args.ckpt_folder),
                               covariates)
    for line in over_training_report.findings(rows):
        print(line)
    print(f"{args.output}: report.md, over-training.tsv, figures/over-training.png, samples/")


def main():
    args = parse_args()
    if args.score:
        return score_readers(args)
    if args.reader_study is not None:
        return make_reader_study(args)
    if args.ckpt_folder:
        return evaluate_run(args)
    real, synthetic, train = sets = find_sets(args)
    if args.by_class:
        by_class.class_names(real, synthetic)
    by_name = {found.flag[2:]: found for found in sets if found}
    metrics, skipped = computable_metrics(args, sets, options_of(args))
    if is_there_already(args, by_name, skipped):
        return evaluation.require_named(registry.requested(vars(args)), skipped, args.output)
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
        for name, text in evaluation.files_of(metrics, pool, options_of(args), numbers).items():
            write_text(folder / name, text)
        write_text(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        evaluation_figures.draw(folder / "figures", pool, numbers.entries, numbers.nearest)
        flagged = numbers.entries.get("copies", {}).get("flagged", ())
        viewers = viewer.make_viewers(pool, args.viewer_volumes, flagged)
        report.write_report(folder, content, viewers)
        if args.latex:
            write_text(folder / "table.tex", latex.tables(content))
    for line in report.terminal_lines(content):
        print(printable(line))
    for note in filter(None, (shown.note() for shown in viewers)):
        print(note)
    print(f"{args.output}: metrics.json, report.md, report.html, figures/"
          f"{', table.tex' if args.latex else ''}", flush=True)
    evaluation.require_named(registry.requested(vars(args)), content["skipped"], args.output)


if __name__ == "__main__":
    run_script(main)
