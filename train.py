#!/usr/bin/env python3
"""Finetunes a DiT on the mosaics of a data folder.

    python train.py --data-path data/adni --ckpt weights/DiT-XL-2-512x512.pt
    python train.py --data-path data/adni --dry-run
    torchrun --nproc-per-node 4 train.py --data-path data/adni --global-batch-size 8

Step s draws all it needs from a generator seeded by (seed, s). Run again, the same command goes on from its newest whole
state, and ends as if it had never stopped: on a CPU with the same bits. SIGTERM, SIGINT, SIGUSR1 or --max-minutes end the step, save,
and exit with code 75; a second signal exits at once. `--ckpt none` begins with random weights.
"""
import argparse
import hashlib
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import models
from diffusion import samplers
from diffusion import vae as latents
from mri.manifest import read_manifest, select_split
from mri.mosaic_files import write_mosaic
from training import acceleration, finetuning, latent_cache, pretrained
from training import checkpoint as checkpoints
from training import dry_run as estimate
from training.run_folder import Run
from training.state import TrainingState
from training.step import Batches, compute_gradients, learning_rate
from utils import distributed, seeding
from utils.errors import EXIT_STOPPED, UserError, run_script
from utils.flags import add_compile_flag, add_device_flag, make_parser, positive, whole_number
from utils.signals import StopSignals

MOST_SKIPPED = 20  # steps in a row, with --skip-nonfinite: after them the weights are to blame, not a batch


# ------------------------------------------------------------------------------------------------------------ set-up

def build_model(args, header, vae_config, channels, side):
    """The model, what trains of it as {name: parameter}, and the metadata from which sample.py rebuilds it."""
    size = models.config_of(args.model)
    config = dict(size, input_size=side, in_channels=channels, num_classes=args.num_classes, gamma_blocks=args.gamma_blocks)
    if args.ckpt == "none":
        torch.manual_seed(args.global_seed)
        config.update(base_grid=args.base_grid or side // size["patch_size"], numerics="official")
        model, base = models.DiT(**config).initialize_weights(), None
    else:
        weights = pretrained.load_weights(args.ckpt)
        grid = side // size["patch_size"]
        config.update(base_grid=grid if args.pos_embed == "extrapolate" else weights.base_grid, numerics=weights.numerics)
        model = pretrained.assemble(config, pretrained.fit_base(weights, config, args.ckpt), args.ckpt)
        path = pretrained.locate(args.ckpt).resolve()
        base = dict(path=str(path), name=path.name, sha256=pretrained.sha256_of_weights(path))
    trained = finetuning.set_trainable(model, args.tune)
    meta = dict(model=args.model, config=config, tune=args.tune, base=base if args.tune != "full" else None, header=header,
                begun_from=base, vae=dict(name=args.vae, **vae_config), image_size=header["grid"] * header["size"])
    return model, trained, meta


def to_device(model, args):
    """Moves the model and readies it for training. Returns what is to be said of --compile, or None."""
    if args.precision == "bf16":
        acceleration.matrices_to_bf16(model)
    model.to(args.device).train()
    model.save_memory(not args.keep_activations, args.grad_checkpoint)
    return acceleration.compile_blocks(model, args.device, args.compile)


def sample_now(model, state, meta, args, path):
    """One volume's mosaic from the EMA weights, by 25 steps of dpm++, to look at while training goes on."""
    raw = {k: p.detach().clone() for k, p in state.trained.items()}
    for k, p in state.trained.items():
        p.data.copy_(state.ema[k])
    c, side = meta["config"]["in_channels"], meta["config"]["input_size"]
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
        z = samplers.sample(model, (c, side, side), torch.zeros(1, dtype=torch.long), model.num_classes,
                             [seeding.seeded_generator(args.global_seed, 0)], "dpm++", 25, device=args.device)
    for k, p in state.trained.items():
        p.data.copy_(raw[k])
    path.parent.mkdir(exist_ok=True)
    write_mosaic(path, latents.decode(latents.load_vae(args.vae, args.device), z)[0])


# -------------------------------------------------------------------------------------------------------------- main

def parse_args():
    p = make_parser(__doc__)
    p.add_argument("--data-path", type=Path, required=True, help="data folder; its train split is trained on")
    p.add_argument("--results-dir", type=Path, default=Path("results"), help="each run gets a folder NNN-MODEL here")
    p.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME", help="one of " + ", ".join(models.DiT_models))
    p.add_argument("--image-size", type=int, help="side of the mosaics, pixels, to be checked; default: what the data folder says")
    p.add_argument("--num-classes", type=int, default=1000, help="rows of the class table but for the null class")
    p.add_argument("--ckpt", default="DiT-XL-2-512x512.pt", metavar="FILE|none", help="weights to begin with: official .pt, training "
                   "checkpoint of the original code, diffusers folder, .safetensors, or none")
    p.add_argument("--tune", choices=finetuning.TUNING_METHODS, default="difffit", help="what trains")
    p.add_argument("--gamma-blocks", type=int, default=0, help="first blocks that get DiffFit's scale vectors (DiffFit's advice: 14)")
    p.add_argument("--pos-embed", choices=("interpolate", "extrapolate"), default="interpolate", help="positions scaled to the "
                   "pretraining grid, or raw")
    p.add_argument("--base-grid", type=int, help="with --ckpt none: positions are scaled to this many patches along a side; default: "
                   "the grid itself. On small grids, spreading positions out makes them easier to tell apart")
    p.add_argument("--lr", type=positive, default=5e-4, help="learning rate of AdamW")
    p.add_argument("--lr-schedule", choices=("constant", "cosine"), default="constant", help="cosine falls to zero at --max-steps")
    p.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
    p.add_argument("--label-dropout", type=float, default=0.1, help="probability of the null class, for guidance")
    p.add_argument("--max-steps", type=int, default=66000, help="optimizer steps")
    p.add_argument("--epochs", type=positive, help="as many steps as draw each volume this often on average, instead of --max-steps")
    p.add_argument("--global-batch-size", type=int, default=4, help="volumes a step")
    p.add_argument("--accum", type=int, default=1, help="parts that a step's batch is computed in, to save memory")
    p.add_argument("--global-seed", type=whole_number, default=0, help="step s draws from (seed, s)")
    p.add_argument("--ema-decay", type=float, default=0.9999, help="of the moving average over what trains, per step")
    p.add_argument("--vae", default="ema", metavar="ema|mse|PATH", help="VAE whose latents are trained on")
    p.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the arithmetic; what trains stays fp32")
    p.add_argument("--grad-checkpoint", type=int, nargs="?", const=1, default=0, metavar="K", help="recompute every K-th block in the "
                   "backward pass, to save memory; without a number each block; 0: none")
    p.add_argument("--keep-activations", action="store_true", help="do not recompute what is cheap either: gates, norms, the attention's "
                   "output projection. More memory, 2 %% faster")
    add_compile_flag(p)
    p.add_argument("--prefetch", action=argparse.BooleanOptionalAction, default=True, help="draw the next batch while one is computed")
    add_device_flag(p)
    p.add_argument("--log-every", type=int, default=100, help="steps")
    p.add_argument("--ckpt-every", type=int, default=5000, help="steps between checkpoints, each with a state to go on from")
    p.add_argument("--ckpt-minutes", type=positive, default=30.0, help="minutes between states to go on from; the last two are kept")
    p.add_argument("--keep", type=int, help="last checkpoints that are kept, and as many states, two at least; default: all checkpoints")
    p.add_argument("--keep-every", type=int, help="with --keep: checkpoints of every step that this divides are kept, too")
    p.add_argument("--max-minutes", type=positive, help="end the step, save and exit with code 75 after so many minutes")
    p.add_argument("--skip-nonfinite", action="store_true", help="leave out steps whose loss or gradient is not finite, and count them "
                   "in the log, instead of stopping")
    p.add_argument("--sample-every", type=int, default=0, help="steps between sample mosaics in the run folder; 0: none")
    p.add_argument("--resume", default="auto", metavar="auto|PATH|none", help="go on from the newest whole state of the newest run that "
                   "the same flags began, of that run folder, or begin anew")
    p.add_argument("--dry-run", action="store_true", help="say what would train and what memory it needs, then stop")
    args = p.parse_args()
    if args.global_batch_size < 1 or args.accum < 1 or args.global_batch_size % (args.accum * distributed.world_size()):
        times = f" times the {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
        raise UserError(f"--accum {args.accum}:{times} must divide --global-batch-size {args.global_batch_size}")
    if not 0 <= args.ema_decay < 1 or not 0 <= args.label_dropout <= 1 or not 0 <= args.weight_decay < math.inf:
        raise UserError("--ema-decay must be in [0, 1), --label-dropout in [0, 1], --weight-decay 0 or more")
    if args.ckpt == "none" and args.tune != "full":
        raise UserError("--ckpt none: random weights are of no use when only some parameters train; add --tune full")
    if min(args.max_steps, args.log_every, args.ckpt_every, args.num_classes) < 1 or args.sample_every < 0:
        raise UserError("--max-steps, --log-every, --ckpt-every and --num-classes must be at least 1")
    if args.keep is not None and args.keep < 1 or args.keep_every is not None and (args.keep_every < 1 or not args.keep):
        raise UserError("--keep must be at least 1, and so must --keep-every, which goes with it")
    if args.grad_checkpoint < 0:
        raise UserError(f"--grad-checkpoint {args.grad_checkpoint}: every K-th block, K at least 1; 0: none")
    if args.base_grid is not None and (args.ckpt != "none" or args.base_grid < 1):
        raise UserError(f"--base-grid {args.base_grid}: a positive number, and only with --ckpt none; other weights know their own")
    if not 0 <= args.gamma_blocks <= models.config_of(args.model)["depth"]:
        raise UserError(f"--gamma-blocks {args.gamma_blocks}: {args.model} has {models.config_of(args.model)['depth']} blocks")
    return args


def check_data(args, header, entries, vae):
    """Refuses flags that do not fit the data, before anything is allocated. Returns the side of the latents."""
    image, f, patch = header["grid"] * header["size"], latents.downsampling_factor(vae), models.config_of(args.model)["patch_size"]
    if args.image_size not in (None, image):
        raise UserError(f"--image-size {args.image_size}: {args.data_path} holds mosaics of {image} pixels; "
                        "leave the flag out, or preprocess anew")
    if image % (f * patch):
        raise UserError(f"--model {args.model}: mosaics of {image} pixels are no multiple of VAE factor {f} x patch size {patch}; "
                        "take another patch size, or preprocess with another --size")
    highest = max(v["class"] for v in entries)
    if highest >= args.num_classes:
        raise UserError(f"--num-classes {args.num_classes}: the data has {highest + 1} classes")
    return image // f


# -------------------------------------------------------------------------------------------------------------- running

def check_resumed(run_, args, ours, theirs):
    """Refuses to go on where what is not a flag changed since."""
    for what, key in (("the data folder's geometry", "header"), ("the VAE", "vae"), ("the weights of --ckpt", "begun_from"),
                      ("the mosaics or their classes", "data_key")):
        if ours[key] != theirs[key]:
            raise UserError(f"--resume {args.resume}: {what} changed since {run_.folder} was begun; put it back, or --resume none")


def save(run_, state, meta, args, weights):
    """Writes the state to go on from and, before it, the weights to sample from where they are due."""
    if not all(t.isfinite().all() for named in state.weights().values() for t in named.values()):
        raise UserError(f"--lr {args.lr:g}: the weights are no longer finite at step {state.step}; use a lower one. "
                        "The checkpoints before it stand")
    if weights:
        checkpoints.save_checkpoint(run_.checkpoints / f"{state.step:07d}.safetensors", dict(meta, step=state.step), **state.weights())
    run_.save_state(state.step, meta | state.meta(), state.groups(), args.keep, args.keep_every)


def log(run_, state, args, rate):
    """The means since the last line, into the logs."""
    loss, mse, vb = (state.sums / state.count).tolist() if state.count else (None,) * 3
    run_.record(dict(step=state.step, loss=loss, mse=mse, vb=vb, lr=learning_rate(args, state.step), skipped=state.skipped),
                round(rate * args.global_batch_size, 4))
    figures = f"loss {loss:.4f} (mse {mse:.4f}, vb {vb:.5f})" if state.count else "no finite loss"
    run_.say(f"step {state.step}/{args.max_steps}: {figures}, {rate:.3g} steps/s, {(args.max_steps - state.step) / rate / 3600:.2f} h left"
             + (f", {state.skipped} steps skipped" if state.skipped else ""))


def settle(run_, state, batches, entries, args):
    """Hears from the device which steps were not finite: names their volumes, and without --skip-nonfinite ends the run."""
    for step, loss, in_a_row in state.settle():
        what = (f"loss {loss:g} at step {step}, or a gradient that is not finite, on the volumes "
                + ", ".join(entries[i]["id"] for i in batches.drawn(step)[0].tolist()))
        if not args.skip_nonfinite or in_a_row >= MOST_SKIPPED:
            raise UserError(f"--lr {args.lr:g}: {what}; use a lower one, look at these volumes, or --skip-nonfinite. The checkpoints "
                            f"before it stand" + (f" ({in_a_row} steps in a row were skipped)" if args.skip_nonfinite else ""))
        if run_:
            run_.say(f"skipped: {what}")


def train(model, state, run_, batches, entries, meta, args, signals, began):
    """Steps to --max-steps, or to a request to stop. `run_` is None but in process 0, which alone writes. Returns the exit code."""
    main, last_save, clock, clock_step = run_ is not None, time.monotonic(), time.monotonic(), state.step
    bar = tqdm(total=args.max_steps, initial=state.step, desc="steps", disable=not main or not sys.stderr.isatty(), dynamic_ncols=True)
    signals.begin()
    trained, stop = list(state.trained.values()), False
    while state.step < args.max_steps and not stop:
        state.step += 1
        state.update(*compute_gradients(model, batches.take(state.step), trained, args))
        state.optimizer.zero_grad(set_to_none=True)
        bar.update()
        minutes = (time.monotonic() - began) / 60
        wish = signals.received is not None or args.max_minutes is not None and minutes >= args.max_minutes
        late = main and time.monotonic() - last_save >= 60 * args.ckpt_minutes
        stop, late = distributed.sum_over_processes(torch.tensor([wish, late], dtype=torch.float)).bool().tolist()  # on the host alone
        end = state.step == args.max_steps
        weights = state.step % args.ckpt_every == 0 or end
        saves, logs = weights or stop or late, state.step % args.log_every == 0 or end
        if logs or saves:
            settle(run_, state, batches, entries, args)
        if logs:
            if main:
                log(run_, state, args, (state.step - clock_step) / (time.monotonic() - clock))
            state.new_log_line()
            clock, clock_step = time.monotonic(), state.step
        if main and saves:
            save(run_, state, meta, args, weights)
            last_save = time.monotonic()
        if main and args.sample_every and state.step % args.sample_every == 0:
            sample_now(model, state, meta, args, run_.folder / "samples" / f"{state.step:07d}.png")
    bar.close()
    if main:
        run_.say(f"done: {run_.checkpoints / f'{state.step:07d}.safetensors'}" if end else
                 f"stopped by {signals.received or 'another process' if minutes < (args.max_minutes or math.inf) else '--max-minutes'} "
                 f"after step {state.step}/{args.max_steps}, saved; the same command goes on")
    distributed.barrier()  # until process 0 has saved: torchrun ends the others as soon as one has ended
    return 0 if end else EXIT_STOPPED


def main():
    began, signals = time.monotonic(), StopSignals()
    args = parse_args()
    header, entries = read_manifest(args.data_path)
    entries = select_split(entries, "train", args.data_path)
    args.device = distributed.own_device(args.device)
    vae = latents.load_vae(args.vae, args.device)
    side, channels = check_data(args, header, entries, vae), vae.config.latent_channels
    if args.dry_run:
        config = dict(models.config_of(args.model), input_size=side, in_channels=channels, num_classes=args.num_classes,
                      gamma_blocks=args.gamma_blocks)
        return estimate.dry_run(args, config, len(entries)) if distributed.rank() == 0 else None
    if args.epochs:
        args.max_steps = math.ceil(args.epochs * len(entries) / args.global_batch_size)
    with distributed.process_group(args.device):
        with distributed.main_process_first():
            moments = latent_cache.cached_moments(args.data_path, header, entries, vae, Path(args.vae).name)
        vae_config = dict(scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.get("shift_factor"),
                          sha256=latents.fingerprint(vae), path=str(Path(args.vae).resolve()) if Path(args.vae).is_dir() else None)
        del vae
        labels = torch.tensor([v["class"] for v in entries])
        model, trained, meta = build_model(args, header, vae_config, channels, side)
        meta["data_key"] = hashlib.sha256(moments.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        compiling = to_device(model, args)
        state, run_, newest = TrainingState(trained, args), None, None
        if distributed.rank() == 0:
            run_ = Run.to_resume(args)
            newest = run_ and run_.newest_state()
            if newest:
                check_resumed(run_, args, meta, newest[1])
                newest = str(newest[0].resolve()), newest[1]
            run_ = run_ or Run.new(args)
        newest = distributed.broadcast_json(newest)
        if newest:
            state.load(*newest)
        if state.step >= args.max_steps:
            if run_:
                print(f"{run_.folder} has its {state.step} steps already; for another run give --resume none, to go on a higher "
                      "--max-steps")
            return 0
        if run_:
            n = sum(p.numel() for p in trained.values())
            run_.open_logs(state.step)
            run_.say(f"{run_.folder}: {args.model} on {len(entries)} mosaics, --tune {args.tune}: {n:,} values train, "
                     f"{model.grid ** 2} tokens, {args.precision} on {args.device}"
                     + (f", {distributed.world_size()} processes, {4 * n / 1e6:.1f} MB reduced a step" if distributed.world_size() > 1 else "")
                     + (f"; goes on at step {state.step}" if state.step else ""))
            if compiling:
                run_.say(compiling)
        batches = Batches(moments, labels, meta["vae"], model.num_classes, args)
        return train(model, state, run_, batches, entries, meta, args, signals, began)


if __name__ == "__main__":
    run_script(main)
