"""Ventricles that are 10 % larger in the images themselves: what the network measures of it."""
import importlib.util

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import SHARED, script
from scipy import ndimage
from test_anatomy import NETWORK, VENTRICLE, grown_volumes, halves_of_64, p_of_structures

from metrics import structure_volumes, volume_sets
from mri import meshnet, structures

COHORT = SHARED / "cohort"
SUBJECTS = 28       # each of the 14 brains of the cohort, deformed twice
GAIN = 1.1
REACH_MM = 8        # beyond which nothing moves
DRAWS = 50


def enlarge(volume, mask, gain):
    """Moves what lies around a structure outward, so that it has `gain` times its volume.

    The shift is the same all along the surface, and fades on both sides of it.

    :param volume: (X, Y, Z), voxels of 1 mm
    :param mask: (X, Y, Z) bool, the structure
    :return: (X, Y, Z) float
    """
    distance = np.where(mask, 0.5 - ndimage.distance_transform_edt(mask),
                        ndimage.distance_transform_edt(~mask) - 0.5)    # mm, from the surface
    distance = ndimage.gaussian_filter(distance, 1.0)
    order = np.sort(distance, axis=None)
    inside = np.searchsorted(order, 0.0)
    shift = order[round(gain * inside)]                              # mm
    normal = np.stack(np.gradient(distance))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    fade = np.clip(1 - np.abs(distance - shift) / REACH_MM, 0, 1)
    position = np.indices(volume.shape) - shift * fade * normal
    return ndimage.map_coordinates(volume, position, order=3, mode="nearest")


def test_a_ball_is_enlarged_by_what_is_asked_for():
    away = np.linalg.norm(np.indices((48, 48, 48)) - 23.5, axis=0)
    ball = np.clip(12.5 - away, 0, 1) * 100 + 50
    larger = enlarge(ball, away < 12, GAIN)
    content = [(v - 50).sum() for v in (ball, larger)]
    assert content[1] / content[0] == pytest.approx(GAIN, abs=0.015)
    outside = away > 12 + REACH_MM + 2
    assert np.abs(larger - ball)[outside].max() < 1e-3
    assert (enlarge(ball, away < 12, 1.0) - 50).sum() / content[0] == pytest.approx(1, abs=0.01)


def grow():
    """The function that deforms a brain of the cohort: (volume, generator) -> volume."""
    path = SHARED / "tools" / "grow_cohort.py"
    spec = importlib.util.spec_from_file_location("grow_cohort", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.deform


def write_scans(folder, gain):
    """Deformed brains; the same ones for every gain."""
    deform, network = grow(), meshnet.load(NETWORK)
    folder.mkdir()
    for number in range(1, 15):
        path = COHORT / f"sub-{number:02d}_T1w.nii.gz"
        image = nib.load(path)
        volume = image.get_fdata(dtype=np.float32)
        if gain != 1:
            mask = structures.segment(volume, image.affine, network).labels == 1 + VENTRICLE
            volume = enlarge(volume, mask, gain)
            planted = enlarge(mask.astype(np.float32), mask, gain).sum() / mask.sum()
            print(f"{path.name}: ventricles of {planted:.3f} times their volume", flush=True)
        for i in range(number - 1, SUBJECTS, 14):
            grown = deform(volume, np.random.default_rng([11, i]))
            data = np.clip(grown, 0, 255).round().astype(np.uint8)
            name = f"sub-{number:02d}g{i:03d}_T1w.nii.gz"
            nib.save(nib.Nifti1Image(data, image.affine), folder / name)


def measure(folder):
    """(28, 17) ml of the scans of a folder, through preprocess.py."""
    data = folder.parent / f"{folder.name}-data"
    script("preprocess.py", "--input", folder, "--output", data, "--size", 128,
           "--split", f"{SUBJECTS}:0", "--workers", 1)
    found = volume_sets.find_set(data, None, "--real", default_split="all")
    segmenter = structure_volumes.Segmenter(NETWORK, "cpu")
    volumes = [found.read(i) for i in range(len(found))]
    grids = [found.grid_of(i) for i in range(len(found))]
    return segmenter.measure_all(volumes, grids, found.ids, data, folder.name)[:, :17]


@pytest.mark.slow
@pytest.mark.skipif(not (NETWORK.is_dir() and COHORT.is_dir()),
                    reason=f"needs {NETWORK} and the cohort beside it")
def test_larger_ventricles_in_images_are_measured_and_found(tmp_path):
    """Prints the numbers of docs/anatomy.md; 56 volumes to make and to segment."""
    torch.set_num_threads(1)
    ml = {}
    for gain in (1.0, GAIN):
        write_scans(tmp_path / f"gain-{gain}", gain)
        ml[gain] = measure(tmp_path / f"gain-{gain}")
    ratio = ml[GAIN] / ml[1.0]
    for name, values in zip(structures.STRUCTURES, ratio.T):
        print(f"{name}: {values.mean():.3f} times its volume, mean ({values.min():.3f} to "
              f"{values.max():.3f})")
    share = share_found(ratio)
    print(f"ventricles found at 32 against 32: {share}")
    assert 1.05 <= ratio[:, VENTRICLE].mean() <= 1.12
    others = np.delete(ratio.mean(0), VENTRICLE)
    assert np.abs(others - 1).max() <= 0.03
    assert share["conditional"] > share["volume"]


def share_found(ratio):
    """{family: share of draws with p <= 0.05} where half of 64 brains change as measured."""
    volumes, found = grown_volumes(), {"volume": [], "conditional": []}
    for draw in range(DRAWS):
        ml = halves_of_64(volumes, draw)
        ml[32:] *= ratio[np.random.default_rng([2, draw]).integers(0, len(ratio), 32)]
        p = p_of_structures(ml, 199, draw)
        for family, shares in found.items():
            shares.append(p[family][VENTRICLE] <= 0.05)
    return {family: float(np.mean(shares)) for family, shares in found.items()}
