#!/usr/bin/env python3
"""Converts mosaics to NIfTI volumes in world coordinates; the inverse of preprocess.py.

    python postprocess.py --input data/adni --output nifti/
    python postprocess.py --input data/adni --output restored/ --restore-shape
    python postprocess.py --input some/pngs --manifest data/adni --output nifti/
    python postprocess.py --input samples/adni --refiner refiner/adni --output nifti/

Writes cubes in [0, 1] (uint8 x 1/255). With --restore-shape, writes volumes with the grid, axis
order and intensities of their source scans: cropped and registered brains go back to where they
were in the scan, and the bias field that --n4 removed is put back. What a mask removed is lost. A
mosaic without a source scan, such as a sample, gets the cohort's median geometry. With --refiner,
the slices of sampled volumes are made to fit together. source.json records how samples were made,
and the class and subject of each volume.

If mosaics that the manifest of --input lists are missing, they are named, the others are converted,
and the exit code is 1.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion import refiner as refiner_module
from mri import conversion, geometry, manifest, mosaic, mosaic_files, nifti, origin, preparation
from utils.escaping import printable
from utils.files import atomic_folder
from utils.flags import add_device_flag, make_parser
from utils.progress import progress

PRINTED_IDS = 5     # of mosaics that are not in the manifest


def parse_args():
    p = make_parser(__doc__)
    g = p.add_argument_group("input and output")
    g.add_argument("--input", type=Path, required=True, metavar="DIR",
                   help="data folder, samples folder, or folder of PNG mosaics")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="folder to create, for ID.nii.gz and source.json")
    g.add_argument("--manifest", type=Path, metavar="FILE",
                   help="manifest.json or samples.json that describes the mosaics, or its folder; "
                   "by default that of --input")

    g = p.add_argument_group("geometry")
    g.add_argument("--restore-shape", action="store_true",
                   help="write volumes on their source scan's grid, axis order and intensities; by "
                   "default cubes in [0, 1]")
    g = p.add_argument_group("refining")
    g.add_argument("--refiner", type=Path, metavar="DIR",
                   help="refiner of train_refiner.py that makes the slices of each volume fit "
                   "together; for mosaics that a VAE decoded; default: none")
    add_device_flag(g)
    return p.parse_args()


def find_mosaics(folder):
    """The PNG files of a folder, or of its mosaics/."""
    mosaics = folder / "mosaics"
    found = sorted((mosaics if mosaics.is_dir() else folder).glob("[!.]*.png"))
    if not found:
        raise UserError(f"--input {folder}: no PNG mosaics there or in its mosaics/; "
                        "name the folder that holds them")
    return found


def listed_ids(args, entries, source):
    """Ids of the volumes that --input is to hold: those that its own manifest lists.

    With a --manifest of another folder, --input may be a part of it: none are.
    """
    if args.manifest and args.manifest.resolve() not in manifest_files(args.input):
        return set()
    return {entry["id"] for entry in entries} or set(source.listed or ())


def manifest_files(folder):
    """The paths, without links, that name the manifest of a folder."""
    return [path.resolve() for path in (folder, *(folder / name for name in manifest.FILE_NAMES))]


def restored_volume(cube, entry, fit, data_folder):
    """A volume on its source scan's grid, and its affine.

    :param entry: of the manifest, or one that stands for the cohort
    :param data_folder: that holds the bias fields
    """
    bias = None
    if entry.get("n4"):
        bias, _ = nifti.read_nifti(manifest.bias_path(data_folder, entry["id"]))
    return conversion.restore(cube, entry, fit, bias), np.array(entry["affine"], float)


def warn_of_unknown(unknown, count):
    """Names mosaics that the manifest does not list.

    :param count: of all mosaics
    """
    if unknown:
        print(f"warning: {len(unknown)} of {count} mosaics are not in the manifest and got the "
              f"cohort's median geometry: {first_ids(unknown)}", file=sys.stderr)


def name_missing(folder, listed, found):
    """Names the volumes that the manifest lists and that have no mosaic. Returns the exit code."""
    missing = sorted(listed - found)
    if not missing:
        return 0
    print(f"{len(missing)} of {len(listed)} volumes that the manifest lists have no mosaic in "
          f"{printable(folder)}: {first_ids(missing)}; the command that wrote the folder "
          "completes it", file=sys.stderr)
    return 1


def first_ids(ids):
    more = ", …" if len(ids) > PRINTED_IDS else ""
    return printable(", ".join(ids[:PRINTED_IDS])) + more


def load_refiner(args, header, source):
    """The refiner of --refiner. Prints what speaks against it.

    :param source: origin.Origin of the mosaics
    :raises UserError: it is of another size or layout, or the mosaics are refined already
    """
    refiner = refiner_module.load_refiner(args.refiner, args.device)
    name = args.manifest or args.input
    refiner.check_shape(header["size"], header["layout"], name)
    recipe = source.made_by.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    if recipe.get("refiner_sha256"):
        raise UserError(f"--refiner: the volumes of {name} were refined when they were sampled; "
                        "leave the flag out")
    for line in refiner.doubts(recipe.get("vae_sha256"), recipe.get("ckpt_sha256"), name):
        print(f"warning: {line}", file=sys.stderr)
    return refiner


def refined_origin(source, refiner):
    """The origin of volumes that were refined."""
    refined_by = {"refiner": str(Path(refiner.path).resolve()), "refiner_sha256": refiner.sha256}
    return replace(source, made_by={**source.made_by, "refined_by": refined_by})


def main():
    args = parse_args()
    manifest_path = args.manifest or args.input
    data_folder = manifest_path if manifest_path.is_dir() else manifest_path.parent
    header, entries = manifest.read_manifest(manifest_path)
    entry_of = {entry["id"]: entry for entry in entries}
    cohort_entry = {"shape": header["source_shape"], "affine": header["source_affine"],
                    "window": (0.0, 1.0), "codes": nifti.SYNTHETIC_CODES}
    source = origin.read_origin(manifest_path)
    description = str(source.made_by.get("description", ""))
    refiner = load_refiner(args, header, source) if args.refiner else None
    if refiner:
        source = refined_origin(source, refiner)
        description = f"{description} refiner {refiner.sha256[:8]}".strip()
    size, layout, fit = header["size"], header["layout"], header["fit"]
    paths = find_mosaics(args.input)
    with atomic_folder(args.output) as folder:
        for path in progress(paths, "volumes"):
            cube = mosaic.untile(mosaic_files.read_mosaic(path, header), size, layout)
            cube = refiner.refine(cube) if refiner else cube
            entry = entry_of.get(path.stem, cohort_entry)
            codes = entry.get("codes", (1, 1))
            if args.restore_shape:
                volume, affine = restored_volume(cube, entry, fit, data_folder)
            elif entry is cohort_entry:
                volume, affine = cube, np.array(header["affine"])
            else:
                grid = preparation.prepared_grid(entry)
                volume, affine = cube, geometry.cube_affine(*grid, size, fit)
                if "registration" in entry:
                    codes = (entry["registration"]["code"],) * 2
            nifti.write_nifti(folder / f"{path.stem}.nii.gz", volume, affine, codes,
                              description if entry is cohort_entry else "")
        origin.write_origin(folder, source, [path.stem for path in paths])
    print(f"{printable(args.output)}: {len(paths)} NIfTI volumes{', refined' if refiner else ''}")
    stems = {path.stem for path in paths}
    if entries:
        warn_of_unknown(sorted(stems - entry_of.keys()), len(paths))
    return name_missing(args.input, listed_ids(args, entries, source), stems)


if __name__ == "__main__":
    run_script(main)
