#!/usr/bin/env python3
"""Converts scans to mosaics and manifest.json: a data folder for the other scripts.

    python preprocess.py --input scans/ --output data/adni

    python preprocess.py --input bids/ --labels bids/participants.tsv --label-column group \\
        --output data/adni

    python preprocess.py --input heads/ --mask 'masks/{id}_mask.nii.gz' --n4 --crop brain \\
        --fit pad --output data/heads

Each scan is brought to RAS order, resampled to a cube over the same field of view, mapped from a
window between two percentiles of its intensities to 8 bits, and laid out as a mosaic. A scan that
cannot be used is skipped; a line names it and what to fix. The others are converted, and the exit
code is then 1. Contact sheets and a table of what is odd about each scan are in qc/: look at them.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import sys
from dataclasses import dataclass
from pathlib import Path

from mri import (
    cohort,
    conversion,
    geometry,
    manifest,
    mosaic,
    preparation,
    quality_control,
    scan_formats,
    scans,
)
from mri.job_array import JobArray
from mri.mosaic_files import MAX_PIXELS
from utils.files import atomic_folder
from utils.flags import CPU_CORES, make_parser, non_negative, shard, whole_number

MIN_SIZE = 8              # of a cube's side, voxels
SIDE_MULTIPLE = 16        # of a mosaic's side: VAE factor (8) x patch size (2) of DiT-XL/2, pixels
PRINTED_WARNINGS = 20     # the others are in qc.tsv


@dataclass(frozen=True)
class FoundScans:
    """The scans that --input names."""
    count: int              # without masks that lie among them
    usable: list            # those with a label, a Scan each
    labels: cohort.Labels


@dataclass(frozen=True)
class DataFolder:
    """What was written."""
    header: dict            # of the manifest
    entries: list
    skipped: dict           # {scan id: reason}
    odd: list               # of lines about scans to look at


def parse_args():
    p = make_parser(__doc__)
    g = p.add_argument_group("input and output")
    g.add_argument("--input", required=True, metavar="DIR|GLOB|TSV",
                   help="scans: a folder, searched with its subfolders (in a BIDS tree the *_T1w "
                   "files are taken); a glob pattern in quotes; or a TSV with a column path and, "
                   f"optionally, id and subject. Formats: {scan_formats.help_phrase()}")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="data folder to create")
    g.add_argument("--volume", type=whole_number, metavar="K",
                   help="volume to take from files with several, counted from 0; by default such "
                   "files are skipped")
    g.add_argument("--affine", metavar=f"FILE|{scan_formats.IDENTITY}",
                   help="voxel -> world affine, in mm, of scans in formats that have none "
                   f"({', '.join(scan_formats.suffixes_without_affine())}), and of these alone: a "
                   "text file or .npy with 4 x 4 numbers, or a scan whose affine is taken; "
                   f"{scan_formats.IDENTITY}: voxels of 1 mm, axes right, anterior, superior; by "
                   "default such scans are skipped")

    g = p.add_argument_group("cube and mosaic")
    g.add_argument("--size", type=int, default=128, help="side of the cube, voxels")
    g.add_argument("--layout", choices=mosaic.SLICES_PER_TILE, default="rgb",
                   help="tiles of the mosaic: rgb holds three slices per tile, one per channel; "
                   "gray one slice per tile")
    g.add_argument("--fit", choices=geometry.FITS, default="stretch",
                   help="how the field of view fits into the cube: stretch fills the cube, pad "
                   "keeps voxels cubic")
    g.add_argument("--window", type=float, nargs=2, default=(0.0, 99.9), metavar=("LO", "HI"),
                   help="intensity percentiles of a scan that become 0 and 255")

    g = p.add_argument_group("preparation")
    g.add_argument("--mask", metavar="FILE|PATTERN",
                   help="brain mask on the scan's grid; voxels above 0.5 are kept. In a pattern, "
                   "{id}, {subject}, {name} (the scan's file name without suffix) and {dir} (its "
                   "folder) stand for each scan's own. By default nothing is masked")
    g.add_argument("--n4", action="store_true",
                   help="correct the bias field by N4, inside the mask where there is one; needs "
                   "SimpleITK (requirements-extra.txt); off by default")
    g.add_argument("--crop", choices=("none", "brain"), default="none",
                   help="brain: keep the box around the mask, or around a skull-stripped brain")
    g.add_argument("--crop-margin", type=non_negative, default=5.0, metavar="MM",
                   help="margin that --crop brain keeps around the brain, mm")

    g = p.add_argument_group("classes and split")
    g.add_argument("--labels", type=Path, metavar="FILE.tsv",
                   help="table with the class of each participant_id (or id); by default all scans "
                   "are of one class")
    g.add_argument("--label-column", metavar="NAME",
                   help="column of --labels that holds the class")
    g.add_argument("--split", default="63:32", metavar="TRAIN:TEST",
                   help="proportion of subjects for training and for testing")
    g.add_argument("--seed", type=whole_number, default=0,
                   help="random seed of the split into training and test subjects")

    g = p.add_argument_group("work")
    g.add_argument("--workers", type=int, default=CPU_CORES,
                   help="number of processes, one thread each")
    g.add_argument("--shard", type=shard, metavar="I/N",
                   help="convert part I of N only, counted from 1, as one task of a job array; the "
                   "last task to finish writes --output; by default all scans are converted")
    return p.parse_args()


def check_args(args):
    """Raises UserError for flags that no scan is needed to refuse."""
    check_size(args.size, args.layout)
    lo, hi = args.window
    if not 0 <= lo < hi <= 100:
        raise UserError(f"--window {lo:g} {hi:g}: two percentiles, 0 <= LO < HI <= 100")
    if bool(args.labels) != bool(args.label_column):
        raise UserError("--labels and --label-column go together; give both, or neither")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if args.n4:
        preparation.load_n4()
    if args.mask:
        preparation.check_mask_pattern(args.mask)


def check_size(size, layout):
    """Raises UserError for a cube whose mosaic DiT-XL/2 cannot take, or that is too large."""
    side = mosaic.mosaic_side(max(size, MIN_SIZE), layout)
    if size < MIN_SIZE or side % SIDE_MULTIPLE:
        nearest = max(size, MIN_SIZE)
        candidates = range(max(MIN_SIZE, nearest - 16), nearest + 17)
        valid = [d for d in candidates if mosaic.mosaic_side(d, layout) % SIDE_MULTIPLE == 0]
        raise UserError(f"--size {size}: gives a mosaic of {side} pixels, which must be a multiple "
                        f"of {SIDE_MULTIPLE} (VAE factor x patch size); near it work "
                        f"{', '.join(map(str, valid))}")
    if side ** 2 > MAX_PIXELS:
        raise UserError(f"--size {size}: gives a mosaic of {side} x {side} pixels, more than the "
                        f"{MAX_PIXELS} that are read back")


def read_settings(args):
    """conversion.Settings; reads the file of --affine."""
    affine = None
    if args.affine:
        affine, warnings = scan_formats.read_affine(args.affine)
        for warning in warnings:
            print(f"warning: --affine {args.affine}: {warning}", file=sys.stderr)
    return conversion.Settings(
        size=args.size, layout=args.layout, fit=args.fit, window=args.window, volume=args.volume,
        affine=affine, mask=args.mask, n4=args.n4, crop_to_brain=args.crop == "brain",
        crop_margin=args.crop_margin)


def find_scans(args):
    """The scans of --input and their classes, without masks that lie among them."""
    found = scans.find_scans(args.input, "--input")
    if args.mask:
        masks = {preparation.mask_path(args.mask, scan).resolve() for scan in found}
        found = [scan for scan in found if scan.path.resolve() not in masks]
    if len(found) > manifest.MAX_VOLUMES:
        raise UserError(f"--input {args.input}: {len(found)} scans, more than the "
                        f"{manifest.MAX_VOLUMES} that a manifest holds; split the cohort")
    if args.affine and not any(scan.path.name.endswith(scan_formats.suffixes_without_affine())
                               for scan in found):
        print(f"warning: --affine {args.affine}: not used, as every scan has its own affine",
              file=sys.stderr)
    labels = cohort.read_labels(found, args.labels, args.label_column)
    usable = [scan for scan in found if scan.id not in labels.unlabeled]
    return FoundScans(len(found), usable, labels)


def make_header(args, entries, class_names):
    """The manifest's header: the geometry of the cohort, and how it was prepared."""
    grids = [preparation.prepared_grid(entry) for entry in entries]
    affine, source_shape, source_affine = geometry.cohort_grid(
        [shape for shape, _ in grids], [affine for _, affine in grids], args.size, args.fit)
    header = {
        "size": args.size, "layout": args.layout, "grid": mosaic.grid_size(args.size, args.layout),
        "fit": args.fit, "window_percentiles": list(args.window), "affine": affine.tolist(),
        "source_shape": list(source_shape), "source_affine": source_affine.tolist(),
        "classes": class_names, "preparation": {}}
    if args.volume is not None:
        header["preparation"]["volume"] = args.volume
    if args.mask is not None:
        header["preparation"]["mask"] = args.mask
    if args.n4:
        version = preparation.load_n4().Version_VersionString()
        header["preparation"]["n4"] = f"SimpleITK {version}"
    if args.crop != "none":
        header["preparation"]["crop"] = args.crop
        header["preparation"]["crop_margin"] = args.crop_margin
    if args.affine is not None:
        header["preparation"]["affine"] = args.affine
    return header


def write_data_folder(folder, args, ratio, found, results):
    """Completes the entries, and writes manifest.json and qc/.

    :param ratio: of training and test subjects
    :param found: FoundScans
    :param results: PreparedScan or SkippedScan of each usable scan
    :return: DataFolder
    """
    skipped = dict(found.labels.unlabeled)
    skipped.update({scan.id: result.reason for scan, result in zip(found.usable, results)
                    if isinstance(result, conversion.SkippedScan)})
    for reason in skipped.values():
        print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)
    prepared = [result for result in results if isinstance(result, conversion.PreparedScan)]
    if not prepared:
        raise UserError(f"--input {args.input}: none of {found.count} scans could be used; each is "
                        "named above")
    entries = [result.entry for result in prepared]
    splits = cohort.split_subjects([entry["subject"] for entry in entries], ratio, args.seed)
    for entry in entries:
        entry["class"] = found.labels.class_of[entry["id"]]
        entry["split"] = splits[entry["subject"]]
    header = make_header(args, entries, found.labels.names)
    manifest.write_manifest(folder, header, entries)
    odd = quality_control.write(folder / "qc", entries, [result.summary for result in prepared],
                                skipped)
    return DataFolder(header, entries, skipped, odd)


def print_summary(output, written):
    """What was written, and the warnings about it."""
    header, entries, odd = written.header, written.entries, written.odd
    side = mosaic.mosaic_side(header["size"], header["layout"])
    train, test = (sum(entry["split"] == split for entry in entries) for split in manifest.SPLITS)
    subjects = len({entry["subject"] for entry in entries})
    voxel_sizes = geometry.voxel_sizes(header["affine"])
    print(f"{output}: {len(entries)} mosaics of {side} x {side} ({train} train, {test} test, "
          f"{subjects} subjects, {len(header['classes'])} classes), voxels "
          f"{' x '.join(f'{size:.3g}' for size in voxel_sizes)} mm")
    if quality_control.is_mostly_coarse(entries):
        print(f"warning: most scans have voxels of {quality_control.COARSE_VOXEL_MM:g} mm or more; "
              "are they anatomical?", file=sys.stderr)
    for line in odd[:PRINTED_WARNINGS]:
        print(f"warning: {line}", file=sys.stderr)
    named = f" ({PRINTED_WARNINGS} named above)" if len(odd) > PRINTED_WARNINGS else ""
    print(f"{output}/qc: {len(odd)} of {len(entries)} scans are odd{named}; look at the contact "
          "sheets, starting with page-001.png")


def main():
    args = parse_args()
    check_args(args)
    ratio = cohort.parse_ratio(args.split)
    settings = read_settings(args)
    found = find_scans(args)
    subfolders = ("mosaics", "bias") if args.n4 else ("mosaics",)  # that scans are written into

    def prepare(scans_of_job, folder):
        return conversion.prepare_scans(scans_of_job, folder, settings, args.workers)

    jobs = None
    if args.shard:
        flags = {name: str(value) for name, value in sorted(vars(args).items())
                 if name not in ("shard", "workers")}
        jobs = JobArray(args.output, *args.shard, flags)
        jobs.prepare_part(found.usable, prepare, subfolders)
        if not jobs.is_last():
            return 0
    with atomic_folder(args.output) as folder:
        for name in (*subfolders, "qc"):
            (folder / name).mkdir()
        results = []
        if found.usable:
            results = (jobs.collect if jobs else prepare)(found.usable, folder)
        written = write_data_folder(folder, args, ratio, found, results)
    if jobs:
        jobs.remove_parts()
    print_summary(args.output, written)
    if written.skipped:
        print(f"{len(written.skipped)} of {found.count} scans skipped, as named above",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
