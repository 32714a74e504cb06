"""Brains of 32³ voxels for tests of the statistics: the demo's, and brains of real anatomy."""
import subprocess
import sys

import numpy as np
from helpers import ROOT, SHARED
from scipy import ndimage

from metrics import volume_sets

GROW = SHARED / "tools" / "grow_cohort.py"  # deforms the brains of SHARED / "cohort"


def _run(*command):
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, capture_output=True)


def read_volumes(data):
    """All volumes of a data folder, (N, D, D, D) uint8."""
    found = volume_sets.find_set(data, "all", "--real")
    return np.stack([found.read(i) for i in range(len(found))])


def demo_brains(folder, n, seed):
    """A data folder of n subjects of demo/cohort.py, made in `folder`."""
    _run("demo/cohort.py", "--contrast", "mprage", "--n", n, "--seed", seed, "--output",
         folder / "scans")
    return _preprocess(folder)


def grown_brains(folder, bases, n, seed):
    """A data folder of n deformations of base brains, such as "1-5", made in `folder`."""
    _run(GROW, "--subjects", bases, "--n", n, "--seed", seed, "--out", folder / "scans")
    return _preprocess(folder)


def _preprocess(folder):
    _run("preprocess.py", "--input", folder / "scans", "--output", folder / "data", "--size", 32,
         "--split", "1:0")
    return folder / "data"


def second_scan(volume, rng):
    """The same brain again: moved by a fraction of a voxel, another bias field and noise."""
    moved = ndimage.shift(volume.astype(np.float32), rng.uniform(-0.3, 0.3, 3), order=1)
    bias = ndimage.zoom(rng.normal(0, 0.03, (3, 3, 3)), 32 / 3, order=3)
    noise = 0.01 * 255 * rng.normal(size=volume.shape)
    return _as_uint8(np.where(moved > 5, moved * np.exp(bias) + noise, moved))


def blurred(volume):
    """What a generator that blurs makes of a brain."""
    return _as_uint8(ndimage.gaussian_filter(volume.astype(np.float32), 0.4))


def _as_uint8(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
