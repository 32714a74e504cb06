#!/usr/bin/env python3
"""Measures time and memory on this machine: baseline vs. optimized, alternating.

    python bench.py train                                    a step of DiT-XL/2 at 896 x 896
    python bench.py train --batch-size 16 --memory-limit 39  does it fit a GPU of 40 GB?
    python bench.py sample --batch-size 8
    python bench.py samplers --ckpt CHECKPOINT --output samplers/
    python bench.py preprocess
    python bench.py preprocess --recipe paper --input heads/    by stage: N4, skull strip, …
    python bench.py metrics
    python bench.py scaling --output scaling/                cost against tokens and batch size
    python bench.py attention --tokens 3136 2132             PyTorch's kernels, and our own on a CPU
    python bench.py layouts --data-path data/adni --vae ema --output layouts/
    python bench.py study --help                             variants of train.py, several seeds

The baseline does the work as published repositories do it, the optimized way as the scripts of
this repository do. In training and sampling each way runs in processes of its own, so that its
peak memory is its own. `matmul` is the rate of a large matrix product in TFLOP/s, `share` is how
much of it a step reaches. A ratio of times is baseline / optimized, above 1 where optimized is
faster; a ratio of memory is optimized / baseline. Times are medians. Weights are random, except
for `samplers`: they cost what trained ones cost. `attention` compares kernels with each other.
BENCHMARKS.md has what was measured.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
from pathlib import Path

import torch

import models
from benchmarks import (
    attention_cost,
    layouts,
    measure,
    metrics_cost,
    networks,
    preparation_cost,
    preprocessing_cost,
    sampler_comparison,
    sampling_cost,
    scaling,
    study,
    study_report,
    training_cost,
)
from benchmarks import flags as bench_flags
from metrics import ms_ssim
from utils import flags
from utils.files import require_new_folder
from utils.precision import resolve_precision

# of each flag, or of each of its values; the gradient of a sequence of one token would be zero
LEAST_VALUES = dict(steps=1, turns=1, batch_size=1, accum=1, grad_checkpoint=0, plain_scans=1,
                    workers=1, scans=2, num_samples=2, volumes=2, mmd_volumes=2,
                    report_volumes=4, repeats=2, tokens=2, size=ms_ssim.MIN_SIDE, decoder_steps=1,
                    refiner_steps=1, seeds=1, jobs=1)

# ----------------------------------------------------------------------------------- subcommands


def bench_train(args):
    setup = training_setup(args, image_size=args.image_size, batch_size=args.batch_size,
                           vae=args.vae, profile=args.profile)
    ways = selected(training_cost.WAYS, args.only)
    turns = measure.alternate_processes(ways, args.turns, setup)
    costs = {name: measure.merge(results) for name, results in turns.items()}
    print("\n".join(training_cost.report(setup, args.turns, costs)))


def bench_scaling(args):
    setup = training_setup(args, image_size=args.image_sizes[0], batch_size=args.batch_sizes[0])
    lines = list(scaling.HEADING)
    measured = []
    print("\n".join(lines), flush=True)
    for way, sized, cost in scaling.measure_all(setup, args.image_sizes, args.batch_sizes):
        lines.append(scaling.row(way, sized, cost))
        print(lines[-1], flush=True)
        if cost:
            measured.append((way, sized, cost))
    if args.output and measured:
        title = f"{args.model}, {setup.precision}, {args.device}"
        scaling.write(args.output, lines, measured, title)
        print(f"{args.output}: scaling.md, scaling.png")


def bench_attention(args):
    config = models.config_of(args.model)
    heads = config["num_heads"]
    precision = precision_of(args)
    for tokens in args.tokens:
        shape = (args.batch_size, heads, tokens, config["hidden_size"] // heads)
        costs = attention_cost.measure_kernels(shape, precision, args.device, args.repeats,
                                               args.mean)
        print("\n".join(attention_cost.report(shape, precision, costs)), flush=True)


def training_setup(args, **more):
    return training_cost.TrainingSetup(
        model=args.model, steps=args.steps, device=args.device, precision=precision_of(args),
        compile=args.compile, memory_limit=args.memory_limit, accum=args.accum,
        foreground=args.foreground, cuda_graphs=args.cuda_graphs,
        grad_checkpoint=args.grad_checkpoint, keep_activations=args.keep_activations, **more)


def precision_of(args):
    """The compute dtype that --precision names, or that fits --device."""
    return resolve_precision(args.precision, args.device)


def bench_sample(args):
    setup = sampling_cost.SamplingSetup(
        model=args.model, image_size=args.image_size, batch_size=args.batch_size,
        steps=args.steps, device=args.device, precision=precision_of(args), compile=args.compile,
        memory_limit=args.memory_limit, vae=args.vae, vae_precision=args.vae_precision,
        foreground=args.foreground)
    ways = selected(sampling_cost.WAYS, args.only)
    turns = measure.alternate_processes(ways, args.turns, setup)
    costs = {name: sampling_cost.merge(results) for name, results in turns.items()}
    print("\n".join(sampling_cost.report(setup, args.turns, costs)))


def selected(ways, only):
    return ways if only is None else {only: ways[only]}


def bench_samplers(args):
    require_new_folder(args.output)
    real = sampler_comparison.read_volumes(args.real) if args.real else None
    trained = sampler_comparison.load(
        args.ckpt, base=args.base, vae_name=args.vae, device=args.device,
        precision=precision_of(args), compiled=args.compile)
    for message in filter(None, (trained.message, trained.conditions.describe())):
        print(message)
    seconds, drawn = sampler_comparison.measure(trained, args.num_samples, args.seed, args.turns)
    lines = sampler_comparison.table(seconds, drawn, real, args.device)
    print("\n".join(lines))
    sampler_comparison.write(args.output, lines, drawn, trained.header)
    print(f"{args.output}: samplers.md, samplers.png")


def bench_layouts(args):
    lines = layouts.run(layouts.LayoutStudy(
        data_path=args.data_path, vae=args.vae, output=args.output, model=args.model,
        decoder_steps=args.decoder_steps, refiner_steps=args.refiner_steps, device=args.device,
        precision=args.precision))
    print("\n".join(lines))
    print(f"{args.output}: layouts.md, layouts.json, layouts.png; decoders and refiners")


def bench_study(args):
    compared = study.Study(
        variants=study.parse_variants(args.variant), data_path=args.data_path,
        train_flags=study.split_flags("--train-flags", args.train_flags),
        sample_flags=study.split_flags("--sample-flags", args.sample_flags),
        steps=args.steps, seeds=args.seeds, jobs=args.jobs, turns=args.turns,
        output=args.output)
    outcomes = study.run(compared)
    lines = study_report.table(compared, *outcomes)
    print("\n".join(lines))
    study_report.write(compared, lines, *outcomes)
    print(f"{args.output}: study.md, study.json, study.png; all runs")


def bench_preprocess(args):
    if args.recipe:
        seconds = preparation_cost.measure(args.input, args.scans, args.recipe)
        print("\n".join(preparation_cost.report(seconds, args.recipe)))
        return
    cost = preprocessing_cost.measure(
        args.input, args.scans, args.plain_scans, args.workers, args.turns)
    print("\n".join(preprocessing_cost.report(cost, args.workers, args.turns)))


def bench_metrics(args):
    cost = metrics_cost.measure_ms_ssim(args.volumes, args.size, args.repeats, args.device)
    print("\n".join(metrics_cost.ms_ssim_report(cost)))
    print(metrics_cost.measure_mmd(args.mmd_volumes, args.size, args.device))
    print("\n".join(metrics_cost.measure_report(args.report_volumes, args.size, args.device)))


# ----------------------------------------------------------------------------------------- flags

def parse_flags():
    parser = flags.make_parser(__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    train = add_command(commands, "train", bench_train,
                        "a training step of a DiT with DiffFit, baseline vs. optimized")
    scaling = add_command(commands, "scaling", bench_scaling,
                          "the optimized training step against tokens and batch size")
    sample = add_command(commands, "sample", bench_sample,
                         "a sampling step and the decoding, baseline vs. optimized")
    for command in (train, scaling, sample):
        add_network_flags(command)
    for command in (train, scaling):
        add_memory_flags(command)
    group = add_comparison_flags(train)
    group.add_argument("--profile", action="store_true", help="also print the operations that "
                       "take most of the time; default: do not profile")
    group = add_comparison_flags(sample)
    flags.add_precision_flag(group, "the optimized decoding", "--vae-precision", "fp32")
    add_scaling_flags(scaling)
    bench_flags.add_attention_flags(add_command(
        commands, "attention", bench_attention,
        "time and error of each kernel for attention, forward and backward pass"))
    bench_flags.add_study_flags(add_command(
        commands, "study", bench_study,
        "variants of train.py compared at equal steps and at equal time, over several seeds"))
    add_samplers_flags(add_command(
        commands, "samplers", bench_samplers,
        "time and results of every sampler on a trained model, and a picture side by side"))
    bench_flags.add_layouts_flags(add_command(
        commands, "layouts", bench_layouts,
        "what each layout keeps of real volumes, with and without a refiner"))
    bench_flags.add_preprocess_flags(add_command(
        commands, "preprocess", bench_preprocess, "scans to mosaics, baseline vs. optimized"))
    bench_flags.add_metrics_flags(add_command(
        commands, "metrics", bench_metrics, "MS-SSIM, baseline vs. optimized, MMD, and a report"))
    return parser.parse_args()


def add_command(commands, name, function, text):
    """A subcommand whose parser has what `make_parser` gives to every script."""
    shared = flags.make_parser(text)
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[shared],
        add_help=False, formatter_class=shared.formatter_class, allow_abbrev=False)
    command.set_defaults(run=function)
    return command


def add_network_flags(command):
    group = command.add_argument_group("network")
    group.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME",
                       help="network with random weights: DiT-{XL,L,B,S,T}/{2,4,8}")
    group.add_argument("--foreground", type=flags.positive, default=0.68, metavar="SHARE",
                       help="share of the tokens that `foreground` computes, 0 to 1; "
                       "14 skull-stripped brains touch 0.68 of them at 896 x 896")
    flags.add_precision_flag(group, "the optimized way", default=None)
    flags.add_compile_flag(group)
    group = command.add_argument_group("measurement")
    group.add_argument("--steps", type=int, default=3, help="measured steps per turn")
    group.add_argument("--memory-limit", type=flags.positive, metavar="GiB",
                       help="GPU memory that a process may take, GiB; a GPU sold as 40 GB has 39; "
                       "default: all of it")
    flags.add_device_flag(group)


def add_comparison_flags(command):
    group = command.add_argument_group("baseline vs. optimized")
    group.add_argument("--vae", choices=networks.VAE_CHANNELS, default="sd", help="VAE with random "
                       "weights: of Stable Diffusion's shape, or 16 times narrower for tests")
    group.add_argument("--image-size", type=int, default=896, help="side of the mosaics, pixels")
    group.add_argument("--batch-size", type=int, default=1, help="mosaics per step")
    group.add_argument("--turns", type=int, default=2, help="number of times that each way is "
                       "measured, in a process of its own")
    group.add_argument("--only", type=training_cost.way_named, choices=training_cost.WAYS,
                       help="measure one way only (the former names plain and ours are accepted, "
                       "too); default: all of them")
    return group


def add_memory_flags(command):
    group = command.add_argument_group("memory and speed of the optimized step")
    group.add_argument("--accum", type=int, default=1,
                       help="parts in which the batch of a step is computed, one after another")
    group.add_argument("--grad-checkpoint", type=int, nargs="?", const=1, default=0, metavar="K",
                       help="recompute every K-th block in the backward pass; 0: none; "
                       "without K: every block")
    group.add_argument("--keep-activations", action="store_true", help="keep activations that are "
                       "cheap to recompute; default: recompute them in the backward pass")
    group.add_argument("--cuda-graphs", action="store_true", help="run the forward and backward "
                       "pass of a step as one CUDA graph; default: kernel by kernel")


def add_scaling_flags(command):
    group = command.add_argument_group("sizes and output")
    group.add_argument("--image-sizes", type=int, nargs="+", default=(256, 512, 896, 1536),
                       metavar="PIXELS", help="sides of the mosaics, pixels, each measured with "
                       "the first batch size")
    group.add_argument("--batch-sizes", type=int, nargs="+", default=(1,), metavar="N",
                       help="mosaics per step; all but the first are measured with the first "
                       "image size")
    group.add_argument("--output", type=Path, metavar="DIR",
                       help="folder for scaling.md and scaling.png; default: print only")


def add_samplers_flags(command):
    group = command.add_argument_group("data and output")
    group.add_argument("--ckpt", type=Path, required=True, metavar="FILE",
                       help="checkpoint written by train.py")
    group.add_argument("--base", metavar="FILE",
                       help="file of base weights; default: where train.py read them")
    group.add_argument("--vae", metavar="ema|mse|DIR",
                       help="VAE that decodes; default: the one of the training")
    group.add_argument("--real", type=Path, metavar="DIR", help="data folder; MMD is computed "
                       "against its test split; default: no MMD")
    group.add_argument("--output", type=Path, required=True, metavar="DIR",
                       help="new folder for samplers.md and samplers.png")
    group = command.add_argument_group("sampling")
    group.add_argument("--num-samples", type=int, default=8,
                       help="number of volumes, all in one batch")
    group.add_argument("--seed", type=flags.whole_number, default=0,
                       help="random seed; sample i depends on (seed, i) alone")
    group.add_argument("--turns", type=int, default=1, help="turns of each sampler")
    flags.add_precision_flag(group, default=None)
    flags.add_compile_flag(group)
    flags.add_device_flag(group)


# ---------------------------------------------------------------------------------------- checks

def check(args):
    """Refuses what cannot be measured, before anything is."""
    for name, least in LEAST_VALUES.items():
        value = getattr(args, name, least)
        if isinstance(value, (list, tuple)):
            value = min(value)
        if value < least:
            raise UserError(f"{flags.flag_of(name)} {value}: must be at least {least}")
    if args.what == "preprocess" and args.recipe and not args.input:
        raise UserError("--recipe: needs scans of heads; name their folder by --input")
    if getattr(args, "foreground", 0) > 1:
        raise UserError(f"--foreground {args.foreground:g}: a share of the tokens, at most 1")
    if getattr(args, "memory_limit", None) and not args.device.startswith("cuda"):
        raise UserError(f"--memory-limit: only on a GPU, but --device is {args.device}")
    if getattr(args, "cuda_graphs", False) and not args.device.startswith("cuda"):
        raise UserError(f"--cuda-graphs: only on a GPU, but --device is {args.device}")
    if args.what in ("train", "sample"):
        networks.check_sizes(args.model, [args.image_size], [args.batch_size],
                             getattr(args, "accum", 1), "")
    if args.what == "scaling":
        networks.check_sizes(args.model, args.image_sizes, args.batch_sizes, args.accum, "s")


def main():
    args = parse_flags()
    check(args)
    device = getattr(args, "device", "cpu")
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}{gpu}")
    args.run(args)


if __name__ == "__main__":
    run_script(main)
