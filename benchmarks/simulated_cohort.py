"""A data folder of many made-up volumes, to measure what a large cohort costs.

    python -m benchmarks.simulated_cohort out/real --volumes 1000 --size 128
    python -m benchmarks.simulated_cohort out/synthetic --volumes 1000 --size 128 --seed 1

Every volume is another one: an ellipsoid with smooth structure of its own, black outside, so that
files compress, and volumes resemble each other, about as skull-stripped brains do. 1,000 volumes
of 128 voxels take two minutes and 0.35 GB.
"""
import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from mri import conversion, data_folder, manifest, mosaic, mosaic_files
from utils.files import atomic_folder
from utils.progress import progress

COARSE_SIDE = 8         # voxels of the structure that is enlarged to the volume's size
COMMON_SHARE = 0.7      # of the structure that all volumes of all folders have
NOISE_LEVELS = 6        # of 256, largest
TRAIN_SHARE = 0.5       # of the volumes that are in the training split


def write_cohort(folder, count, size, seed=0):
    """Writes a data folder.

    :param folder: new folder
    :param count: number of volumes, each of a subject of its own
    :param size: side of the volumes, voxels
    :param seed: of their structure
    """
    settings = conversion.Settings(size=size, layout="rgb", fit="stretch", window=(0.0, 99.9))
    inside = _ellipsoid(size)
    common = np.random.default_rng(0).random((COARSE_SIDE,) * 3)
    entries = []
    with atomic_folder(folder) as temporary:
        (temporary / "mosaics").mkdir()
        for i in progress(range(count), "volumes"):
            cube = _volume(common, inside, np.random.default_rng([seed, i]))
            entries.append(_entry(i, size, i < TRAIN_SHARE * count))
            mosaic_files.write_mosaic(mosaic_files.mosaic_path(temporary, entries[-1]["id"]),
                                      mosaic.tile(cube, settings.layout))
        header = data_folder.make_header(settings, entries, [data_folder.ONE_CLASS])
        manifest.write_manifest(temporary, header, entries)


def _ellipsoid(size):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    return (x / 0.7) ** 2 + (y / 0.9) ** 2 + (z / 0.75) ** 2 < 1


def _volume(common, inside, rng):
    """One volume, (D, D, D) uint8."""
    own = rng.random(common.shape)
    structure = COMMON_SHARE * common + (1 - COMMON_SHARE) * own
    size = len(inside)
    smooth = ndimage.zoom(structure.astype(np.float32), size / COARSE_SIDE, order=1)
    noise = rng.integers(0, NOISE_LEVELS, inside.shape, np.uint8)
    levels = 40 + 200 * np.clip(smooth, 0, 1)
    return np.where(inside, levels.astype(np.uint8) + noise, np.uint8(0))


def _entry(index, size, is_training):
    """Of the manifest, as if the scan had voxels of 1 mm."""
    name = f"sub-{index:05d}"
    return {"id": name, "subject": name, "source": f"{name}.nii.gz", "shape": [size] * 3,
            "affine": np.diag([1.0, 1.0, 1.0, 1.0]).tolist(), "window": [0.0, 255.0], "class": 0,
            "split": "train" if is_training else "test"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--volumes", type=int, default=1000, help="number of volumes")
    parser.add_argument("--size", type=int, default=128, help="side of the volumes, voxels")
    parser.add_argument("--seed", type=int, default=0, help="seed of their structure")
    chosen = parser.parse_args()
    write_cohort(chosen.output, chosen.volumes, chosen.size, chosen.seed)
