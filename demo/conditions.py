#!/usr/bin/env python3
"""Measures whether samples have the covariates that they were asked to have.

    python demo/conditions.py --data-path demo/out/data/mixed --samples demo/out/samples/asked

Contrast and size of the ventricles, the covariates of demo/cohort.py --contrast mixed, are read
from a volume's intensities: the contrast by the ratio of two percentiles, the size by ridge
regression on the voxels around the ventricles. Both are fitted to the train split of the data
folder, and tried on its test split first: samples can hardly be better than real scans.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mri import manifest, mosaic, mosaic_files  # noqa: E402
from mri.samples_folder import FILE_NAME  # noqa: E402
from utils.errors import UserError, run_script  # noqa: E402
from utils.files import read_json, write_text  # noqa: E402
from utils.flags import make_parser  # noqa: E402

NUMBER, CATEGORY = "ventricles", "contrast"
CENTER_MM = (0, -14, 14)        # middle of the ventricles, as in demo/cohort.py
HALF_WIDTH = 3                  # voxels of the box around it
RIDGE = 10.0
BACKGROUND = 0.05               # intensities below are not of the brain


@dataclass(frozen=True)
class Asked:
    """Volumes (N, D, D, D) in [0, 1] with the covariates that they have, or were asked to have."""
    volumes: np.ndarray
    numbers: np.ndarray         # (N,)
    levels: np.ndarray          # (N,) of text


@dataclass(frozen=True)
class Ruler:
    """What reads the covariates from a volume.

    :param box: (D, D, D) bool, voxels around the ventricles
    :param ratios: {level: mean `contrast_ratio`}
    :param fits: {level: mean of the box's voxels, weights, mean of the number}
    """
    box: np.ndarray
    ratios: dict
    fits: dict

    def measure(self, volume):
        """The number and the level that a volume seems to have."""
        ratio = contrast_ratio(volume)
        level = min(self.ratios, key=lambda name: abs(self.ratios[name] - ratio))
        mean, weights, offset = self.fits[level]
        return float((box_of(volume, self.box) - mean) @ weights + offset), level


def contrast_ratio(volume):
    """Median over 95th percentile of a brain's intensities: high where T1 weighting is weak."""
    low, high = np.quantile(volume[volume > BACKGROUND], (0.5, 0.95))
    return low / high


def box_of(volume, box):
    return volume[box] / np.quantile(volume[volume > BACKGROUND], 0.9)


def fit_ruler(real, affine):
    """A Ruler from real volumes, by ridge regression within each contrast.

    :param real: Asked
    :param affine: of the volumes, (4, 4), mm
    """
    center = np.linalg.solve(np.array(affine), [*CENTER_MM, 1])[:3]
    size = real.volumes.shape[1]
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    box = (np.abs(grid - center) <= HALF_WIDTH + 0.5).all(-1)
    ratios, fits = {}, {}
    for level in np.unique(real.levels):
        chosen = real.levels == level
        x = np.stack([box_of(volume, box) for volume in real.volumes[chosen]])
        mean, offset = x.mean(0), real.numbers[chosen].mean()
        x = x - mean
        dual = np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), real.numbers[chosen] - offset)
        fits[level] = mean, x.T @ dual, offset
        ratios[level] = np.mean([contrast_ratio(volume) for volume in real.volumes[chosen]])
    return Ruler(box, ratios, fits)


def compare(asked, ruler):
    """Correlation of asked and measured numbers, their mean absolute error, share of right levels.
    """
    measured = [ruler.measure(volume) for volume in asked.volumes]
    numbers = np.array([number for number, _ in measured])
    levels = np.array([level for _, level in measured])
    return {"volumes": len(numbers), "r": float(np.corrcoef(asked.numbers, numbers)[0, 1]),
            "mean_absolute_error": float(np.abs(asked.numbers - numbers).mean()),
            "right_levels": float((levels == asked.levels).mean())}


def read_asked(folder, header, rows):
    """The volumes of a folder whose rows tell both covariates.

    :param rows: {id of a mosaic: row}
    """
    rows = {name: row for name, row in rows.items() if {NUMBER, CATEGORY} <= row.keys()}
    if len(rows) < 3:
        raise UserError(f"{folder}: has {len(rows)} volumes of a known {NUMBER} and {CATEGORY}; "
                        "at least 3 are needed")
    pixels = [mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, name), header)
              for name in rows]
    volumes = [mosaic.untile(one, header["size"], header["layout"]) / np.float32(255)
               for one in pixels]
    return Asked(np.stack(volumes), np.array([row[NUMBER] for row in rows.values()]),
                 np.array([row[CATEGORY] for row in rows.values()]))


def main():
    p = make_parser(__doc__)
    p.add_argument("--data-path", type=Path, required=True, metavar="DIR",
                   help="data folder of the mixed cohort")
    p.add_argument("--samples", type=Path, required=True, nargs="+", metavar="DIR",
                   help="samples folders to measure")
    p.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write; default: none")
    args = p.parse_args()
    header, entries = manifest.read_manifest(args.data_path)

    def of_split(split):
        rows = {entry["id"]: entry.get("covariates", {}) for entry in entries
                if entry["split"] == split}
        return read_asked(args.data_path, header, rows)

    ruler = fit_ruler(of_split("train"), header["affine"])
    results = {"real, held out": compare(of_split("test"), ruler)}
    for folder in args.samples:
        samples = read_json(folder / FILE_NAME)["samples"]
        rows = {sample["id"]: sample.get("condition", {}) for sample in samples}
        results[str(folder)] = compare(read_asked(folder, header, rows), ruler)
    for name, found in results.items():
        print(f"{name}: {NUMBER} asked and measured r = {found['r']:.3f}, mean absolute error "
              f"{found['mean_absolute_error']:.1f}, {CATEGORY} right in "
              f"{found['right_levels']:.1%} of {found['volumes']}")
    if args.output:
        write_text(args.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
