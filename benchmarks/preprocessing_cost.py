"""Cost of preprocessing: the straightforward loop over scans against preprocess.py."""
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks import baseline
from mri import manifest, mosaic_files
from mri.nifti import write_nifti
from utils.errors import UserError

PREPROCESS = Path(__file__).resolve().parent.parent / "preprocess.py"
HEAD_SHAPE = (144, 176, 144)    # voxels of a made-up scan


@dataclass(frozen=True)
class PreprocessingCost:
    """Medians over the turns; preprocess.py runs on all scans, and on a few of them."""
    scan_shape: tuple           # voxels of the first scan
    scans: int                  # all scans
    few: int                    # as many in the shorter run, which tells what the start costs
    baseline_seconds: float     # of one scan
    all_seconds: float          # of preprocess.py on all scans
    few_seconds: float          # of preprocess.py on a few
    difference: np.ndarray      # gray levels between both ways' mosaics, int16

    @property
    def optimized_seconds(self):
        """Seconds of preprocess.py for one scan more, without its start."""
        return (self.all_seconds - self.few_seconds) / (self.scans - self.few)


def measure(source, scans, baseline_scans, workers, turns):
    """Measures both ways, alternating.

    :param source: folder of .nii.gz files, used repeatedly; None: made-up heads
    :param scans: number of scans for preprocess.py
    :param baseline_scans: number of them for the baseline
    :param workers: processes of preprocess.py
    :param turns: how often each way is measured
    :return: PreprocessingCost
    :raises UserError: no scan in `source`
    """
    few = max(1, scans // 10)
    baseline_scans = min(baseline_scans, scans)
    baseline_times = []
    all_times = []
    few_times = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_scans(folder / "all", scans, source)
        make_scans(folder / "few", few, source)
        chosen = sorted((folder / "all").iterdir())[:baseline_scans]
        for turn in range(turns):
            start = time.perf_counter()
            expected = [baseline.preprocess(path, folder / "baseline.png") for path in chosen]
            baseline_times.append((time.perf_counter() - start) / baseline_scans)
            all_times.append(_run_script(folder / "all", folder / f"all-{turn}", workers))
            few_times.append(_run_script(folder / "few", folder / f"few-{turn}", workers))
        shape, mosaics = _read_results(folder / "all-0", chosen)
    return PreprocessingCost(
        scan_shape=shape, scans=scans, few=few,
        baseline_seconds=float(np.median(baseline_times)),
        all_seconds=float(np.median(all_times)), few_seconds=float(np.median(few_times)),
        difference=np.abs(mosaics.astype(np.int16) - np.stack(expected)))


def _run_script(scans, output, workers):
    """Seconds that preprocess.py takes."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, PREPROCESS, "--input", scans, "--output", output, "--split", "1:0",
         "--workers", str(workers)], check=True, capture_output=True)
    return time.perf_counter() - start


def _read_results(folder, paths):
    """Shape of the first scan, and the mosaics that preprocess.py made of these scans."""
    header, entries = manifest.read_manifest(folder)
    names = [path.name.removesuffix(".nii.gz") for path in paths]
    files = [mosaic_files.mosaic_path(folder, name) for name in names]
    mosaics = np.stack([mosaic_files.read_mosaic(file, header) for file in files])
    return tuple(entries[0]["shape"]), mosaics


# ------------------------------------------------------------------------------------------ scans

def make_scans(folder, count, source):
    """Fills a new folder with 000.nii.gz, 001.nii.gz and so on.

    :param source: folder of .nii.gz files to link to, repeatedly; None: make heads up
    :raises UserError: no scan in `source`
    """
    found = sorted(source.glob("*.nii.gz")) if source else None
    if source and not found:
        raise UserError(f"--input {source}: holds no .nii.gz")
    folder.mkdir()
    for i in range(count):
        path = folder / f"{i:03d}.nii.gz"
        if found:
            path.symlink_to(found[i % len(found)].resolve())
        else:
            write_nifti(path, made_up_head(i), np.eye(4))


def made_up_head(seed):
    """A smooth ball with texture and noise on black, HEAD_SHAPE uint8."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in HEAD_SHAPE), indexing="ij")
    inside = sum(a * a for a in axes) < 0.8
    texture = ndimage.zoom(rng.random((18, 22, 18)), 8, order=1)
    value = 60 + 150 * texture + rng.normal(0, 4, inside.shape)
    return np.where(inside, value, 0).clip(0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------- reporting

def report(cost, workers, turns):
    """Lines that tell the user what was measured."""
    shape = " x ".join(map(str, cost.scan_shape))
    one = cost.optimized_seconds
    whole = cost.all_seconds
    difference = cost.difference
    return [
        f"{cost.scans} scans of {shape} to mosaics of 128^3; {turns} turns, medians",
        f"baseline   {1e3 * cost.baseline_seconds:8.1f} ms/scan, a loop in one process",
        f"optimized  {1e3 * one:8.1f} ms/scan, {workers} processes of preprocess.py: "
        f"{cost.baseline_seconds / one:.1f} times faster; {whole:.1f} s in all, start and quality "
        f"control included: {cost.baseline_seconds * cost.scans / whole:.1f} times faster",
        f"results: {100 * (difference > 0).mean():.4f} % of the pixels differ, "
        f"by {difference.max()} of 255 at most",
    ]
