#!/usr/bin/env python3
"""NIfTI scans -> mosaics and manifest.json.

    python preprocess.py --input scans/ --output data/adni
    python preprocess.py --input bids/ --labels bids/participants.tsv --label-column group --output data/adni

    python preprocess.py --input heads/ --mask 'masks/{id}_mask.nii.gz' --n4 --crop brain --fit pad --output data/heads

Each scan is brought to RAS order, resampled to a cube over the same field of view, mapped from a percentile window of
its intensities to 8 bits, and laid out on a sheet. A scan that cannot be used is named with its mend and skipped; the
others go on, and the exit code is then 1. Contact sheets and a table of what is odd are in qc/: look at them.
"""
import contextlib
import ctypes
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from mri import geometry, intensity, mosaic, nifti, scans
from mri import job_array as shards
from mri import preparation as prep
from mri import quality_control as qc
from mri.cohort import labels_of, parse_ratio, split_subjects
from mri.manifest import MAX_PIXELS, MAX_VOLUMES, bias_path, write_manifest
from mri.mosaic_files import mosaic_path, write_mosaic
from utils.errors import UserError, run_script
from utils.files import atomic_folder
from utils.flags import CPU_CORES, make_parser, non_negative, shard, whole_number
from utils.progress import progress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>

def prepare(scan, folder, args):
    """One scan -> its mosaic on disk. Returns its manifest entry and its look (`qc.look`), or the reason (str) why it was skipped."""
    try:
        source = nifti.read_scan(scan.path, args.volume)
        ras, affine = geometry.to_ras(source.array, source.affine)
        entry = dict(id=scan.id, subject=scan.subject, source=str(scan.path.resolve()), shape=list(source.array.shape),
                     affine=source.affine.tolist(), window=None)
        if source.volumes > 1:
            entry["volume"] = args.volume
        if source.codes != (1, 1):
            entry["codes"] = list(source.codes)
        if source.warnings:
            entry["warnings"] = list(source.warnings)
        mask, masked = None, qc.is_masked(ras)
        if args.mask:
            path = prep.mask_path(args.mask, scan)
            mask, entry["mask"] = prep.read_mask(path, ras.shape, affine), str(path.resolve())
        if args.n4:
            field = prep.bias_field(ras, geometry.voxel_sizes(affine), mask, threads=1)
            ras, entry["n4"] = prep.divide_bias(ras, field), True
            nifti.write_nifti(bias_path(folder, scan.id), field, geometry.grid_over(ras.shape, affine, field.shape))
        if mask is not None:
            ras = prep.apply_mask(ras, mask)
        if args.crop == "brain":
            entry["crop"] = prep.brain_box(ras, geometry.voxel_sizes(affine), args.crop_margin, mask)
            entry["outside"] = prep.border(ras)[0]
            ras, affine = prep.crop(ras, entry["crop"]), prep.prepared_grid(entry)[1]
        window = intensity.intensity_window(ras, args.window)
        entry["window"] = list(window)
        cube = intensity.to_uint8(geometry.to_cube(ras, affine, args.size, args.fit, outside=window[0]), window)
    except UserError as e:
        return str(e) if str(scan.path) in str(e) else f"{scan.path}: {e}"
    except ValueError as e:
        return f"{scan.path}: {e}; widen --window, or take it out"
    write_mosaic(mosaic_path(folder, scan.id), mosaic.tile(cube, args.layout))
    return entry, qc.look(cube, geometry.voxel_sizes(geometry.cube_affine(ras.shape, affine, args.size, args.fit)), masked)








def start_worker():
    """One thread a process, and freed arrays kept for the next scan: glibc would give each back, and fault its pages in anew,
    which takes a fifth of a scan's time."""
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2 ** 28)  # bytes


def map_scans(scans, folder, args):
    """Runs `prepare` over the scans, in processes, with progress; results in the order of the scans."""
    if args.workers == 1:
        start_worker()
        return [prepare(s, folder, args) for s in progress(scans, "scans")]
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=start_worker) as pool:
        try:
            jobs = [pool.submit(prepare, s, folder, args) for s in scans]
            return [job.result() for job in progress(jobs, "scans")]
        except BrokenProcessPool:
            raise UserError("--workers: a worker was killed, likely out of memory; use fewer workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def main():
    p = make_parser(__doc__)
    p.add_argument("--input", required=True, metavar="DIR|GLOB|TSV", help="where the scans are (.nii, .nii.gz, "
                   ".hdr with .img, .mgz); in a BIDS tree the *_T1w files are taken; a TSV has columns path and, if wanted, id and subject")
    p.add_argument("--output", type=Path, required=True, help="new data folder")
    p.add_argument("--size", type=int, default=128, help="side D of the cube, voxels")
    p.add_argument("--layout", choices=mosaic.SLICES_PER_TILE, default="rgb", help="three slices a tile, or one")
    p.add_argument("--fit", choices=geometry.FITS, default="stretch", help="field of view fills the cube, or voxels stay cubic")
    p.add_argument("--window", type=float, nargs=2, default=(0.0, 99.9), metavar=("LO", "HI"),
                   help="percentiles of a scan's intensities that become 0 and 255")
    p.add_argument("--volume", type=whole_number, metavar="K", help="take volume K, from 0, of files that have several")
    p.add_argument("--mask", metavar="FILE|PATTERN", help="brain mask on the scan's grid, voxels above 0.5 are kept; {id}, {subject}, "
                   "{name} (the scan's file name without suffix) and {dir} (its folder) stand for each scan's own")
    p.add_argument("--n4", action="store_true", help="N4 bias correction, in the mask where there is one; needs SimpleITK "
                   "(requirements-extra.txt)")
    p.add_argument("--crop", choices=("none", "brain"), default="none", help="keep the box about the mask, or about a skull-stripped brain")
    p.add_argument("--crop-margin", type=non_negative, default=5.0, metavar="MM", help="kept around the brain")
    p.add_argument("--labels", type=Path, metavar="FILE.tsv", help="table with a class for each participant_id (or id)")
    p.add_argument("--label-column", metavar="NAME", help="column of --labels that holds the class")
    p.add_argument("--split", default="63:32", metavar="TRAIN:TEST", help="proportion of subjects to train on and to hold out")
    p.add_argument("--seed", type=whole_number, default=0, help="of the split")
    p.add_argument("--workers", type=int, default=CPU_CORES, help="processes, of one thread each")
    p.add_argument("--shard", type=shard, metavar="I/N", help="do part I of N, counted from 1, such as one task of a job array; "
                   "the last to end writes --output")
    args = p.parse_args()

    size = max(args.size, 8)
    side = mosaic.mosaic_side(size, args.layout)
    if args.size < 8 or side % 16:
        near = [d for d in range(max(8, size - 16), size + 17) if mosaic.mosaic_side(d, args.layout) % 16 == 0]
        raise UserError(f"--size {args.size}: gives a mosaic of {side} pixels, which must be a multiple of 16 "
                        f"(VAE factor x patch size); near it work {', '.join(map(str, near))}")
    if not 0 <= args.window[0] < args.window[1] <= 100:
        raise UserError(f"--window {args.window[0]:g} {args.window[1]:g}: two percentiles, 0 <= LO < HI <= 100")
    if bool(args.labels) != bool(args.label_column):
        raise UserError("--labels and --label-column go together; give both, or neither")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if side ** 2 > MAX_PIXELS:
        raise UserError(f"--size {args.size}: gives a mosaic of {side} x {side} pixels, more than the {MAX_PIXELS} that are read back")
    if args.n4:
        prep.load_n4()
    if args.mask:
        prep.check_pattern(args.mask)
    ratio = parse_ratio(args.split)

    found = scans.find_scans(args.input, "--input")
    if args.mask:  # masks that lie among the scans
        masks = {prep.mask_path(args.mask, s).resolve() for s in found}
        found = [s for s in found if s.path.resolve() not in masks]
    if len(found) > MAX_VOLUMES:
        raise UserError(f"--input {args.input}: {len(found)} scans, more than the {MAX_VOLUMES} that a manifest holds; split the cohort")
    classes, class_names, skipped = labels_of(found, args.labels, args.label_column)
    usable = [s for s in found if s.id not in skipped]
    folders = ("mosaics", "bias") if args.n4 else ("mosaics",)  # that prepare writes into
    if args.shard and not shards.ready(usable, args, map_scans, folders):
        return
    with atomic_folder(args.output) as folder:
        for name in (*folders, "qc"):
            (folder / name).mkdir()
        results = (shards.collect if args.shard else map_scans)(usable, folder, args) if usable else []
        skipped.update({s.id: r for s, r in zip(usable, results) if isinstance(r, str)})
        entries, looks = ([r[k] for r in results if not isinstance(r, str)] for k in (0, 1))
        for reason in skipped.values():
            print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)
        if not entries:
            raise UserError(f"--input {args.input}: none of {len(found)} scans could be used; each is named above")
        splits = split_subjects([e["subject"] for e in entries], ratio, args.seed)
        for e in entries:
            e.update({"class": classes[e["id"]], "split": splits[e["subject"]]})
        grids = [prep.prepared_grid(e) for e in entries]
        affine, source_shape, source_affine = geometry.cohort_grid([s for s, _ in grids], [a for _, a in grids],
                                                                  args.size, args.fit)
        header = dict(size=args.size, layout=args.layout, grid=mosaic.grid_size(args.size, args.layout), fit=args.fit,
                      window_percentiles=list(args.window), affine=affine.tolist(), source_shape=list(source_shape),
                      source_affine=source_affine.tolist(), classes=class_names)
        asked = dict(volume=args.volume, mask=args.mask, n4=args.n4 and f"SimpleITK {prep.load_n4().Version_VersionString()}",
                     crop=args.crop != "none" and args.crop, crop_margin=args.crop != "none" and args.crop_margin)
        header["preparation"] = {k: v for k, v in asked.items() if v is not None and v is not False}
        write_manifest(folder, header, entries)
        odd = qc.write(folder / "qc", entries, looks, skipped)
    if args.shard:
        shards.remove(args)
    sizes = {s: sum(e["split"] == s for e in entries) for s in ("train", "test")}
    print(f"{args.output}: {len(entries)} mosaics of {side} x {side} ({sizes['train']} train, {sizes['test']} test, "
          f"{len(splits)} subjects, {len(class_names)} classes), voxels "
          f"{' x '.join(f'{v:.3g}' for v in geometry.voxel_sizes(affine))} mm")
    if qc.mostly_coarse(entries):
        print(f"warning: most scans have voxels of {qc.COARSE:g} mm or more; are they anatomical?", file=sys.stderr)
    for line in odd[:20]:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{args.output}/qc: {len(odd)} of {len(entries)} scans are odd{' (20 named above)' if len(odd) > 20 else ''}; look at the "
          "contact sheets, page-001.png and on")
    if skipped:
        print(f"{len(skipped)} of {len(found)} scans skipped, as named above", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_script(main)
