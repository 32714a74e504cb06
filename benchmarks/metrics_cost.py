"""Cost of the metrics: MS-SSIM of all pairs against SciPy, MMD of sets that lie in a file, and
each part of a whole report."""
import functools
import tempfile
import time
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from benchmarks import baseline, measure
from metrics import evaluation, mmd, ms_ssim, registry, statistic, volume_sets
from metrics.options import MetricOptions

PAIRS_OF_500 = 500 * 499 // 2


@dataclass(frozen=True)
class SimilarityCost:
    """Cost of MS-SSIM, and the value of the first pair, both ways."""
    side: int                   # voxels along a side of the volumes
    pairs: int                  # computed by the optimized way
    baseline_seconds: float     # of one pair
    optimized_seconds: float    # of one pair
    baseline_value: float
    optimized_value: float
    matmul_rate: float          # operations per second of a large fp32 matrix product


def measure_ms_ssim(count, side, repeats, device):
    """Measures MS-SSIM of one pair by SciPy, and of all pairs by metrics.ms_ssim, alternating.

    :param count: number of volumes
    :param side: voxels along a side of the volumes
    :param repeats: how often each way is timed
    :return: SimilarityCost
    """
    volumes = made_up_volumes(count, side)
    x, y = volumes[:2].astype(np.float32) / 127.5 - 1
    pairs = len(ms_ssim.all_pairs(count))
    ways = {"baseline": functools.partial(baseline.ms_ssim, x, y),
            "optimized": functools.partial(ms_ssim.ms_ssim_pairs, volumes, device=device)}
    seconds, results = measure.alternate(ways, repeats)
    return SimilarityCost(
        side=side, pairs=pairs, baseline_seconds=seconds["baseline"],
        optimized_seconds=seconds["optimized"] / pairs, baseline_value=results["baseline"],
        optimized_value=results["optimized"][0], matmul_rate=measure.matmul_rate(device))


def made_up_volumes(count, side):
    """Volumes that share structure, as brains do, (count, side, side, side) uint8."""
    rng = np.random.default_rng(0)
    shape = (side,) * 3
    common = ndimage.gaussian_filter(rng.random(shape, np.float32), 3)
    volumes = np.empty((count, *shape), np.uint8)
    for volume in volumes:
        own = ndimage.gaussian_filter(rng.random(shape, np.float32), 2)
        value = common + 0.5 * own
        volume[:] = np.rint(255 * (value - value.min()) / np.ptp(value))
    return volumes


def ms_ssim_report(cost):
    """Lines that tell the user what was measured."""
    old = cost.baseline_seconds
    new = cost.optimized_seconds
    # at each level, the products of three axes of (n, n) by (n, n^2) matrices, taken as dense
    operations = sum(6 * (cost.side >> level) ** 4 for level in range(len(ms_ssim.LEVEL_WEIGHTS)))
    difference = abs(cost.baseline_value - cost.optimized_value)
    return [
        f"{f'MS-SSIM of volumes of {cost.side}^3':38}   ms/pair",
        f"  {'baseline: SciPy, from the formula':36} {1e3 * old:9.1f}",
        f"  {f'optimized: ms_ssim_pairs, {cost.pairs} pairs':36} {1e3 * new:9.1f}   "
        f"{old / new:.1f} times faster",
        f"    as dense matrix products, {operations / new / 1e9:.0f} GFLOP/s; a large fp32 product "
        f"runs at {cost.matmul_rate / 1e9:.0f}",
        f"  values {cost.baseline_value:.7f} and {cost.optimized_value:.7f}, "
        f"difference {difference:.1e}",
        f"  500 volumes have {PAIRS_OF_500:,} pairs: {PAIRS_OF_500 * new / 60:.0f} min optimized, "
        f"{PAIRS_OF_500 * old / 3600:.0f} h baseline",
    ]


def measure_mmd(count, side, device):
    """Measures the inner products that MMD needs, of two sets that lie in a file.

    :param count: volumes of each set
    :param side: voxels along a side of the volumes
    :return: a line that tells the user what was measured
    """
    before = measure.peak_gb("cpu")
    pool = volume_sets.allocate(2 * count, side, memory_gb=0, folder=tempfile.gettempdir())
    for volume in pool:
        noise = np.random.default_rng(0)  # the same in each, as only time matters
        volume[:] = noise.integers(0, 256, volume.shape, dtype=np.uint8)
    start = time.perf_counter()
    products = mmd.gram(pool, memory_gb=2, device=device)
    seconds = time.perf_counter() - start
    size = pool.nbytes / 2 ** 30
    unique = len(products) * (len(products) + 1) // 2
    return (f"MMD, {count} against {count} volumes of {side}^3 from a file of {size:.2f} GiB: "
            f"{unique:,} inner products in {seconds:.1f} s; peak of this process "
            f"{measure.peak_gb('cpu'):.2f} GB, {before:.2f} before")


def measure_report(count, side, device, replicates=1000, permutations=999):
    """Measures the numbers of a report with their intervals and tests, metric by metric.

    :param count: real, synthetic and training volumes, each
    :param side: voxels along a side of the volumes
    :return: lines that tell the user what was measured
    """
    volumes = made_up_volumes(3 * count, side)
    sets = [_made_up_set(flag, part)
            for flag, part in zip(("--real", "--synthetic", "--train"), np.split(volumes, 3))]
    pool = statistic.Pool(*sets)
    pool.volumes = volumes
    options = MetricOptions(names=registry.NAMES, device=device)
    metrics, skipped = registry.checked(registry.NAMES, pool, options)
    lines, total = [], 0
    for metric in metrics:
        start = time.perf_counter()
        evaluation.measure([metric], pool, options, replicates, permutations)
        seconds = time.perf_counter() - start
        lines.append(f"  {' and '.join(metric.titles.values()):36} {seconds:9.1f}")
        total += seconds
    left_out = f"; without {', '.join(skipped)}" if skipped else ""
    heading = f"Report of {count} against {count}, {count} trained on"
    return [f"{heading:38}         s", *lines, f"  {'together':36} {total:9.1f}{left_out}"]


def _made_up_set(flag, volumes):
    """A set of volumes in memory, each of its own subject."""
    ids = [f"{flag[2:]}-{i}" for i in range(len(volumes))]
    return volume_sets.VolumeSet(
        flag, "memory", None, ids, ids, side=volumes.shape[1], voxel_sizes=np.ones(3),
        read=volumes.__getitem__)
