#!/usr/bin/env python3
"""What it costs on this machine: the plain way, as the published repositories do it, against ours, turn and turn about.

    python bench.py train                                   a step of DiT-XL/2 at 896 x 896
    python bench.py train --batch-size 16 --memory-limit 39  does it fit on a card of 40 GB, and how fast is it
    python bench.py sample --batch-size 8
    python bench.py samplers --ckpt results/000-DiT-XL-2/checkpoints/0066000.safetensors --output samplers/
    python bench.py preprocess
    python bench.py metrics
    python bench.py scaling --output scaling/               time and memory against tokens and batch: a table, a picture

Training and sampling run each way in processes of its own, so that its peak memory is its own; medians. Ratios of times are plain
over ours, above 1 where ours is faster; of memory, ours over plain.
Weights are random, but for `samplers`: they cost what trained ones cost. BENCHMARKS.md has what was measured.
"""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

import models
from benchmarks import baseline as plain
from benchmarks.measure import FACTOR, alone, matmul_rate, merge, our_training, peak_gb, plain_training, sampling
from diffusion import samplers
from diffusion import vae as latents
from metrics import mmd as metrics
from metrics import ms_ssim
from metrics.volume_sets import find_set
from mri import manifest, mosaic, mosaic_files
from mri.geometry import voxel_sizes
from mri.nifti import write_nifti
from reporting import charts, figures
from training import acceleration, pretrained
from utils import seeding
from utils.errors import UserError, run_script
from utils.files import atomic_folder, require_new_folder, write_text
from utils.flags import CPU_CORES, add_compile_flag, add_device_flag, make_parser, positive, whole_number

# ---------------------------------------------------------------------------------------------------- training

def row(name, r, batch):
    if r is None:
        return f"{name:10} out of memory"
    t = float(np.median(r["times"]))
    return (f"{name:10} {t:9.3f} {batch / t:10.4f} {r['products'] * batch / t / 1e12:9.3f} {r['rate'] / 1e12:9.3f} "
            f"{100 * r['products'] * batch / t / r['rate']:7.0f} % {r['peak']:8.2f}")


HEAD = f"{'':10} {'s a step':>9} {'images/s':>10} {'TFLOP/s':>9} {'the rate':>9} {'of it':>9} {'peak GB':>8}"


def bench_train(args):
    ways = {"plain": plain_training, "ours": our_training}
    if args.only:
        ways = {args.only: ways[args.only]}
    turns = {name: [] for name in ways}
    for _ in range(args.turns):
        for name, way in ways.items():
            turns[name].append(alone(way, args, args.image_size, args.batch_size))
    results = {name: merge(r) for name, r in turns.items()}
    tokens = next((r["tokens"] for r in results.values() if r), "?")
    print(f"{args.model}, {args.image_size} x {args.image_size}, {tokens} tokens, batch {args.batch_size}"
          + (f", at most {args.memory_limit:g} GiB" if args.memory_limit else "")
          + f"; {args.turns} turns of {args.steps} steps, medians\n{HEAD}")
    for name, r in results.items():
        print(row(name, r, args.batch_size))
    p, o = results.get("plain"), results.get("ours")
    if p and o:
        print(f"ratio      {np.median(p['times']) / np.median(o['times']):9.2f} {'':40} {o['peak'] / p['peak']:8.2f}")
    if p:
        print(f"of the plain step the VAE's encoder took {p['vae']:.3f} s")
    if o:
        print(f"our first step, with what is compiled: {o['first']:.1f} s" + (f"; {o['said']}" if o["said"] else ""))
    for name, r in results.items():
        if r and r["profile"]:
            print("\n".join([f"where the time of a {name} step goes:", *r["profile"]]))


def bench_scaling(args):
    """Our step against tokens at the first batch size, and against batch at the first image size."""
    sizes = [(s, args.batch_sizes[0]) for s in args.image_sizes] + [(args.image_sizes[0], b) for b in args.batch_sizes[1:]]
    lines, points = ["| mosaic | tokens | batch | s a step | images/s | TFLOP/s | peak GB |", "|---|---|---|---|---|---|---|"], []
    for image, batch in sizes:
        r = alone(our_training, args, image, batch)
        tokens = (image // FACTOR // models.config_of(args.model)["patch_size"]) ** 2
        if r:
            t = float(np.median(r["times"]))
            points.append(dict(image=image, tokens=tokens, batch=batch, seconds=t, peak=r["peak"]))
            lines.append(f"| {image} x {image} | {tokens} | {batch} | {t:.3f} | {batch / t:.4f} | {r['products'] * batch / t / 1e12:.3f} | "
                         f"{r['peak']:.2f} |")
        else:
            lines.append(f"| {image} x {image} | {tokens} | {batch} | out of memory | | | |")
        print(lines[-1], flush=True)
    if args.output and points:
        args.output.mkdir(parents=True, exist_ok=True)
        write_text(args.output / "scaling.md", "\n".join(lines) + "\n")
        charts.scaling(args.output / "scaling.png", points, f"{args.model}, {args.precision}, {args.device}")
        print(f"{args.output}: scaling.md, scaling.png")


# ------------------------------------------------------------------------------------------------------------- sampling

def bench_sample(args):
    turns = {name: [] for name in ([args.only] if args.only else ["plain", "ours"])}
    for _ in range(args.turns):
        for name, done in turns.items():
            done.append(alone(sampling, args, name))
    print(f"{args.model}, {args.image_size} x {args.image_size}, batch {args.batch_size}"
          + (f", at most {args.memory_limit:g} GiB" if args.memory_limit else "")
          + f"; {args.turns} turns of {args.steps} steps and a decoding, medians; whole volumes by arithmetic from them")
    print(f"{'':10} {'s a step':>9} {'decoding':>9} {'peak GB':>8}   s a volume: {'ddpm 250':>9} {'dpm++ 50':>9} {'dpm++ 25':>9}")
    totals = {}
    for name, done in turns.items():
        r = merge(done)
        if r is None:
            print(f"{name:10} out of memory")
            continue
        if r["said"]:
            print(r["said"])
        step, decode = float(np.median(r["times"])), float(np.median([t for d in done for t in d["decode"]]))
        totals[name] = [(n * step + decode) / args.batch_size for n in (250, 50, 25)]
        print(f"{name:10} {step:9.3f} {decode:9.3f} {r['peak']:8.2f} {'':13} " + " ".join(f"{t:9.2f}" for t in totals[name]))
    if len(totals) == 2:
        print(f"{'ratio':10} {'':43} " + " ".join(f"{a / b:9.2f}" for a, b in zip(totals["plain"], totals["ours"])))
    if "ours" in totals:
        print(f"of ours, dpm++ 25 against ddpm 250: {totals['ours'][0] / totals['ours'][2]:.2f} times faster")


WAYS = (("ddpm", 250), ("ddim", 250), ("dpm++", 50), ("dpm++", 25))


def bench_samplers(args):
    """The same seeds of a trained model by each sampler: time for all volumes, how they compare, a picture side by side."""
    require_new_folder(args.output)
    model, meta = pretrained.restore_model(args.ckpt, base=args.base)
    header, config = manifest.check_header(meta["header"], args.ckpt), meta["config"]
    vae = latents.load_decoder(meta, args.vae, args.device, args.ckpt)
    real = args.real and find_set(args.real, None, "--real")
    real_volumes = real and np.stack([real.read(i) for i in range(len(real))])
    said = acceleration.prepare_for_sampling(model, args.device, args.precision == "bf16", args.compile)
    if said:
        print(said)
    shape, n = (config["in_channels"], config["input_size"], config["input_size"]), args.num_samples

    def draw(sampler, steps):
        generators = [seeding.seeded_generator(args.seed, i) for i in range(n)]
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            z = samplers.sample(model, shape, torch.zeros(n, dtype=torch.long), config["num_classes"], generators, sampler, steps,
                                 device=args.device)
        return np.stack([mosaic.untile(m, header["size"], header["layout"]) for m in latents.decode(vae, z)])

    draw("dpm++", 3)
    times, drawn = {way: [] for way in WAYS}, {}
    for _ in range(args.turns):
        for way in WAYS:
            start = time.perf_counter()
            drawn[way] = draw(*way)
            times[way].append(time.perf_counter() - start)
    lines = [f"| sampler, steps | s for {n} | times faster | from ddim 250, grey levels | MS-SSIM |" + (" linear MMD |" if real else ""),
             "|---" * (5 + bool(real)) + "|"]
    for way in WAYS:
        seconds = float(np.median(times[way]))
        off = np.sqrt(np.mean((drawn[way].astype(np.float32) - drawn["ddim", 250]) ** 2))
        lines.append(f"| {way[0]} {way[1]} | {seconds:.3g} | {float(np.median(times[WAYS[0]])) / seconds:.1f} | {off:.1f} | "
                     f"{ms_ssim.ms_ssim_pairs(drawn[way], device=args.device).mean():.4f} |"
                     + (f" {metrics.mmd_linear(real_volumes, drawn[way], device=args.device):.1f} |" if real else ""))
    print("\n".join(lines))
    with atomic_folder(args.output) as folder:
        write_text(folder / "samplers.md", "\n".join(lines) + "\n")
        figures.gallery(folder / "samplers.png", {f"{s} {k}": drawn[s, k] for s, k in WAYS}, voxel_sizes(header["affine"]))
    print(f"{args.output}: samplers.md, samplers.png")


# -------------------------------------------------------------------------------------------------------- preprocessing

def bench_preprocess(args):
    """The plain loop over the scans against preprocess.py, whole and without what it takes to start."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        few, found = max(1, args.scans // 10), args.input and sorted(args.input.glob("*.nii.gz"))
        if args.input and not found:
            raise UserError(f"--input {args.input}: holds no .nii.gz")
        for name, n in (("all", args.scans), ("few", few)):
            (tmp / name).mkdir()
            for i in range(n):
                if found:
                    (tmp / name / f"{i:03d}.nii.gz").symlink_to(found[i % len(found)].resolve())
                else:
                    write_nifti(tmp / name / f"{i:03d}.nii.gz", test_scan(i), np.diag([1, 1, 1, 1.0]))
        plain_times, sheets, ours = [], {}, {"all": [], "few": []}
        for turn in range(args.turns):
            start = time.perf_counter()
            for path in sorted((tmp / "all").iterdir())[:args.plain_scans]:
                sheets[path.name] = plain.preprocess(path, tmp / "plain.png")
            plain_times.append((time.perf_counter() - start) / min(args.plain_scans, args.scans))
            for name in ours:
                start = time.perf_counter()
                subprocess.run([sys.executable, Path(__file__).with_name("preprocess.py"), "--input", tmp / name, "--output",
                                tmp / f"{name}{turn}", "--split", "1:0", "--workers", str(args.workers)], check=True, capture_output=True)
                ours[name].append(time.perf_counter() - start)
        header, entries = manifest.read_manifest(tmp / "all0")
        mine = np.stack([mosaic_files.read_mosaic(mosaic_files.mosaic_path(tmp / "all0", name.removesuffix(".nii.gz")), header) for name in sheets])
        p, whole = float(np.median(plain_times)), float(np.median(ours["all"]))
        rate = (whole - float(np.median(ours["few"]))) / (args.scans - few)
        print(f"{args.scans} scans of {' x '.join(map(str, entries[0]['shape']))} to mosaics of 128^3; {args.turns} turns, medians")
        print(f"plain loop       {1e3 * p:8.1f} ms a scan")
        print(f"preprocess.py    {1e3 * rate:8.1f} ms a scan, {args.workers} processes: {p / rate:.1f} times faster; {whole:.1f} s in all, "
              f"start and quality control included: {p * args.scans / whole:.1f} times")
        off = np.abs(mine.astype(np.int16) - np.stack(list(sheets.values())))
        print(f"results: {100 * (off > 0).mean():.4f} % of the pixels differ, by {off.max()} of 255 at most")


def test_scan(seed):
    """A smooth "head" on black, (144, 176, 144) uint8."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (144, 176, 144)), indexing="ij")
    inside = sum(a * a for a in axes) < 0.8
    texture = ndimage.zoom(rng.random((18, 22, 18)), 8, order=1)
    return np.where(inside, 60 + 150 * texture + rng.normal(0, 4, inside.shape), 0).clip(0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------------- metrics

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
    count = len(ms_ssim.all_pairs(args.volumes))
    seconds, results = alternate({"SciPy": lambda: plain.ms_ssim(x, y), "ours": lambda: ms_ssim.ms_ssim_pairs(volumes, device=args.device)},
                                 args.repeats)
    seconds["ours"] /= count
    rate = matmul_rate(args.device)
    operations = sum(6 * (args.size >> k) ** 4 for k in range(len(ms_ssim.LEVEL_WEIGHTS)))  # three products of (n, n) by (n, n^2), dense
    print(f"MS-SSIM of volumes of {args.size}^3     ms a pair")
    print(f"  SciPy, from the formula     {1e3 * seconds['SciPy']:9.1f}")
    print(f"  ms_ssim_pairs, {count:4} pairs   {1e3 * seconds['ours']:9.1f}   {seconds['SciPy'] / seconds['ours']:.1f} times faster")
    print(f"    done densely its products would run at {operations / seconds['ours'] / 1e9:.0f} GFLOP/s; a large fp32 product runs at "
          f"{rate / 1e9:.0f}")
    print(f"  values {results['SciPy']:.7f} and {results['ours'][0]:.7f}, difference {abs(results['SciPy'] - results['ours'][0]):.1e}")
    print(f"  500 volumes, 124,750 pairs: {124750 * seconds['ours'] / 60:.0f} min against {124750 * seconds['SciPy'] / 3600:.0f} h")

    before = peak_gb("cpu")
    shape = (2 * args.mmd_volumes,) + (args.size,) * 3
    with tempfile.TemporaryFile() as file:
        z = np.memmap(file, np.uint8, "w+", shape=shape)
        for v in z:
            v[:] = np.random.default_rng(0).integers(0, 256, v.shape, dtype=np.uint8)
        start = time.perf_counter()
        kernel = metrics.gram(z, memory_gb=2, device=args.device)
        print(f"MMD, {args.mmd_volumes} against {args.mmd_volumes} volumes of {args.size}^3 from a file of {z.nbytes / 2 ** 30:.2f} GB: "
              f"{len(kernel) * (len(kernel) + 1) // 2:,} inner products in {time.perf_counter() - start:.1f} s, peak of this process "
              f"{peak_gb('cpu'):.2f} GB (before: {before:.2f})")


def main():
    p = make_parser(__doc__)
    sub = p.add_subparsers(dest="what", required=True)

    def command(name, function, text):
        c = sub.add_parser(name, help=text, formatter_class=p.formatter_class, allow_abbrev=False)
        c.set_defaults(run=function)
        return c

    train = command("train", bench_train, "a training step")
    scaling = command("scaling", bench_scaling, "our training step against tokens and batch")
    sample = command("sample", bench_sample, "a sampling step and the decoding")
    for c in (train, scaling, sample):
        c.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME", help="one of the zoo")
        c.add_argument("--steps", type=int, default=3, help="measured steps a turn")
        c.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of our arithmetic")
        c.add_argument("--memory-limit", type=positive, metavar="GiB", help="of the GPU; 39 is what a card of 40 GB has")
        add_compile_flag(c)
        add_device_flag(c)
    for c in (train, sample):
        c.add_argument("--vae", choices=("sd", "tiny"), default="sd", help="of Stable Diffusion's shape, or 16 times narrower, for tests")
        c.add_argument("--image-size", type=int, default=896, help="side of the mosaics, pixels")
        c.add_argument("--batch-size", type=int, default=1, help="mosaics a step")
        c.add_argument("--turns", type=int, default=2, help="of each way")
        c.add_argument("--only", choices=("plain", "ours"), help="one way alone")
    sample.add_argument("--vae-precision", choices=("fp32", "bf16"), default="fp32", help="of our decoding")
    for c in (train, scaling):
        c.add_argument("--accum", type=int, default=1, help="parts that a step's batch is computed in")
        c.add_argument("--grad-checkpoint", type=int, nargs="?", const=1, default=0, metavar="K", help="as train.py's")
        c.add_argument("--keep-activations", action="store_true", help="as train.py's")
    train.add_argument("--profile", action="store_true", help="say which operations take the time")
    scaling.set_defaults(profile=False)
    scaling.add_argument("--image-sizes", type=int, nargs="+", default=(256, 512, 896, 1536), metavar="PIXELS",
                         help="at the first batch size")
    scaling.add_argument("--batch-sizes", type=int, nargs="+", default=(1,), metavar="N", help="the others at the first image size")
    scaling.add_argument("--output", type=Path, metavar="DIR", help="for scaling.md and scaling.png")
    c = command("samplers", bench_samplers, "the samplers on a trained model: time, and a picture side by side")
    c.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint written by train.py")
    c.add_argument("--real", type=Path, metavar="DIR", help="data folder, for MMD against its test split")
    c.add_argument("--num-samples", type=int, default=8, help="volumes, all in one batch")
    c.add_argument("--seed", type=whole_number, default=0, help="sample i draws from (seed, i)")
    c.add_argument("--vae", metavar="ema|mse|PATH", help="VAE that decodes; default: the one that was trained with")
    c.add_argument("--base", metavar="FILE", help="base weights, where they are no longer where train.py read them")
    c.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the arithmetic")
    c.add_argument("--turns", type=int, default=1, help="of each sampler")
    c.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for samplers.md and samplers.png")
    add_compile_flag(c)
    add_device_flag(c)
    c = command("preprocess", bench_preprocess, "scans to mosaics")
    c.add_argument("--input", type=Path, metavar="DIR", help="of .nii.gz files, used over and over; default: made-up heads")
    c.add_argument("--scans", type=int, default=95, help="for preprocess.py")
    c.add_argument("--plain-scans", type=int, default=14, help="of them, for the plain loop")
    c.add_argument("--workers", type=int, default=CPU_CORES, help="processes of preprocess.py")
    c.add_argument("--turns", type=int, default=3, help="of each way")
    m = command("metrics", bench_metrics, "MS-SSIM and MMD")
    m.add_argument("--size", type=int, default=128, help="voxels a side")
    m.add_argument("--volumes", type=int, default=24, help="for MS-SSIM, all pairs")
    m.add_argument("--mmd-volumes", type=int, default=32, help="on each side, for MMD")
    m.add_argument("--repeats", type=int, default=7, help="of each way")
    add_device_flag(m)
    args = p.parse_args()
    check(args)
    device = getattr(args, "device", "cpu")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}" + (
        f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""))
    args.run(args)


def check(args):
    """Refuses what cannot be measured, before anything is."""
    for k, v in vars(args).items():
        if k in ("steps", "turns", "batch_size", "accum", "plain_scans", "workers", "num_samples") and v < 1:
            raise UserError(f"--{k.replace('_', '-')} {v}: at least 1")
    if args.what == "metrics" and (args.size < ms_ssim.MIN_SIDE or min(args.volumes, args.mmd_volumes, args.repeats) < 2):
        raise UserError(f"--size must be at least {ms_ssim.MIN_SIDE}; --volumes, --mmd-volumes and --repeats at least 2")
    if args.what == "preprocess" and args.scans < 2:
        raise UserError(f"--scans {args.scans}: at least 2")
    if args.what == "samplers" and args.num_samples < 2:
        raise UserError(f"--num-samples {args.num_samples}: at least 2, to compare")
    if getattr(args, "memory_limit", None) and not args.device.startswith("cuda"):
        raise UserError("--memory-limit: only on a GPU; here the peak is printed")
    if args.what in ("train", "sample", "scaling"):
        unit = FACTOR * models.config_of(args.model)["patch_size"]
        batches = getattr(args, "batch_sizes", None) or [args.batch_size]
        for size in getattr(args, "image_sizes", None) or [args.image_size]:
            if size < unit or size % unit:
                raise UserError(f"--image-size {size}: must be a multiple of {unit} for {args.model}")
        if min(batches) < 1 or any(b % getattr(args, "accum", 1) for b in batches):
            raise UserError(f"--batch-size {min(batches)}: at least 1, and --accum must divide it")
    if getattr(args, "grad_checkpoint", 0) < 0:
        raise UserError(f"--grad-checkpoint {args.grad_checkpoint}: every K-th block, K at least 1; 0: none")


if __name__ == "__main__":
    run_script(main)
