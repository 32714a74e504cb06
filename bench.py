#!/usr/bin/env python3
"""What it costs on this machine, the plain way against ours, turn and turn about in one run.

    python bench.py metrics
    python bench.py metrics --size 128 --repeats 9 --device cuda

`metrics`: MS-SSIM of a pair by SciPy straight from the formula, and by metrics.ms_ssim_pairs; MMD of two sets.
Medians over the repeats; a ratio above 1 means that ours is faster.
"""
import resource
import tempfile
import time

import numpy as np
import torch
from scipy import ndimage

import metrics
import ms_ssim
from cli import UserError, add_device, parser, run


def alternate(ways, repeats):
    """Runs each way once to warm up, then all in turn, `repeats` times. Returns {name: median seconds}, {name: result}."""
    results = {name: way() for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}, results


def matmul_rate(device, dtype=torch.float32, n=2048, seconds=1.0):
    """Floating-point operations a second of a large matrix product, the best of several."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        at = time.perf_counter()
        c = a @ b
        c[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - at)
    return 2 * n ** 3 / best


def plain_ms_ssim(x, y, length=1.0):
    """MS-SSIM of one pair, protocol kwon2019, straight from its formula with SciPy's Gaussian filter.

    :param x, y: (D, D, D) float32 in [-1, 1]
    """
    def smooth(v):
        return ndimage.gaussian_filter(v, ms_ssim.SIGMA, mode="reflect", radius=ms_ssim.RADIUS)

    c1, c2, cs = (ms_ssim.K1 * length) ** 2, (ms_ssim.K2 * length) ** 2, []
    for level in range(len(ms_ssim.WEIGHTS)):
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
        structure = (2 * cov + c2) / (vx + vy + c2)
        cs.append(structure.mean(dtype=np.float64))
        ssim = ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean(dtype=np.float64)
        if level < len(ms_ssim.WEIGHTS) - 1:
            n = len(x) // 2 * 2
            x, y = (v[:n, :n, :n].reshape(n // 2, 2, n // 2, 2, n // 2, 2).mean((1, 3, 5)) for v in (x, y))
    return float(np.prod([max(c, 0) ** w * max(ssim, 0) ** ms_ssim.WEIGHTS[-1] for c, w in zip(cs[:-1], ms_ssim.WEIGHTS)]))


def test_volumes(n, size):
    """Volumes that share structure, as brains do, (n, size, size, size) uint8."""
    rng = np.random.default_rng(0)
    common = ndimage.gaussian_filter(rng.random((size,) * 3, np.float32), 3)
    out = np.empty((n, size, size, size), np.uint8)
    for v in out:
        x = common + 0.5 * ndimage.gaussian_filter(rng.random((size,) * 3, np.float32), 2)
        v[:] = np.rint(255 * (x - x.min()) / np.ptp(x))
    return out


def bench_metrics(args):
    volumes = test_volumes(args.volumes, args.size)
    x, y = (v.astype(np.float32) / 127.5 - 1 for v in volumes[:2])
    count = len(metrics.all_pairs(args.volumes))
    seconds, results = alternate({"SciPy": lambda: plain_ms_ssim(x, y), "ours": lambda: metrics.ms_ssim_pairs(volumes, device=args.device)},
                                 args.repeats)
    seconds["ours"] /= count
    rate = matmul_rate(args.device)
    operations = sum(6 * (args.size >> k) ** 4 for k in range(len(ms_ssim.WEIGHTS)))  # three products of (n, n) by (n, n^2), dense
    print(f"MS-SSIM of volumes of {args.size}^3     ms a pair")
    print(f"  SciPy, from the formula     {1e3 * seconds['SciPy']:9.1f}")
    print(f"  ms_ssim_pairs, {count:4} pairs   {1e3 * seconds['ours']:9.1f}   {seconds['SciPy'] / seconds['ours']:.1f} times faster")
    print(f"    done densely its products would run at {operations / seconds['ours'] / 1e9:.0f} GFLOP/s; a large fp32 product runs at "
          f"{rate / 1e9:.0f}")
    print(f"  values {results['SciPy']:.7f} and {results['ours'][0]:.7f}, difference {abs(results['SciPy'] - results['ours'][0]):.1e}")
    print(f"  500 volumes, 124,750 pairs: {124750 * seconds['ours'] / 60:.0f} min against {124750 * seconds['SciPy'] / 3600:.0f} h")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    shape = (2 * args.mmd_volumes,) + (args.size,) * 3
    with tempfile.TemporaryFile() as file:
        z = np.memmap(file, np.uint8, "w+", shape=shape)
        for v in z:
            v[:] = np.random.default_rng(0).integers(0, 256, v.shape, dtype=np.uint8)
        start = time.perf_counter()
        kernel = metrics.gram(z, memory_gb=2, device=args.device)
        print(f"MMD, {args.mmd_volumes} against {args.mmd_volumes} volumes of {args.size}^3 from a file of {z.nbytes / 2 ** 30:.2f} GB: "
              f"{len(kernel) * (len(kernel) + 1) // 2:,} inner products in {time.perf_counter() - start:.1f} s, peak of this process "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GB (before: {before:.2f})")


def main():
    p = parser(__doc__)
    sub = p.add_subparsers(dest="what", required=True)
    m = sub.add_parser("metrics", help="MS-SSIM and MMD", formatter_class=p.formatter_class, allow_abbrev=False)
    m.add_argument("--size", type=int, default=128, help="voxels a side")
    m.add_argument("--volumes", type=int, default=24, help="for MS-SSIM, all pairs")
    m.add_argument("--mmd-volumes", type=int, default=32, help="on each side, for MMD")
    m.add_argument("--repeats", type=int, default=7, help="of each way")
    add_device(m)
    m.set_defaults(run=bench_metrics)
    args = p.parse_args()
    if args.size < metrics.SMALLEST or min(args.volumes, args.mmd_volumes, args.repeats) < 2:
        raise UserError(f"--size must be at least {metrics.SMALLEST}; --volumes, --mmd-volumes and --repeats at least 2")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}" + (
        f" ({torch.cuda.get_device_name()})" if args.device.startswith("cuda") else ""))
    args.run(args)


if __name__ == "__main__":
    run(main)
