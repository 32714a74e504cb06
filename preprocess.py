#!/usr/bin/env python3
"""Converts scans to mosaics and manifest.json: a data folder for the other scripts.

    python preprocess.py --input scans/ --output data/adni

    python preprocess.py --input bids/ --labels bids/participants.tsv --label-column group \\
        --output data/adni

    python preprocess.py --input heads/ --mask 'masks/{id}_mask.nii.gz' --n4 --output data/heads

    python preprocess.py --input heads/ --recipe paper --output data/brains

Each scan is brought to RAS order, resampled to a cube over the same field of view, mapped from a
window between two percentiles of its intensities to 8 bits, and laid out as a mosaic. A scan that
cannot be used is skipped; a line names it and what to fix. The others are converted, and the exit
code is then 1. If --output is a data folder with the same settings, only scans that it does not
contain yet are converted. Look at qc/: it has contact sheets, and a table with warnings.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import sys
from pathlib import Path

from mri import (
    cohort,
    conversion,
    data_folder,
    dicom,
    geometry,
    mosaic,
    mosaic_files,
    preparation,
    recipes,
    registration,
    scan_formats,
    skull_strip,
    split,
)
from mri.job_array import JobArray
from mri.scan_search import Choice
from utils.escaping import printable
from utils.files import WEIGHTS_DIR, atomic_folder, require_new_folder
from utils.flags import CPU_CORES, make_parser, non_negative, positive, shard, whole_number


def parse_args():
    p = make_parser(__doc__)
    add_input_flags(p)
    add_volume_flags(p)
    g = p.add_argument_group("classes and split")
    g.add_argument("--labels", type=Path, metavar="TABLE",
                   help="table (TSV or CSV) with class or covariates of each participant_id (or "
                   "id, subject, filename), and session_id where it has such a column; by default "
                   "the column class of a list given as --input, or else one class")
    g.add_argument("--label-column", metavar="NAME",
                   help="column of --labels that holds the class")
    g.add_argument("--covariates", nargs="+", default=[], metavar="NAME[:UNIT]",
                   help="columns of --labels to store for train.py --condition-on; default: none")
    g.add_argument("--split", default="63:32", metavar="TRAIN:TEST",
                   help="approximate proportion of subjects for training and for testing; each "
                   "subject's side depends on --seed and its name alone")
    g.add_argument("--split-from", type=Path, metavar="TABLE|DATA_FOLDER",
                   help="take the split (train, val, test) from a table's column split, or from "
                   "another data folder; by default from the column split of a list given as "
                   "--input, or else by --split and --seed")
    g.add_argument("--stratify", action="store_true",
                   help="meet the proportion of --split exactly within each class; adding a "
                   "subject may then move another one; off by default")
    g.add_argument("--seed", type=whole_number, default=0,
                   help="random seed of the split into training and test subjects")

    g = p.add_argument_group("work")
    g.add_argument("--workers", type=int, default=CPU_CORES,
                   help="number of processes, of one thread each; by default one per CPU core")
    g.add_argument("--shard", type=shard, metavar="I/N",
                   help="convert part I of N only, counted from 1, as one task of a job array; the "
                   "last task to finish writes --output; by default all scans are converted")
    # what a recipe sets is the default of the other flags
    p.set_defaults(**recipes.RECIPES.get(p.parse_args().recipe, {}))
    return p.parse_args()


def add_input_flags(p):
    g = p.add_argument_group("input and output")
    g.add_argument("--input", required=True, metavar="DIR|GLOB|TSV",
                   help="scans: a folder, searched with its subfolders (BIDS and FreeSurfer trees "
                   "are known); a glob pattern in quotes; or a list, TSV or CSV, with a column "
                   "path and, optionally, id, subject, session_id, class, split and mask. "
                   f"Formats: {scan_formats.help_phrase()}")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="data folder to create, or an existing one with the same settings, to add "
                   "scans to")
    g.add_argument("--dicom", action="store_true",
                   help="--input is a folder of DICOM series: convert the T1-weighted volumes "
                   "among them with dcm2niix (on the PATH, or from requirements-extra.txt), in a "
                   "temporary folder (TMPDIR); by default scans are read as they are")
    g.add_argument("--series", metavar="REGEX",
                   help="regular expression: use the DICOM series whose SeriesDescription matches "
                   "it, whatever their weighting; by default T1-weighted series are used")
    g.add_argument("--suffix", metavar="NAME",
                   help="take the files whose names end in _NAME; by default T1w in a BIDS tree, "
                   "T1 in FreeSurfer's mri folders, and all files elsewhere")
    g.add_argument("--session", metavar="NAME",
                   help="take the scans of this session (ses-NAME) only; by default all")
    g.add_argument("--run", metavar="NAME",
                   help="take the scans of this run (run-NAME) only; by default all")
    g.add_argument("--space", metavar="NAME",
                   help="take the scans in this space (space-NAME) only; native: those without a "
                   "space in their name; by default all, but scans in several spaces are an error")
    g.add_argument("--subject-pattern", metavar="REGEX",
                   help="regular expression that finds the subject in a scan's path: its groups, "
                   "joined by _, or the whole match. By default BIDS, ADNI, OASIS, IXI, BraTS and "
                   "FreeSurfer names are known, and any other file is its own subject")
    g.add_argument("--id-pattern", metavar="REGEX",
                   help="the same for the scan's id; by default the file's name, preceded by "
                   "folder names where several files have the same name")
    g.add_argument("--volume", type=whole_number, metavar="K",
                   help="volume to take from files with several, counted from 0; by default such "
                   "files are skipped")
    g.add_argument("--affine", metavar=f"FILE|{scan_formats.IDENTITY}",
                   help="voxel -> world affine, in mm, of scans in formats that have none "
                   f"({', '.join(scan_formats.suffixes_without_affine())}), and of these alone: a "
                   "text file or .npy with 4 x 4 numbers, or a scan whose affine is taken; "
                   f"{scan_formats.IDENTITY}: voxels of 1 mm, axes right, anterior, superior; by "
                   "default such scans are left out")
    g.add_argument("--orientation", metavar="LETTERS",
                   help="directions of the axes of Analyze 7.5 files, which do not record them: "
                   "LAS if the first axis runs to the left, the second to anterior, the third to "
                   "superior; by default such scans are skipped")
    g.add_argument("--nan", choices=("refuse", "zero"), default="refuse",
                   help="voxels that are NaN: refuse skips such a scan, zero sets them to 0")


def add_volume_flags(p):
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
                   "{id}, {subject}, {session}, {run}, {name} (the scan's file name without "
                   "suffix) and {dir} (its folder) stand for each scan's own, and * for anything. "
                   "By default the column mask of a list given as --input, or else no mask")
    g.add_argument("--skull-strip", action="store_true",
                   help="find the brain with a network (mindgrab) and remove everything else; the "
                   "masks are in masks/ of --output; off by default")
    g.add_argument("--meshnet", type=Path, metavar="DIR",
                   help="folder of the network of --skull-strip; by default "
                   f"{WEIGHTS_DIR}/{skull_strip.NETWORK_FOLDER}, from download.py meshnet")
    g.add_argument("--n4", action="store_true",
                   help="correct the bias field by N4, inside the mask where there is one; needs "
                   "SimpleITK (requirements-extra.txt); off by default")
    g.add_argument("--crop", choices=("none", "brain"), default="none",
                   help="brain: keep the box around the mask, or around a skull-stripped brain")
    g.add_argument("--crop-margin", type=non_negative, default=5.0, metavar="MM",
                   help="margin that --crop brain keeps around the brain, mm")
    g.add_argument("--recipe", choices=recipes.RECIPES,
                   help=f"a set of flags. {recipes.help_phrase()}; by default none")

    g = p.add_argument_group("registration")
    g.add_argument("--register", choices=("none", *registration.SPACES), default="none",
                   help="mni: align each brain with the MNI152 template by an affine "
                   "transform; needs SimpleITK and nilearn (requirements-extra.txt), and "
                   "--skull-strip, --mask or scans that are skull-stripped")
    g.add_argument("--template", metavar="FILE",
                   help="another template for --register: the scan of a skull-stripped brain, 0 "
                   "outside; by default the MNI152 template in nilearn's package")
    g.add_argument("--field-of-view", type=positive, nargs=3, metavar=("X", "Y", "Z"),
                   help="size of the field of view of registered volumes, mm, placed where it "
                   "contains the most of the template's brain; by default the template's own")


def check_args(args):
    """Raises UserError for flags that no scan is needed to refuse."""
    mosaic_files.check_size(args.size, args.layout)
    lo, hi = args.window
    if not 0 <= lo < hi <= 100:
        raise UserError(f"--window {lo:g} {hi:g}: two percentiles, 0 <= LO < HI <= 100")
    if bool(args.labels) != bool(args.label_column or args.covariates):
        raise UserError("--labels goes together with --label-column or --covariates; give both")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if args.orientation and not geometry.is_orientation(args.orientation):
        raise UserError(f"--orientation {args.orientation}: must be three letters, one each of R "
                        "or L, A or P, S or I, such as LAS")
    if args.n4:
        preparation.load_sitk("--n4")
    if args.skull_strip and args.mask:
        raise UserError("--skull-strip and --mask: both say where the brain is; give one of them")
    if args.meshnet and not args.skull_strip:
        raise UserError("--meshnet: is for --skull-strip; give both, or neither")
    if args.mask:
        preparation.check_mask_pattern(args.mask)
    recipes.check(args.recipe, vars(args))
    registration.check_flags(args.register, args.template, args.field_of_view, args.crop)
    dicom.check_flags(args.dicom, args.series, args.mask)


def read_settings(args):
    """conversion.Settings; reads the file of --affine."""
    affine = None
    if args.affine:
        affine, warnings = scan_formats.read_affine(args.affine)
        for warning in warnings:
            print(f"warning: --affine {args.affine}: {warning}", file=sys.stderr)
    return conversion.Settings(
        size=args.size, layout=args.layout, fit=args.fit, window=args.window, volume=args.volume,
        affine=affine, affine_source=args.affine, mask=args.mask, n4=args.n4,
        crop_to_brain=args.crop == "brain", crop_margin=args.crop_margin,
        orientation=args.orientation and args.orientation.upper(), nan_to_zero=args.nan == "zero",
        meshnet=skull_strip.find_network(args.meshnet) if args.skull_strip else None,
        space=None if args.register == "none" else args.register, template=args.template,
        field_of_view=args.field_of_view and tuple(args.field_of_view), recipe=args.recipe,
        series=(args.series or "T1-weighted") if args.dicom else None)


def find_cohort(args, series):
    """cohort.Cohort of --input; prints what was found and left out.

    :param series: dicom.Converted, or None
    """
    found = cohort.find_cohort(
        args.input, Choice(args.suffix, args.session, args.run, args.space, bool(args.affine)),
        subject_pattern=args.subject_pattern, id_pattern=args.id_pattern, mask=args.mask,
        skull_strip=args.skull_strip, dicom=series, affine=args.affine,
        orientation=args.orientation, label_table=args.labels, label_column=args.label_column,
        covariate_names=args.covariates, split_from=args.split_from)
    report(found.notes, found.warnings)
    return found


def report(notes, warnings):
    for line in notes:
        print(printable(line))
    for line in warnings:
        print(f"warning: {printable(line)}", file=sys.stderr)


def convert(args, found, choice, settings, existing):
    """Converts the new scans and writes the data folder.

    :param found: cohort.Cohort
    :param choice: data_folder.SplitChoice
    :param existing: data_folder.Existing, or None
    :return: data_folder.DataFolder; None if another job finishes it
    """
    fresh, lines = data_folder.new_scans(found.usable, existing, args.output)
    report(lines, ())

    def prepare_part(scans_of_job, folder):
        return conversion.prepare_scans(scans_of_job, folder, settings, args.workers)

    jobs = None
    if args.shard:
        flags = {name: str(value) for name, value in sorted(vars(args).items())
                 if name not in ("shard", "workers")}
        jobs = JobArray(args.output, *args.shard, flags)
        jobs.prepare_part(fresh, prepare_part, settings.subfolders)
        if not jobs.is_last():
            return None
    new_folder = data_folder.added_to if existing else atomic_folder
    with new_folder(args.output) as folder:
        for name in (*settings.subfolders, "qc"):
            (folder / name).mkdir()
        results = (jobs.collect if jobs else prepare_part)(fresh, folder) if fresh else []
        sorted_out = data_folder.sort_results(fresh, results, found.labels.unlabeled)
        for reason in sorted_out.skipped.values():
            print(f"skipped: {printable(' '.join(reason.split()))}", file=sys.stderr)
        report(sorted_out.notes, ())
        if not (sorted_out.prepared or existing):
            raise UserError(f"--input {args.input}: none of {found.count} scans could be used; "
                            "each is named above")
        written = data_folder.write(folder, settings, sorted_out, found.labels, choice,
                                    existing, found.covariates)
    if jobs:
        jobs.remove_parts()
    return written


def main():
    args = parse_args()
    check_args(args)
    if not args.dicom:
        return prepare(args)
    with dicom.converted(Path(args.input), args.series, args.workers) as series:
        return prepare(args, series)


def prepare(args, series=None):
    """Prepares the scans of --input, or those that its DICOM series became; the exit code."""
    ratio = split.parse_ratio(args.split)
    settings = read_settings(args)
    report(settings.describe(), ())
    existing = None if args.shard else data_folder.read_existing(args.output, settings)
    if existing is None:
        require_new_folder(args.output)
    found = find_cohort(args, series)
    choice = data_folder.SplitChoice(ratio, args.seed, found.given, args.stratify)
    written = convert(args, found, choice, settings, existing)
    if written is None:
        return 0
    report(*data_folder.summary(args.output, written))
    if written.skipped:
        print(f"{len(written.skipped)} of {found.count} scans skipped, as named above",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
