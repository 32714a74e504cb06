#!/usr/bin/env python3
"""Finetunes a DiT on the mosaics of a data folder.

    python train.py --data-path data/adni --ckpt weights/DiT-XL-2-512x512.pt
    python train.py --data-path data/adni --dry-run
    torchrun --nproc-per-node 4 train.py --data-path data/adni --global-batch-size 8

Run the same command again to resume: it continues from the newest intact state and ends as if it
had never stopped (bitwise identical on a CPU). SIGTERM, SIGINT, SIGHUP, SIGUSR1 or --max-minutes
end the step, save, and exit with code 75; a second signal exits at once.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import math
import time
from pathlib import Path

import torch

import models
from diffusion import vae as vae_module
from diffusion.foreground import foreground_tokens
from mri import manifest
from mri.augmentation import Augmentation
from reporting import loss_curve
from training import (
    acceleration,
    bookkeeping,
    dry_run,
    finetuning,
    held_out,
    latent_cache,
    loop,
    setup,
    step,
    token_drop,
)
from training.conditions import choose_conditions, describe_conditions, encode_entries
from training.flags import (
    add_cost_flags,
    add_logging_flags,
    add_lora_flags,
    add_optimization_flags,
    add_token_drop_flags,
)
from training.latent_cache import Variants
from training.log_lines import read_entries
from training.loss_scaling import LossScaler
from training.resume import open_run
from training.state import TrainingState
from training.stopping import StopWatch
from training.trackers import check_wandb
from utils import distributed
from utils.flags import (
    add_augmentation_flags,
    make_parser,
    positive,
    whole_number,
)
from utils.precision import has_fast_bf16, resolve_precision
from utils.signals import StopSignals

# ------------------------------------------------------------------------------------------ flags

def parse_args():
    """The command line, checked as far as possible without the data."""
    p = make_parser(__doc__)
    add_data_and_model_flags(p)
    add_optimization_flags(p.add_argument_group("optimization"))
    add_cost_flags(p.add_argument_group("speed and memory"))
    add_logging_flags(p.add_argument_group("logging and checkpoints"))
    add_resuming_flags(p)
    args = p.parse_args()
    check_flags(args)
    return args


def add_data_and_model_flags(p):
    g = p.add_argument_group("data")
    g.add_argument("--data-path", type=Path, required=True, metavar="DIR",
                   help="data folder written by preprocess.py; its train split is used")
    g.add_argument("--vae", default="ema", metavar="ema|mse|DIR",
                   help="VAE whose latents are trained on: a public one, a folder, or the folder "
                   "of a pipeline that has one in vae/")
    g.add_argument("--image-size", type=int, metavar="PIXELS",
                   help="expected side of the mosaics, in pixels; default: no check, the data "
                   "folder knows it")
    add_augmentation_flags(g)
    g = p.add_argument_group("model")
    g.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME",
                   help="architecture, one of " + ", ".join(models.DiT_models))
    g.add_argument("--ckpt", default="DiT-XL-2-512x512.pt", metavar="FILE|none",
                   help="pretrained weights: official .pt, training checkpoint of the original "
                   "repository, diffusers folder, .safetensors, or none for random weights")
    g.add_argument("--base", metavar="FILE",
                   help="base weights of --ckpt, if that is a checkpoint of train.py; default: "
                   "the path recorded in that checkpoint, or weights/")
    g.add_argument("--num-classes", type=int, default=1000,
                   help="number of classes in the class table; keep 1000 for the public weights: "
                   "the classes of your data take its first rows")
    g.add_argument("--pos-embed", choices=("interpolate", "extrapolate"), default="interpolate",
                   help="position embedding of a grid larger than at pretraining: interpolate "
                   "scales positions to the pretraining grid, extrapolate keeps them")
    g.add_argument("--base-grid", type=int, metavar="PATCHES",
                   help="only with --ckpt none: patches along a side to which positions are "
                   "scaled; default: the grid itself. A larger value spaces positions on a small "
                   "grid farther apart")
    g.add_argument("--condition-on", nargs="+", default=[], metavar="NAME",
                   help="covariates of the data folder that the model is conditioned on, such as "
                   "age sex; see preprocess.py --covariates; default: none")
    g.add_argument("--tokens", choices=("foreground", "all"), default="all",
                   help="tokens that are computed, in training and in sampling. foreground: those "
                   "that a training volume touches, while the background is filled with its mean "
                   "latents; all: as in the paper")
    g.add_argument("--token-margin", type=whole_number, default=0, metavar="N",
                   help="number of tokens by which --tokens foreground grows the touched area on "
                   "each side")
    add_token_drop_flags(p.add_argument_group("tokens left out while training"))
    g = p.add_argument_group("trainable parameters")
    g.add_argument("--tune", choices=finetuning.TUNING_METHODS, default="difffit",
                   help="which parameters train. " + finetuning.describe_methods())
    g.add_argument("--gamma-blocks", type=int, default=0, metavar="K",
                   help="number of first blocks that get DiffFit's scale vectors (DiffFit's "
                   "advice: 14)")
    add_lora_flags(g)


def add_resuming_flags(p):
    g = p.add_argument_group("resuming")
    g.add_argument("--resume", default="auto", metavar="auto|PATH|none",
                   help="auto: resume the newest run of the same flags and data, wherever the data "
                   "is, or start one; PATH: resume that run folder; none: start a new run")
    g.add_argument("--max-minutes", type=positive, metavar="MIN",
                   help="stop after MIN minutes: end the step, save, exit with code 75; default: "
                   "no limit")
    g.add_argument("--dry-run", action="store_true",
                   help="check --ckpt, print which parameters would be trained and the memory "
                   "that takes, then exit")


def check_flags(args):
    """Refuses flags that contradict each other."""
    processes = distributed.world_size()
    if args.global_batch_size < 1 or args.accum < 1 \
            or args.global_batch_size % (args.accum * processes):
        times = f" times the {processes} processes" if processes > 1 else ""
        raise UserError(f"--accum {args.accum}:{times} must divide --global-batch-size "
                        f"{args.global_batch_size}")
    if not 0 <= args.condition_dropout <= 1:
        raise UserError(f"--condition-dropout {args.condition_dropout}: must be in [0, 1]")
    if not (0 <= args.ema_decay < 1 and 0 <= args.label_dropout <= 1
            and 0 <= args.weight_decay < math.inf):
        raise UserError("--ema-decay must be in [0, 1), --label-dropout in [0, 1], "
                        "--weight-decay 0 or more")
    if args.ckpt == "none" and finetuning.TUNING_METHODS[args.tune].needs_base:
        raise UserError(f"--ckpt none: --tune {args.tune} needs pretrained weights; give them, or "
                        "add --tune full")
    if min(args.max_steps, args.log_every, args.ckpt_every, args.num_classes) < 1:
        raise UserError("--max-steps, --log-every, --ckpt-every and --num-classes must be at "
                        "least 1")
    if args.sample_every < 0:
        raise UserError(f"--sample-every {args.sample_every}: must be 0 or more")
    check_wandb(args.wandb)
    if args.keep is not None and args.keep < 1:
        raise UserError(f"--keep {args.keep}: must be at least 1")
    if args.keep_every is not None and (args.keep_every < 1 or not args.keep):
        raise UserError(f"--keep-every {args.keep_every}: must be at least 1, and needs --keep")
    if args.grad_checkpoint < 0:
        raise UserError(f"--grad-checkpoint {args.grad_checkpoint}: must be K, at least 1, for "
                        "every K-th block, or 0 for none")
    if args.base_grid is not None and (args.ckpt != "none" or args.base_grid < 1):
        raise UserError(f"--base-grid {args.base_grid}: must be positive, and is only for --ckpt "
                        "none; pretrained weights know their own")
    if args.augment < 1 or args.augment_flip > 1 or args.augment_scale >= 1:
        raise UserError("--augment must be at least 1, --augment-flip at most 1, --augment-scale "
                        "below 1")
    if (args.augment > 1) == augmentation_of(args).is_identity:
        raise UserError(f"--augment {args.augment}: variants need a range, such as "
                        "--augment-rotate 5, and ranges need --augment of 2 or more")
    check_flags_without_effect(args)
    adapters_of(args)
    token_drop_of(args, math.inf if args.epochs else args.max_steps)
    depth = models.config_of(args.model)["depth"]
    if not 0 <= args.gamma_blocks <= depth:
        raise UserError(f"--gamma-blocks {args.gamma_blocks}: {args.model} has {depth} blocks")


def check_flags_without_effect(args):
    """Refuses flags that only others would make do something."""
    if args.token_margin and args.tokens == "all":
        raise UserError(f"--token-margin {args.token_margin}: needs --tokens foreground")
    if args.base and args.ckpt == "none":
        raise UserError(f"--base {args.base}: --ckpt none has no base weights; leave it out")
    if args.val_split == "val" and not args.val_every:
        raise UserError("--val-split val: needs --val-every")
    if args.cuda_graphs and not args.device.startswith("cuda"):
        raise UserError(f"--cuda-graphs: only on a CUDA GPU, but --device is {args.device}")
    if args.cuda_graphs and distributed.world_size() > 1:
        raise UserError("--cuda-graphs: for a single process; leave it out under torchrun")


# --------------------------------------------------------------------------------------- training

def adapters_of(args):
    return finetuning.choose_adapters(args.tune, args.lora_rank, args.lora_alpha, args.lora_targets)


def loop_options(args, max_steps, precision, device):
    """The options of the training loop, from the flags."""
    return loop.LoopOptions(
        max_steps=max_steps, lr=args.lr, lr_schedule=args.lr_schedule,
        global_batch_size=args.global_batch_size, accum=args.accum, precision=precision,
        device=device, skip_nonfinite=args.skip_nonfinite, log_every=args.log_every,
        ckpt_every=args.ckpt_every, keep=args.keep, keep_every=args.keep_every,
        sample_every=args.sample_every, vae=args.vae, seed=args.global_seed,
        cuda_graphs=args.cuda_graphs)


def batch_options(args):
    """The options of step.Batches that are flags."""
    return dict(seed=args.global_seed, global_batch_size=args.global_batch_size,
                label_dropout=args.label_dropout, prefetch=args.prefetch, variants=args.augment,
                condition_dropout=args.condition_dropout)


def token_drop_of(args, max_steps):
    return token_drop.plan(
        drop=args.token_drop, route=args.token_route, route_blocks=args.route_blocks,
        full_steps=args.full_steps, depth=models.config_of(args.model)["depth"],
        max_steps=max_steps)


def augmentation_of(args):
    return Augmentation(flip=args.augment_flip, rotate=args.augment_rotate,
                        scale=args.augment_scale, shift=args.augment_shift,
                        gamma=args.augment_gamma)


def model_options(args, conditions):
    return setup.ModelOptions(
        name=args.model, num_classes=args.num_classes, gamma_blocks=args.gamma_blocks,
        weights_path=args.ckpt, base_path=args.base, pos_embed=args.pos_embed,
        base_grid=args.base_grid, seed=args.global_seed, method=args.tune,
        covariates=conditions.levels if conditions else ())


def build(args, side, channels, conditions, foreground, dropped, precision, device):
    """The model on its device, ready to train; its trainable parameters; a message, or None."""
    start = setup.build_model(model_options(args, conditions), side, channels)
    start.model.keep_tokens(foreground and foreground.kept)
    if dropped:
        start.model.route_around(dropped.blocks.start, dropped.blocks.stop)
    trained = finetuning.set_trainable(start.model, args.tune, adapters_of(args),
                                       args.global_seed)
    acceleration.narrow_matrices(start.model, precision)
    start.model.to(device).train()
    start.model.save_memory(not args.keep_activations, args.grad_checkpoint)
    message = acceleration.accelerate_blocks(start.model, device, args.compile, precision)
    return start, trained, message


def foreground_of(args, latents, mean_moments, vae_config):
    """The Foreground of --tokens foreground; None: all tokens are computed."""
    if args.tokens != "foreground":
        return None
    return setup.find_foreground(latents.touched(), mean_moments, vae_config, args.model,
                                 args.token_margin)


def encode_held_out(args, vae, conditions):
    """The volumes of --val-split, encoded; None without --val-every."""
    if not args.val_every:
        return None
    return held_out.encode_held_out(args.data_path, args.val_split, vae, latent_cache_name(args),
                                    args.num_classes, conditions)


def held_out_loss(args, volumes, batches, precision, device):
    """What --val-every measures: those volumes, and as many that are trained on; or None."""
    if volumes is None:
        return None
    training = held_out.some_training_volumes(batches.moments, batches.labels, batches.covariates,
                                              batches.variants, len(volumes))
    return held_out.HeldOutLoss(volumes, training, batches.vae_config, split=args.val_split,
                                every=args.val_every, precision=precision, device=device)


def last_step(args, volumes):
    if args.epochs:
        return math.ceil(args.epochs * volumes / args.global_batch_size)
    return args.max_steps


def latent_cache_name(args):
    """The VAE's name, for the files of the latent cache."""
    return Path(args.vae).name or Path.cwd().name


def announce(args, run, model, state, volumes, precision, device, notes):
    """Opens the logs and says what is about to happen, in process 0."""
    bookkeeping.announce(
        run, model, state, name=args.model,
        method=finetuning.describe(args.tune, adapters_of(args)), volumes=volumes,
        precision=precision, device=device, notes=notes, wandb_project=args.wandb)


def resolved_flags(args, max_steps, dropped, device, precision):
    """{name: value} of all flags, as args.json holds them."""
    resolved = {"max_steps": max_steps, "device": device, "precision": precision}
    adapters = adapters_of(args)
    if adapters:
        resolved |= {f"lora_{name}": value for name, value in adapters.metadata().items()}
    if args.token_route:
        resolved["route_blocks"] = dropped.numbers
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in {**vars(args), **resolved}.items()}


def print_dry_run(args, side, vae, header, entries, conditions, dropped, precision, device):
    """Prints what would train, and checks --ckpt; from process 0."""
    if not distributed.is_main():
        return
    channels = vae.config.latent_channels
    chosen = model_options(args, conditions)
    config = setup.model_config(chosen, side, channels)
    tokens = None
    if args.tokens == "foreground":
        touched = latent_cache.touched_by(args.data_path, header, entries, vae)
        tokens = len(foreground_tokens(touched, config["patch_size"], args.token_margin))
        if args.augment > 1:
            print("--augment: the tokens counted here are those of the volumes themselves; "
                  "variants that are mirrored or moved touch more")
    micro_batch = args.global_batch_size // args.accum // distributed.world_size()
    options = dry_run.MemoryOptions(micro_batch, precision, args.grad_checkpoint,
                                    args.keep_activations, has_fast_bf16(device))
    dry_run.print_dry_run(args.model, config, args.tune, len(entries), options,
                          vae if args.sample_every else None, tokens, adapters_of(args), dropped)
    for note in (*describe_conditions(conditions, args.condition_dropout),
                 *setup.check_model(chosen, side, channels)):
        print(note)


def main():
    stop_signals, began = StopSignals(), time.monotonic()
    distributed.end_with_launcher()
    args = parse_args()
    header, entries = manifest.read_manifest(args.data_path)
    entries = manifest.select_split(entries, "train", args.data_path)
    device = distributed.own_device(args.device)
    precision = resolve_precision(args.precision, device)
    vae = vae_module.load_vae(args.vae, device)
    side, channels = setup.latent_side(
        header, entries, vae, data_path=args.data_path, model=args.model,
        num_classes=args.num_classes, image_size=args.image_size), vae.config.latent_channels
    conditions = choose_conditions(args.condition_on, header, entries, args.data_path)
    max_steps = last_step(args, len(entries))
    dropped = token_drop_of(args, max_steps)
    if args.dry_run:
        return print_dry_run(args, side, vae, header, entries, conditions, dropped, precision,
                             device)
    with distributed.process_group(device):
        held_out_volumes = encode_held_out(args, vae, conditions)
        latents = latent_cache.cached_latents(args.data_path, header, entries, vae,
                                              latent_cache_name(args),
                                              Variants(args.augment, augmentation_of(args)))
        vae_config = setup.describe_vae(args.vae, vae)
        del vae
        labels = torch.tensor([entry["class"] for entry in entries])
        data_key, mean_moments = latents.checksum_and_mean(labels)
        foreground = foreground_of(args, latents, mean_moments, vae_config)
        start, trained, compile_message = build(args, side, channels, conditions, foreground,
                                                dropped, precision, device)
        tokens = start.model.computed_tokens
        metadata = setup.describe_run(args.model, start, args.tune, header, vae_config, labels,
                                      data_key, adapters_of(args), conditions)
        state = TrainingState(trained, lr=args.lr, weight_decay=args.weight_decay,
                              ema_decay=args.ema_decay, ema_warm_up=args.ema_warmup, device=device,
                              loss_scaler=LossScaler(device) if precision == "fp16" else None,
                              foreground=foreground)
        flags = resolved_flags(args, max_steps, dropped, device, precision)
        opened = open_run(state, metadata, results_dir=args.results_dir, model=args.model,
                          resume=args.resume, flags=flags)
        run = opened.run
        batches = step.Batches(
            latents, labels, vae_config, start.model.num_classes, last_step=max_steps,
            device=device, covariates=encode_entries(conditions, entries, args.data_path),
            token_drop=dropped, tokens=tokens, **batch_options(args))
        measured = held_out_loss(args, held_out_volumes, batches, precision, device)
        if loop.is_done(state.step, max_steps, measured, run):
            return bookkeeping.say_that_it_is_done(run, state.step, flags)
        if run:
            notes = (*start.notes, *describe_conditions(conditions, args.condition_dropout),
                     *opened.notes, dropped and dropped.describe(tokens), compile_message)
            announce(args, run, start.model, state, len(entries), precision, device, notes)
        stop_signals.begin()
        watch = StopWatch(stop_signals, began, args.max_minutes, args.ckpt_minutes)
        options = loop_options(args, max_steps, precision, device)
        exit_code = loop.train(start.model, state, batches, options, run=run, entries=entries,
                               metadata=metadata, stop_watch=watch, held_out=measured)
        if run and exit_code == 0:
            loss_curve.draw_or_warn(run.folder / "loss.png", read_entries(run.log_path))
        return exit_code


if __name__ == "__main__":
    run_script(main)
