#!/usr/bin/env python3
"""Measures synthetic volumes against real ones: metrics.json, report.md and a figure.

    python evaluate.py --real data/adni --synthetic samples/adni --output evaluation/adni

Either side is a data folder (its test split, unless told otherwise), a samples folder, or a folder of NIfTI cubes in
[0, 1], such as postprocess.py writes. All go through one loader.
"""
import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import figures
import manifest
import metrics
import mosaic
import volumes
from cli import UserError, add_device, atomic_folder, parser, progress, refuse_existing, run, write_text

METRICS = ("ms-ssim", "mmd", "fid")
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


@dataclass
class VolumeSet:
    """Volumes of one side of the comparison."""
    path: str
    split: str | None
    ids: list
    volumes: np.ndarray     # (N, D, D, D) uint8, RAS
    spacing: np.ndarray     # mm, (3,)


def load_set(path, split, flag):
    """Loads a data folder, a samples folder, or a folder of NIfTI cubes in [0, 1].

    :param split: of a data folder; None: its test split, or all where it has none
    :raises UserError: nothing there, fewer than 2 volumes, not cubes of one size, outside [0, 1], constant
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    if (path / "manifest.json").is_file() or (path / "samples.json").is_file():
        header, entries = manifest.read_manifest(path)
        if entries:
            if split is None:
                split = "test" if any(v["split"] == "test" for v in entries) else "all"
            ids = [v["id"] for v in manifest.select(entries, split, path)]
        else:
            ids = sorted(p.stem for p in (path / "mosaics").glob("*.png"))
            _no_split(split, flag, path)
        cubes = [mosaic.untile(manifest.read_mosaic(manifest.mosaic_path(path, i), header), header["size"], header["layout"])
                 for i in progress(ids, f"{flag[2:]} volumes")]
        spacing = volumes.voxel_sizes(header["affine"])
    else:
        _no_split(split, flag, path)
        scans = volumes.find_scans(path, flag)
        ids, cubes = [s.id for s in scans], []
        for scan in progress(scans, f"{flag[2:]} volumes"):
            ras, affine = volumes.to_ras(*volumes.read_nifti(scan.path))
            if len(set(ras.shape)) != 1 or ras.min() < 0 or ras.max() > 1:
                raise UserError(f"{scan.path}: shape {ras.shape}, intensities {ras.min():g} to {ras.max():g}: not a cube in [0, 1]; "
                                f"run preprocess.py on {path} and give {flag} the data folder")
            cubes.append(volumes.to_uint8(ras, (0, 1)))
            spacing = volumes.voxel_sizes(affine)
    if len(cubes) < 2:
        raise UserError(f"{flag} {path}: holds {len(cubes)} volumes; at least 2 are needed")
    for i, cube in zip(ids, cubes):
        if cube.shape != cubes[0].shape:
            raise UserError(f"{flag} {path}: {i} is {cube.shape}, {ids[0]} is {cubes[0].shape}; preprocess them to one --size")
        if cube.min() == cube.max():
            raise UserError(f"{flag} {path}: {i} is constant, {cube.flat[0]}; take it out")
    return VolumeSet(str(path), split, ids, np.stack(cubes), spacing)


def _no_split(split, flag, path):
    if split is not None:
        raise UserError(f"{flag}-split {split}: {path} is no data folder and has no splits; leave the flag out")


def inception_weights(path):
    """The Inception file: --inception-weights, else download.py's, else torch-fidelity's own cache. None if there is none."""
    if path:
        if not path.is_file():
            raise UserError(f"--inception-weights {path}: no such file; `python download.py inception` fetches it")
        return path
    places = [Path("weights") / INCEPTION, Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION]
    return next((p for p in places if p.is_file()), None)


def measure(real, fake, args):
    """All that is asked for. A metric that cannot be computed holds its reason under "skipped"."""
    results = {}
    n = {"real": len(real.volumes), "synthetic": len(fake.volumes)}
    if "ms-ssim" in args.metrics:
        results["ms-ssim"] = entry = {"protocol": args.protocol, "formula": metrics.PROTOCOLS[args.protocol][1], "range": [-1, 1],
                                      "L": metrics.PROTOCOLS[args.protocol][0], "n": n}
        side = real.volumes.shape[1]
        if side < metrics.SMALLEST:
            entry["skipped"] = f"volumes of {side} voxels are too small for five levels; at least {metrics.SMALLEST}"
        else:
            for name, group in (("synthetic", fake), ("real", real)):
                count = len(group.ids) * (len(group.ids) - 1) // 2
                with tqdm(total=count, desc=f"MS-SSIM {name} pairs", disable=None) as bar:
                    values = metrics.ms_ssim_pairs(group.volumes, args.protocol, device=args.device, callback=bar.update)
                entry[name] = {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if count > 1 else None, "pairs": count}
    if "mmd" in args.metrics:
        rbf, median = metrics.mmd_rbf(real.volumes, fake.volumes)
        results["mmd"] = {"linear": {"value": metrics.mmd_linear(real.volumes, fake.volumes, args.mmd_batch), "kernel": "linear, biased",
                                     "batch": args.mmd_batch or "whole sets"},
                          "rbf": {"value": rbf, "kernel": "Gaussian, unbiased", "median_distance": median}, "range": [0, 1], "n": n}
    if "fid" in args.metrics:
        results["fid"] = entry = {"features": "Inception 2048 (pt_inception-2015-12-05), torchmetrics",
                                  "slices": "centre, one a volume", "n": n}
        weights = inception_weights(args.inception_weights)
        if weights is None:
            entry["skipped"] = "no Inception weights; `python download.py inception`, or --inception-weights FILE"
        else:
            entry["weights"] = {"file": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
            try:
                entry.update(metrics.frechet_inception_distances(real.volumes, fake.volumes, weights, device=args.device))
            except ValueError as e:
                raise UserError(f"--inception-weights {e}; `python download.py inception` fetches them") from None
            if min(n.values()) < 2048:
                entry["note"] = "fewer than 2048 volumes: the covariances are singular and the value is biased upwards"
    return results


def report(real, fake, results, warnings):
    """report.md: what was compared, each number with its protocol, the figure."""
    lines = ["# Evaluation", "", "| | folder | split | volumes |", "|---|---|---|---|"]
    lines += [f"| {name} | `{s.path}` | {s.split or '–'} | {len(s.ids)} of {'³, '.join([str(s.volumes.shape[1]), ''])[:-2]} |"
              for name, s in (("real", real), ("synthetic", fake))]
    lines += [""] + [f"**Warning:** {w}\n" for w in warnings]
    lines += ["| metric | synthetic | real | how |", "|---|---|---|---|"]
    r = results.get("ms-ssim")
    if r:
        how = f"`{r['protocol']}`, volumes in [-1, 1], L = {r['L']:g}, all pairs; close to the real set's is good"
        cell = [r["skipped"], "–"] if "skipped" in r else [
            f"{100 * r[k]['mean']:.2f}" + (f" ± {100 * r[k]['std']:.2f}" if r[k]["std"] is not None else "") + f" ({r[k]['pairs']} pairs)"
            for k in ("synthetic", "real")]
        lines.append(f"| MS-SSIM, % | {cell[0]} | {cell[1]} | {how} |")
    r = results.get("mmd")
    if r:
        batch = r["linear"]["batch"]
        how = f"voxels in [0, 1], biased, {batch if isinstance(batch, str) else f'mean over batches of {batch}'}; low is good"
        lines.append(f"| MMD, linear | {r['linear']['value']:.5g} | – | {how} |")
        how = f"unbiased, median distance {r['rbf']['median_distance']:.4g}; low is good"
        lines.append(f"| MMD, Gaussian | {r['rbf']['value']:.5g} | – | {how} |")
    r = results.get("fid")
    if r:
        for view in metrics.VIEW_AXIS:
            value = r["skipped"] if "skipped" in r else f"{r[view]:.4g}"
            how = f"{r['features']}, weights {r['weights']['sha256'][:8]}; low is good" if "weights" in r else "–"
            lines.append(f"| FID-{view} | {value} | – | {how} |")
        lines += ["", f"FID: {r['note']}."] if "note" in r else []
    lines += ["", "![three views by three depths](figures/montage.png)", "",
              "Values depend on the number of volumes, the batch and the data; compare only what was computed alike.", ""]
    return "\n".join(lines)


def main():
    p = parser(__doc__)
    p.add_argument("--real", required=True, metavar="DIR", help="real volumes")
    p.add_argument("--synthetic", required=True, metavar="DIR", help="synthetic volumes")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder: metrics.json, report.md, figures/")
    p.add_argument("--real-split", choices=("train", "test", "all"), help="of a data folder; default: test, or all where there is none")
    p.add_argument("--synthetic-split", choices=("train", "test", "all"), help="likewise, to compare real with real")
    p.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME", help="of " + ", ".join(METRICS))
    p.add_argument("--protocol", choices=metrics.PROTOCOLS, default="kwon2019", help="of MS-SSIM")
    p.add_argument("--mmd-batch", type=int, metavar="B", help="average the linear MMD over batches of B; default: whole sets at once")
    p.add_argument("--inception-weights", type=Path, metavar="FILE", help=f"default: weights/{INCEPTION}, or torch-fidelity's cache")
    add_device(p)
    args = p.parse_args()
    refuse_existing(args.output)
    if args.mmd_batch is not None and args.mmd_batch < 1:
        raise UserError(f"--mmd-batch {args.mmd_batch}: must be at least 1")

    real = load_set(args.real, args.real_split, "--real")
    fake = load_set(args.synthetic, args.synthetic_split, "--synthetic")
    if real.volumes.shape[1] != fake.volumes.shape[1]:
        raise UserError(f"--synthetic {args.synthetic}: volumes of {fake.volumes.shape[1]} voxels a side, the real ones have "
                        f"{real.volumes.shape[1]}; preprocess both to one --size")
    smaller = min(len(real.ids), len(fake.ids))
    if args.mmd_batch and args.mmd_batch > smaller:
        raise UserError(f"--mmd-batch {args.mmd_batch}: the smaller set has {smaller} volumes")
    warnings = []
    if real.volumes.shape == fake.volumes.shape and (real.volumes == fake.volumes).all():
        warnings.append("the real and the synthetic set are the same volumes.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results = measure(real, fake, args)
    content = {"real": {"path": real.path, "split": real.split, "ids": real.ids}, "size": int(real.volumes.shape[1]),
               "synthetic": {"path": fake.path, "split": fake.split, "ids": fake.ids}, "warnings": warnings, "metrics": results,
               "versions": {"python": platform.python_version(), **{m: version(m) for m in ("torch", "torchmetrics", "numpy", "nibabel")}}}
    with atomic_folder(args.output) as folder:
        (folder / "figures").mkdir()
        middle = len(fake.ids) // 2
        figures.montage(folder / "figures" / "montage.png", [(f"real ({real.ids[0]})", real.volumes[0]),
                        (f"synthetic ({fake.ids[middle]})", fake.volumes[middle])], real.spacing)
        figures.gallery(folder / "figures" / "gallery.png", {"real": real.volumes, "synthetic": fake.volumes}, real.spacing)
        write_text(folder / "metrics.json", json.dumps(content, indent=1) + "\n")
        text = report(real, fake, results, warnings)
        write_text(folder / "report.md", text)
    print("\n".join(line for line in text.splitlines() if line.startswith(("| ", "**"))))
    print(f"{args.output}: metrics.json, report.md, figures/montage.png, figures/gallery.png")


if __name__ == "__main__":
    run(main)
