#!/usr/bin/env python3
"""Measures synthetic volumes against real ones: metrics.json, report.md, report.html and figures.

    python evaluate.py --real data/adni --synthetic samples/adni --train data/adni --output evaluation/adni

Each side is a data folder (its test split, unless told otherwise), a samples folder, or a folder of NIfTI cubes in [0, 1],
such as postprocess.py writes. All go through one loader. With --train, it is also asked whether training volumes were copied;
with --vae, every number is also given for real volumes that went through the VAE and back: what samples can at best reach.
"""
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from diffusion import vae as latents
from metrics import inception, intensity, memorization, ms_ssim, smoothness, volume_sets
from metrics import mmd as metrics
from metrics import statistic as comparison
from mri import mosaic
from reporting import charts, figures, report
from utils.errors import UserError, run_script
from utils.files import WEIGHTS_DIR, atomic_folder, require_new_folder, sha256_of_file, write_text
from utils.flags import add_device_flag, make_parser, positive, whole_number
from utils.progress import counter, progress

METRICS = ("ms-ssim", "mmd", "fid", "kid", "smoothness", "histogram", "memorisation")
WITHOUT_WEIGHTS = "no Inception weights; `python download.py inception` fetches them, or name them with --inception-weights FILE"


# ------------------------------------------------------------------------------------------------- the ceiling, the checks

def through_vae(real, room, layout, vae, args):
    """The real volumes as the VAE gives them back: tiled, encoded (the mean), decoded, untiled. Returns their PSNR, dB."""
    import torch

    errors = []
    for i, cube in enumerate(progress(real.volumes, f"VAE, layout {layout}")):
        moments = latents.encode_moments(vae, mosaic.tile(cube, layout)[None])
        mean = latents.draw_latents(vae.config, moments, torch.zeros_like(moments[:, :moments.shape[1] // 2]))
        room[i] = mosaic.untile(latents.decode(vae, mean)[0], real.side, layout)
        errors.append(np.square((room[i] - cube.astype(np.float64)) / 255).mean())
    return float(np.mean([10 * np.log10(1 / max(e, 1e-12)) for e in errors]))


def overlap_warnings(real, fake, train):
    """What makes numbers meaningless: the same volumes, or the same subjects, on two sides."""
    def some(ids):
        return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")

    seen = {s.flag: volume_sets.digests(s) for s in (real, fake, train) if s}
    out, theirs = [], set(seen[real.flag])
    same = [i for i, d in zip(fake.ids, seen[fake.flag]) if d in theirs]
    if set(seen[fake.flag]) == theirs:
        out.append("the real and the synthetic set are the same volumes")
    elif same:
        out.append(f"{len(same)} of {len(fake)} synthetic volumes are in the real set: {some(same)}")
    if train:
        trained = set(seen[train.flag])
        for group, word in ((real, "real"), (fake, "synthetic")):
            copies = [i for i, d in zip(group.ids, seen[group.flag]) if d in trained]
            if copies:
                out.append(f"{len(copies)} of {len(group)} {word} volumes are in the training set, voxel for voxel: {some(copies)}")
        # a subject that is but the file's name says nothing: other files have that name, too
        trained_on = {s for s, i in zip(train.subjects, train.ids) if s != i}
        known = [i for i, s, d in zip(real.ids, real.subjects, seen[real.flag]) if s in trained_on and d not in trained]
        if known:
            out.append(f"{len(known)} of {len(real)} real volumes are of subjects in the training set: {some(known)}")
    if not np.allclose(real.spacing, fake.spacing, rtol=0.01):
        sizes = [" × ".join(f"{x:.3g}" for x in s.spacing) for s in (real, fake)]
        out.append(f"voxels are {sizes[0]} mm in the real and {sizes[1]} mm in the synthetic set")
    return out


def parse_args():
    p = make_parser(__doc__)
    p.add_argument("--real", required=True, metavar="DIR", help="real volumes that were not trained on")
    p.add_argument("--synthetic", required=True, metavar="DIR", help="synthetic volumes")
    p.add_argument("--train", metavar="DIR", help="what the model was trained on (a data folder's train split), to look for copies")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder: metrics.json, report.md, report.html, figures/")
    p.add_argument("--real-split", choices=("train", "test", "all"), help="of a data folder; default: test, or all where there is none")
    p.add_argument("--synthetic-split", choices=("train", "test", "all"), help="likewise, to compare real with real")
    p.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME", help="of " + ", ".join(METRICS))
    p.add_argument("--protocol", choices=ms_ssim.PROTOCOLS, default="kwon2019", help="of MS-SSIM")
    p.add_argument("--pairs", type=int, metavar="N", help="random pairs a set for MS-SSIM; default: all. 500 volumes have 124,750")
    p.add_argument("--shortlist", type=int, default=100, metavar="K", help="look for the most similar training volume by MS-SSIM among "
                   "the K most correlated")
    p.add_argument("--mmd-batch", type=int, metavar="B", help="average the linear MMD over batches of B; default: whole sets at once")
    p.add_argument("--slices", type=int, default=1, metavar="K", help="middle slices of each view, for FID and KID")
    p.add_argument("--inception-weights", type=Path, metavar="FILE", help=f"default: {WEIGHTS_DIR}/{inception.WEIGHTS_FILE}, or torch-fidelity's cache")
    p.add_argument("--vae", metavar="ema|mse|PATH", help="give every number for real volumes that went through this VAE and back, too")
    p.add_argument("--vae-layouts", nargs="+", choices=tuple(mosaic.SLICES_PER_TILE), metavar="NAME", help="mosaics to put through the VAE: rgb "
                   "(three slices a tile), gray (one); default: both")
    p.add_argument("--precision", choices=("bf16", "fp32"), help="of the VAE's arithmetic; default: fp32")
    p.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates for the 95 %% intervals; 0: none")
    p.add_argument("--seed", type=whole_number, default=0, help="of pairs, replicates and halves")
    p.add_argument("--memory-gb", type=positive, default=4.0, metavar="GB", help="bound for volumes and blocks; sets larger than half "
                   "of it are kept in a temporary file beside --output")
    add_device_flag(p)
    args = p.parse_args()
    require_new_folder(args.output)
    features = {"fid", "kid"} & set(args.metrics)
    for flag, needed, given in (("vae_layouts", "--vae", args.vae), ("precision", "--vae", args.vae),
                                ("inception_weights", "fid or kid among --metrics", features),
                                ("mmd_batch", "mmd among --metrics", "mmd" in args.metrics)):
        if getattr(args, flag) is not None and not given:
            raise UserError(f"--{flag.replace('_', '-')} is of no use without {needed}")
    args.vae_layouts = list(dict.fromkeys(args.vae_layouts or mosaic.SLICES_PER_TILE))
    for flag in ("mmd_batch", "pairs", "shortlist", "slices"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be at least 1")
    if args.bootstrap < 0 or args.bootstrap == 1:
        raise UserError(f"--bootstrap {args.bootstrap}: must be 0, or at least 2")
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception-weights {args.inception_weights}: no such file; `python download.py inception` fetches it")
    return args


def find_sets(args):
    real = volume_sets.find_set(args.real, args.real_split, "--real")
    fake = volume_sets.find_set(args.synthetic, args.synthetic_split, "--synthetic")
    train = None
    if args.train:
        split = "train" if (Path(args.train) / "manifest.json").is_file() else None
        train = volume_sets.find_set(args.train, split, "--train")
    for s in (fake, train):
        if s and s.side != real.side:
            raise UserError(f"{s.flag} {s.path}: volumes of {s.side} voxels a side, the real ones have {real.side}; "
                            "preprocess both to one --size")
    smaller = min(len(real), len(fake))
    if args.mmd_batch and args.mmd_batch > smaller:
        raise UserError(f"--mmd-batch {args.mmd_batch}: the smaller set has {smaller} volumes")
    if args.slices > real.side:
        raise UserError(f"--slices {args.slices}: the volumes have {real.side}")
    return real, fake, train


def load_inception(args):
    """The Inception net and what its weights are; None where there are none."""
    file = args.inception_weights or inception.find_weights(WEIGHTS_DIR)
    if file is None:
        return None
    try:
        net = inception.load_net(file, args.device)
    except ValueError as e:
        raise UserError(f"--inception-weights {e}; `python download.py inception` fetches them") from None
    return net, {"file": str(file), "sha256": sha256_of_file(file)}


def measure(pool, volumes, train, net, args):
    """All numbers that are asked for, {key: entry}; why others were not computed; the closest training volumes."""
    entries, skipped, near = {}, {}, {}
    draws, why = comparison.resamples(pool, args)
    skipped.update({what: reason for what, reason in why.items() if args.bootstrap or what != "intervals"})

    def take(statistics):
        entries.update({s.key: comparison.judge(s, pool, args, *draws) for s in statistics})

    if "ms-ssim" in args.metrics:
        if volumes.shape[1] < ms_ssim.MIN_SIDE:
            skipped["MS-SSIM"] = (f"volumes of {volumes.shape[1]} voxels a side are too small for five levels; "
                                  f"at least {ms_ssim.MIN_SIDE}")
        else:
            take(ms_ssim.similarity_statistics(pool, volumes, args))
    if "mmd" in args.metrics:
        with counter("inner products of volumes", pool.size) as update:
            products = metrics.gram(volumes[:pool.size], memory_gb=args.memory_gb / 2, device=args.device, callback=update)
        take(metrics.mmd_statistics(pool, products, args))
    if net:
        take(inception.inception_statistics(pool, volumes, *net, args))
    elif {"fid", "kid"} & set(args.metrics):
        skipped.update({k.upper(): WITHOUT_WEIGHTS for k in ("fid", "kid") if k in args.metrics})
    if "smoothness" in args.metrics:
        take(smoothness.smoothness_statistics(pool, volumes))
    if "histogram" in args.metrics:
        take(intensity.histogram_statistics(pool, volumes))
    if "memorisation" in args.metrics:
        if train is None:
            skipped["memorisation"] = "the training set is not known; name it with --train DIR"
        else:
            statistics, near = memorization.memorization_statistics(pool, volumes, train, args)
            take(statistics)
    return entries, skipped, near


def load_vae(args, side):
    """The VAE, the layouts whose mosaics it can divide, and why others were left out."""
    import torch

    vae = latents.load_vae(args.vae, args.device).to(torch.bfloat16 if args.precision == "bf16" else torch.float32)
    f, sides = latents.downsampling_factor(vae), {layout: mosaic.mosaic_side(side, layout) for layout in args.vae_layouts}
    skipped = {f"VAE, {layout}": f"a mosaic of {n} pixels cannot be divided by the VAE's factor {f}"
               for layout, n in sides.items() if n % f}
    return vae, [layout for layout, n in sides.items() if not n % f], skipped


def main():
    args = parse_args()
    real, fake, train = find_sets(args)
    net = load_inception(args) if {"fid", "kid"} & set(args.metrics) else None
    vae, layouts, skipped_vae = load_vae(args, real.side) if args.vae else (None, [], {})
    with atomic_folder(args.output) as folder:
        total = len(real) * (1 + len(layouts)) + len(fake) + (len(train) if train else 0)
        volumes = volume_sets.allocate(total, real.side, args.memory_gb, folder)
        volume_sets.load(real, volumes[:len(real)])
        volume_sets.load(fake, volumes[len(real):len(real) + len(fake)])
        if train:
            volume_sets.load(train, volumes[total - len(train):])
        warnings = overlap_warnings(real, fake, train)
        for w in warnings:
            print(f"warning: {w}", flush=True)
        sets, psnr = {"real": real, "synthetic": fake}, {}
        for layout in layouts:
            start = sum(map(len, sets.values()))
            psnr[layout] = through_vae(real, volumes[start:start + len(real)], layout, vae, args)
            sets[f"vae {layout}"] = real
        del vae

        pool = comparison.Pool(sets)
        entries, skipped, near = measure(pool, volumes, train, net, args)
        content = {
            "format": "mosaicdit-evaluation", "version": 1, "size": real.side,
            "sets": {s.flag[2:]: {"path": s.path, "split": s.split, "n": len(s), "subjects": len(set(s.subjects)), "ids": s.ids,
                                  "voxel_mm": [round(float(x), 4) for x in s.spacing]} for s in (real, fake, train) if s},
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            "vae_psnr_db": psnr, "warnings": warnings, "skipped": {**skipped, **skipped_vae}, "metrics": entries,
            "versions": {"python": platform.python_version()} | {m: version(m) for m in ("torch", "torchmetrics", "numpy", "nibabel")}}
        write_text(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        draw(folder / "figures", content, pool, volumes, near, train)
        blocks = report.blocks(content, folder / "figures")
        write_text(folder / "report.md", report.markdown(blocks))
        write_text(folder / "report.html", report.html(blocks, folder))
    for line in report.summary(content):
        print(line)
    print(f"{args.output}: metrics.json, report.md, report.html, figures/")


def draw(folder, content, pool, volumes, near, train):
    folder.mkdir()
    real, fake, entries = pool.sets["real"], pool.sets["synthetic"], content["metrics"]
    middle = len(fake) // 2
    figures.montage(folder / "montage.png", [(f"real ({figures.short_name(real.ids[0])})", real.volumes[0]),
                    (f"synthetic ({figures.short_name(fake.ids[middle])})", fake.volumes[middle])], real.spacing)
    groups = {"real": real.volumes, "synthetic": fake.volumes}
    groups.update({name: volumes[pool.starts[name]:][:len(real)] for name in pool.sets if name.startswith("vae ")})
    figures.gallery(folder / "gallery.png", groups, real.spacing)
    shown = {k: e for k, e in entries.items() if e["value"] is not None and ("interval" in e or "floor" in e) and "gradient" not in k}
    if shown:
        charts.intervals(folder / "intervals.png", shown)
    gradients = {k: e for k, e in entries.items() if k.startswith("gradient_") and e["value"]}
    if gradients:
        charts.ratios(folder / "smoothness.png", gradients)
    lines = {e["name"].replace("∞", ""): e for k, e in entries.items() if k.startswith("fid_infinity_")}
    if lines:
        charts.extrapolation(folder / "fid.png", lines)
    if near:
        key = "ms_ssim" if "ms_ssim" in near else "correlation"
        value, index = near[key]
        mine = pool.index("synthetic")
        rows = [(fake.ids[i], train.ids[index[mine[i]]], value[mine[i]], fake.volumes[i], train.volumes[index[mine[i]]])
                for i in np.argsort(-value[mine], kind="stable")[:4]]
        figures.nearest_neighbors(folder / "nearest.png", rows, real.spacing, {"ms_ssim": "MS-SSIM", "correlation": "correlation"}[key])
        charts.distances(folder / "distances.png", {k: e for k, e in entries.items() if k.startswith("nearest_")})


if __name__ == "__main__":
    run_script(main)
