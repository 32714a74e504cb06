#!/usr/bin/env python3
"""Compares synthetic volumes with real ones: metrics.json, report.md, report.html and figures.

    python evaluate.py --real data/adni --synthetic samples/adni --train data/adni \\
        --output evaluation/adni

Each side is a data folder (by default its test split), a samples folder, or a folder of NIfTI
cubes in [0, 1], such as postprocess.py writes. All are read by the same loader. With --train, the
synthetic volumes are also searched for copies of training volumes. With --vae, every number is
also given for real volumes that went through the VAE: the best that samples can reach.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from diffusion.vae import load_vae
from metrics import ceiling, inception, ms_ssim, registry, statistic, volume_sets
from metrics.options import MetricOptions, NotComputed
from metrics.overlap import overlap_warnings
from mri.mosaic import SLICES_PER_TILE
from reporting import charts, figures, report
from utils.files import WEIGHTS_DIR, atomic_folder, require_new_folder, write_text
from utils.flags import add_device_flag, flag_of, make_parser, positive, whole_number
from utils.version import __version__

SPLITS = ("train", "test", "all")
DEFAULTS = MetricOptions()


# ----------------------------------------------------------------------------------------- flags

def parse_args():
    p = make_parser(__doc__)
    add_volume_flags(p.add_argument_group("volumes"))
    add_metric_flags(p.add_argument_group("metrics"))
    g = p.add_argument_group("ceiling")
    g.add_argument("--vae", metavar="ema|mse|PATH",
                   help="VAE that real volumes are encoded and decoded with, for the ceiling of "
                   "every number: ema or mse for a public one, or a folder that train_vae.py "
                   "wrote; default: no ceiling")
    g.add_argument("--vae-layouts", nargs="+", choices=tuple(SLICES_PER_TILE), metavar="NAME",
                   help="layouts of the mosaics that are encoded: rgb (three slices per tile), "
                   "gray (one slice per tile); default: both")
    g.add_argument("--precision", choices=("bf16", "fp32"),
                   help="compute dtype of the VAE; default: fp32")
    g = p.add_argument_group("computation")
    g.add_argument("--bootstrap", type=int, default=1000, metavar="N",
                   help="bootstrap replicates for the 95%% intervals; 0: no intervals")
    g.add_argument("--seed", type=whole_number, default=DEFAULTS.seed,
                   help="seed of random pairs, bootstrap replicates and halves")
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
                   help="split of --synthetic to use if it is a data folder, to compare real "
                   "volumes with real ones; default: as for --real-split")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="new folder for metrics.json, report.md, report.html and figures/")


def add_metric_flags(g):
    g.add_argument("--metrics", nargs="+", type=registry.metric_name, choices=registry.NAMES,
                   default=list(registry.NAMES), metavar="NAME",
                   help=f"metrics to compute: {registry.help_text()}")
    g.add_argument("--protocol", choices=tuple(ms_ssim.PROTOCOLS), default=DEFAULTS.protocol,
                   help="published protocol that MS-SSIM follows")
    g.add_argument("--pairs", type=int, metavar="N",
                   help="number of random pairs of volumes per set for MS-SSIM; default: all pairs "
                   "(500 volumes have 124,750)")
    g.add_argument("--shortlist", type=int, default=DEFAULTS.shortlist, metavar="K",
                   help="number of most correlated training volumes among which the most similar "
                   "one by MS-SSIM is searched for")
    g.add_argument("--mmd-batch", type=int, metavar="B",
                   help="number of volumes per batch that the linear MMD is averaged over; "
                   "default: whole sets at once")
    g.add_argument("--slices", type=int, default=DEFAULTS.slices, metavar="K",
                   help="number of middle slices of each view for FID and KID")
    g.add_argument("--inception-weights", type=Path, metavar="FILE",
                   help="weights of the Inception net for FID and KID; default: "
                   f"{WEIGHTS_DIR}/{inception.WEIGHTS_FILE}, or torch-fidelity's cache")


def check_flags(args):
    """:raises UserError: a value out of range, a flag without effect, an --output that exists"""
    require_new_folder(args.output)
    for name in ("vae_layouts", "precision"):
        if getattr(args, name) is not None and not args.vae:
            raise UserError(f"{flag_of(name)} is of no use without --vae")
    for metric in registry.METRICS:
        for name in metric.flags:
            if getattr(args, name) is not None and not metric.chosen(args.metrics):
                raise UserError(f"{flag_of(name)} is of no use without "
                                f"{' or '.join(metric.titles)} among --metrics")
    for name in ("mmd_batch", "pairs", "shortlist", "slices"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"{flag_of(name)} {value}: must be at least 1")
    if args.bootstrap < 0 or args.bootstrap == 1:
        raise UserError(f"--bootstrap {args.bootstrap}: must be 0, or at least 2")
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception-weights {args.inception_weights}: no such file; "
                        "`python download.py inception` fetches it")


# --------------------------------------------------------------------------------------- volumes

def find_sets(args):
    """The real, synthetic and training sets (None without --train).

    :raises UserError: sets of two volume sizes, or too small for --mmd-batch or --slices
    """
    real = volume_sets.find_set(args.real, args.real_split, "--real")
    synthetic = volume_sets.find_set(args.synthetic, args.synthetic_split, "--synthetic")
    train = None
    if args.train:
        split = "train" if (Path(args.train) / "manifest.json").is_file() else None
        train = volume_sets.find_set(args.train, split, "--train")
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


def chosen_layouts(args):
    """Layouts of --vae-layouts, or all of them, each once."""
    return list(dict.fromkeys(args.vae_layouts or SLICES_PER_TILE))


# --------------------------------------------------------------------------------------- numbers

def measure(metrics, pool, options, replicates):
    """Computes all numbers.

    :return: {key: entry of metrics.json}, {title: why it was not computed}, {key: for each
        synthetic volume, the index of the nearest training volume}
    """
    resampled = statistic.resamples(pool, replicates, options.seed)
    entries, skipped, nearest = {}, dict(resampled.missing), {}
    for metric in metrics:
        try:
            for found in metric.statistics(pool, options):
                entries[found.key] = statistic.summarize(found, pool, resampled)
                if found.nearest is not None:
                    nearest[found.key] = found.nearest
        except NotComputed as e:
            skipped.update({metric.titles[name]: str(e) for name in metric.chosen(options.names)})
    return entries, skipped, nearest


def describe_set(found):
    """A set as metrics.json holds it."""
    return {"path": found.path, "split": found.split, "n": len(found),
            "subjects": len(set(found.subjects)), "ids": found.ids,
            "voxel_mm": [round(float(size), 4) for size in found.voxel_sizes]}


def settings_of(args):
    """The flags as metrics.json holds them, with the layouts that were chosen."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {**settings, "vae_layouts": chosen_layouts(args)}


def versions():
    packages = ("torch", "torchmetrics", "numpy", "nibabel")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


# -------------------------------------------------------------------------------------- pictures

def draw(folder, pool, entries, nearest):
    """Writes all figures."""
    folder.mkdir()
    real, synthetic = pool.sets["real"], pool.sets["synthetic"]
    middle = len(synthetic) // 2
    figures.montage(
        folder / "montage.png",
        [(f"real ({figures.short_name(real.ids[0])})", pool.part("real")[0]),
         (f"synthetic ({figures.short_name(synthetic.ids[middle])})",
          pool.part("synthetic")[middle])],
        real.voxel_sizes)
    groups = {"real": pool.part("real"), "synthetic": pool.part("synthetic")}
    for layout in pool.layouts:
        groups[f"real after VAE, {layout}"] = pool.part(f"vae {layout}")
    figures.gallery(folder / "gallery.png", groups, real.voxel_sizes)
    charts.draw_all(folder, entries)
    if nearest:
        key = "nearest_ms_ssim" if "nearest_ms_ssim" in nearest else "nearest_correlation"
        draw_nearest(folder / "nearest.png", pool, entries[key], nearest[key])


def draw_nearest(path, pool, entry, index):
    """The synthetic volumes closest to a training volume.

    :param entry: of metrics.json, with the similarity of each volume
    :param index: (N,) nearest training volume of each synthetic one
    """
    similarity = np.array(entry["of_volumes"]["synthetic"])
    synthetic, training = pool.part("synthetic"), pool.part("train")
    rows = [(pool.sets["synthetic"].ids[i], pool.train.ids[index[i]], similarity[i], synthetic[i],
             training[index[i]]) for i in np.argsort(-similarity, kind="stable")[:4]]
    measure_name = entry["name"].split(", ")[-1]
    figures.nearest_neighbors(path, rows, pool.sets["real"].voxel_sizes, measure_name)


# ------------------------------------------------------------------------------------------ main

def main():
    args = parse_args()
    real, synthetic, train = find_sets(args)
    vae, layouts, skipped_layouts = None, [], {}
    if args.vae:
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        vae = load_vae(args.vae, args.device).to(dtype)
        layouts, skipped_layouts = ceiling.usable_layouts(vae, chosen_layouts(args), real.side)
    pool = statistic.Pool(real, synthetic, train, layouts)
    options = MetricOptions(
        names=tuple(args.metrics), protocol=args.protocol, pairs=args.pairs,
        shortlist=args.shortlist, mmd_batch=args.mmd_batch, slices=args.slices,
        inception_weights=args.inception_weights, seed=args.seed, memory_gb=args.memory_gb,
        device=args.device)
    metrics, skipped = registry.checked(options.names, pool, options)
    with atomic_folder(args.output) as folder:
        pool.load(args.memory_gb, folder)
        warnings = overlap_warnings(pool)
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        psnr = {}
        for layout in layouts:
            psnr[layout] = ceiling.through_vae(
                pool.part("real"), pool.part(f"vae {layout}"), layout, vae)
        del vae
        entries, skipped_later, nearest = measure(metrics, pool, options, args.bootstrap)
        content = {
            "format": "mosaicdit-evaluation", "version": 1, "mosaicdit_version": __version__,
            "size": pool.side,
            "sets": {found.flag[2:]: describe_set(found)
                     for found in (real, synthetic, train) if found},
            "settings": settings_of(args), "vae_psnr_db": psnr, "warnings": warnings,
            "skipped": {**skipped_later, **skipped, **skipped_layouts}, "metrics": entries,
            "versions": versions()}
        write_text(folder / "metrics.json",
                   json.dumps(content, indent=1, allow_nan=False) + "\n")
        draw(folder / "figures", pool, entries, nearest)
        report.write_report(folder, content)
    for line in report.terminal_lines(content):
        print(line)
    print(f"{args.output}: metrics.json, report.md, report.html, figures/")


if __name__ == "__main__":
    run_script(main)
