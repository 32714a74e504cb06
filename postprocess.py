#!/usr/bin/env python3
"""Mosaics -> NIfTI volumes with their place in the world; the inverse of preprocess.py.

    python postprocess.py --input data/adni --output nifti/
    python postprocess.py --input data/adni --output restored/ --restore-shape
    python postprocess.py --input some/pngs --manifest data/adni --output nifti/

Writes cubes in [0, 1] (uint8 x 1/255); with --restore-shape, volumes on the grid, axis order and intensities of the scans
they came from: a crop is put back into its place and a bias field that --n4 took out is put back; what a mask took is gone.
A mosaic with no scan behind it, a sample, gets the cohort's median geometry.
"""
from pathlib import Path

import numpy as np

from mri import geometry, intensity, manifest, mosaic, mosaic_files, nifti
from mri import preparation as prep
from utils.errors import UserError, run_script
from utils.files import atomic_folder
from utils.flags import make_parser
from utils.progress import progress


def restore(cube, source, fit, field=None):
    """A cube as a volume on its source's grid, in the source's axis order and intensities; undoes `preprocess.prepare`.

    :param source: the volume's entry in the manifest
    :param field: logarithm of the bias field that was taken out
    """
    affine = np.array(source["affine"], float)
    ras = geometry.from_cube(intensity.from_uint8(cube, source["window"]), *prep.prepared_grid(source), fit)
    shape, _ = geometry.ras_grid(source["shape"], affine)
    if source.get("crop"):
        ras = prep.uncrop(ras, source["crop"], shape, source.get("outside", source["window"][0]))
    if field is not None:
        ras = prep.multiply_bias(ras, field)
    return geometry.from_ras(ras, affine)


def main():
    p = make_parser(__doc__)
    p.add_argument("--input", type=Path, required=True, metavar="DIR", help="data folder, samples folder, or folder of PNG mosaics")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for ID.nii.gz")
    p.add_argument("--manifest", type=Path, metavar="FILE", help="manifest.json or samples.json, or its folder; default: --input")
    p.add_argument("--restore-shape", action="store_true", help="back on the source's grid, affine and intensities")
    args = p.parse_args()

    header, entries = manifest.read_manifest(args.manifest or args.input)
    origin = args.manifest or args.input
    origin = origin if origin.is_dir() else origin.parent
    known = {v["id"]: v for v in entries}
    folder = args.input / "mosaics" if (args.input / "mosaics").is_dir() else args.input
    sheets = sorted(folder.glob("*.png"))
    if not sheets:
        raise UserError(f"--input {args.input}: no PNG mosaics there or in its mosaics/; name the folder that holds them")
    cohort = dict(shape=header["source_shape"], affine=header["source_affine"], window=(0.0, 1.0))
    with atomic_folder(args.output) as out:
        for path in progress(sheets, "volumes"):
            cube = mosaic.untile(mosaic_files.read_mosaic(path, header), header["size"], header["layout"])
            source = known.get(path.stem, cohort)
            if args.restore_shape:
                field = nifti.read_nifti(manifest.bias_path(origin, path.stem))[0] if source.get("n4") else None
                volume, affine = restore(cube, source, header["fit"], field), np.array(source["affine"], float)
            elif path.stem in known:
                volume, affine = cube, geometry.cube_affine(*prep.prepared_grid(source), header["size"], header["fit"])
            else:
                volume, affine = cube, np.array(header["affine"])
            nifti.write_nifti(out / f"{path.stem}.nii.gz", volume, affine, source.get("codes", (1, 1)))
    print(f"{args.output}: {len(sheets)} NIfTI volumes")


if __name__ == "__main__":
    run_script(main)
