#!/usr/bin/env python3
"""Finetunes a DiT on the mosaics of a data folder.

    python train.py --data-path data/adni --ckpt weights/DiT-XL-2-512x512.pt
    python train.py --data-path data/adni --dry-run

Run again, the same command goes on where it stopped. Step s draws all it needs from a generator seeded by (seed, s), so a
run that was resumed equals one that was not. `--ckpt none` begins with random weights.
"""
import fcntl
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoints
import diffusion
import latents
import models
from cli import UserError, add_device, parser, positive, run, seed, write_text
from manifest import read_json, read_manifest, select, write_mosaic

# What may differ between the command that began a run and the one that goes on with it.
FREE = ("results_dir", "resume", "max_steps", "epochs", "log_every", "ckpt_every", "sample_every", "device", "compile",
        "grad_checkpoint", "dry_run")


# ------------------------------------------------------------------------------------------------ one training step

def draw_step(seed, step, volumes, batch, latent_shape, label_dropout):
    """Everything random of one step's global batch, from (seed, step) alone: indices, t, noise, VAE noise, dropped labels."""
    g = diffusion.seeded_generator(seed, step)
    return (torch.randint(volumes, (batch,), generator=g), torch.randint(diffusion.NUM_TIMESTEPS, (batch,), generator=g),
            torch.randn(batch, *latent_shape, generator=g), torch.randn(batch, *latent_shape, generator=g),
            torch.rand(batch, generator=g) < label_dropout)


def learning_rate(args, step):
    """Of step 1…max_steps, from the step alone: constant, or half a cosine from --lr to zero."""
    return args.lr if args.lr_schedule == "constant" else args.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / args.max_steps))


def train_step(model, moments, labels, vae_config, optimizer, args, step):
    """One optimizer step on the global batch, in --accum parts. Returns the batch's mean loss, mse and vb, on the device."""
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    drawn = draw_step(args.global_seed, step, len(moments), args.global_batch_size, shape, args.label_dropout)
    device = torch.device(args.device)
    sums = torch.zeros(3, device=device)
    for part in zip(*(d.chunk(args.accum) for d in drawn)):
        index, t, noise, vae_noise, drop = part
        x0 = latents.draw(vae_config, moments[index], vae_noise).to(device, non_blocking=True)
        y = torch.where(drop, model.num_classes, labels[index])
        t, noise, y = (v.to(device, non_blocking=True) for v in (t, noise, y))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            losses = diffusion.training_losses(model, x0, t, y, noise)
        (losses["loss"].sum() / args.global_batch_size).backward()
        sums += torch.stack([losses[k].detach().sum() for k in ("loss", "mse", "vb")])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(args, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums / args.global_batch_size


# ---------------------------------------------------------------------------------------------------- the run folder

class Run:
    """A folder results/NNN-DiT-XL-2 that one process holds: args.json, log.txt, log.jsonl, TensorBoard events, checkpoints/."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "checkpoints").mkdir(exist_ok=True)
        self._lock = open(folder / ".lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: another job holds it

    @property
    def last(self):
        return self.folder / "checkpoints" / "last.safetensors"

    @classmethod
    def new(cls, args):
        name = args.model.replace("/", "-")
        args.results_dir.mkdir(parents=True, exist_ok=True)
        number = max([int(p.name[:3]) + 1 for p in args.results_dir.glob("[0-9][0-9][0-9]-*")], default=0)
        while True:  # mkdir decides when two jobs start at once
            try:
                folder = args.results_dir / f"{number:03d}-{name}"
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        run_ = cls(folder)
        write_text(folder / "args.json", json.dumps(identity(args, free=True), indent=1) + "\n")
        return run_

    @classmethod
    def to_resume(cls, args):
        """The run that --resume means, or None. Raises UserError where its flags contradict these."""
        if args.resume == "none":
            return None
        if args.resume != "auto":
            folder = Path(args.resume)
            folder = folder.parent.parent if folder.suffix == ".safetensors" else folder
            theirs, ours = read_json(folder / "args.json"), identity(args)
            different = [k for k in ours if theirs.get(k) != ours[k]]
            if different:
                k = different[0]
                raise UserError(f"--{k.replace('_', '-')} {ours[k]}: {folder} was begun with {theirs.get(k)}; give that, or --resume none")
            try:
                run_ = cls(folder)
            except BlockingIOError:
                raise UserError(f"--resume {folder}: another job is writing there; wait for it, or --resume none") from None
            checkpoints.read_meta(run_.last)
            return run_
        name = args.model.replace("/", "-")
        for folder in sorted(args.results_dir.glob(f"[0-9][0-9][0-9]-{name}"), reverse=True):
            if not (folder / "args.json").is_file() or not (folder / "checkpoints" / "last.safetensors").is_file():
                continue
            theirs = read_json(folder / "args.json")
            if all(theirs.get(k) == v for k, v in identity(args).items()):
                try:
                    return cls(folder)
                except BlockingIOError:  # the same command runs right now: this is a second run
                    continue
        return None

    def open_logs(self, step):
        """Logs that go on after `step`: what an interrupted run wrote beyond it is dropped."""
        path = self.folder / "log.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step] if path.exists() else []
        write_text(path, "".join(line + "\n" for line in kept))
        self._text, self._json = open(self.folder / "log.txt", "a"), open(path, "a")
        self._board = SummaryWriter(self.folder, purge_step=step + 1 if step else None)

    def say(self, message):
        line = f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {message}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self._text, flush=True)

    def record(self, entry):
        print(json.dumps(entry), file=self._json, flush=True)
        for key in entry.keys() - {"step"}:
            self._board.add_scalar(f"train/{key}", entry[key], entry["step"])
        self._board.flush()


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the job was killed
        return math.inf


def identity(args, free=False):
    """The flags that make a run what it is, as JSON holds them; with `free`, the others too."""
    fixed = ("max_steps",) if vars(args).get("lr_schedule") == "cosine" else ()  # the schedule ends there
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if free or k not in FREE or k in fixed}


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
        weights = checkpoints.load_weights(args.ckpt)
        grid = side // size["patch_size"]
        config.update(base_grid=grid if args.pos_embed == "extrapolate" else weights.base_grid, numerics=weights.numerics)
        model = checkpoints.assemble(config, checkpoints.fit_base(weights, config, args.ckpt), args.ckpt)
        path = checkpoints.locate(args.ckpt).resolve()
        base = dict(path=str(path), name=path.name, sha256=checkpoints.sha256_of(path))
    trained = models.set_trainable(model, args.tune)
    meta = dict(model=args.model, config=config, tune=args.tune, base=base if args.tune != "full" else None, header=header,
                begun_from=base, vae=dict(name=args.vae, **vae_config), image_size=header["grid"] * header["size"])
    return model, trained, meta


def to_device(model, args):
    """Moves the model and readies it for training."""
    if args.precision == "bf16":
        models.matrices_to_bf16(model)
    model.to(args.device).train()
    model.grad_checkpoint = args.grad_checkpoint
    if args.compile:
        for block in model.blocks:
            block.compile()


def kept_for_backward(block, x, c, precision):
    """Bytes of activations that one block keeps for its backward pass: measured, not estimated."""
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        block(x.requires_grad_(), c)
    return sum(n for n, _ in kept.values())


def dry_run(args, config, volumes):
    """Prints what would train, and what it needs: tokens, counts by kind, memory."""
    with torch.device("meta"):
        model = models.DiT(**config)
    trained = models.set_trainable(model, args.tune)
    tokens, width, depth = model.grid ** 2, config["hidden_size"], config["depth"]
    total = sum(p.numel() for n, p in model.named_parameters() if n != "pos_embed")
    print(f"{args.model}: {depth} blocks, width {width}, {config['num_heads']} heads, {total:,} parameters")
    print(f"latents {config['in_channels']} x {config['input_size']} x {config['input_size']}, {tokens:,} tokens; {volumes} volumes")
    kinds = {}
    for name, p in trained.items():
        kinds.setdefault(models.parameter_kind(name), []).append(p.numel())
    print(f"trains with --tune {args.tune}:")
    for kind, sizes in kinds.items():
        print(f"  {kind:12} {len(sizes):4} tensors {sum(sizes):13,} values")
    n = sum(p.numel() for p in trained.values())
    print(f"  {'all':12} {len(trained):4} tensors {n:13,} values, {n / total:.3%} of the model")

    micro = args.global_batch_size // args.accum
    block = models.DiTBlock(width, config["num_heads"], gamma=args.gamma_blocks > 0)
    for name, p in block.named_parameters():
        p.requires_grad_(args.tune == "full" or models.parameter_kind(name) != "matrix")
    one = kept_for_backward(block, torch.zeros(1, tokens, width), torch.zeros(1, width), args.precision) * micro
    kept = one + depth * micro * tokens * width * 4 if args.grad_checkpoint else one * depth
    frozen = (total - n) * (2 if args.precision == "bf16" else 4)
    rows = {"weights": frozen + 4 * n, "gradients, AdamW, EMA": 16 * n, f"activations of {micro} images": kept}
    print("memory on the device, GB (activations measured on one block here; workspace comes on top):")
    for what, size in {**rows, "all": sum(rows.values())}.items():
        print(f"  {what:24} {size / 1e9:7.2f}")
    print(f"a checkpoint: {8 * n / 1e6:.1f} MB; the state to resume from: {16 * n / 1e6:.1f} MB")


def sample_now(model, ema, trained, meta, args, path):
    """One volume's mosaic from the EMA weights, by 25 steps of dpm++, to look at while training goes on."""
    raw = {k: p.detach().clone() for k, p in trained.items()}
    for k, p in trained.items():
        p.data.copy_(ema[k])
    c, side = meta["config"]["in_channels"], meta["config"]["input_size"]
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
        z = diffusion.sample(model, (c, side, side), torch.zeros(1, dtype=torch.long), model.num_classes,
                             [diffusion.seeded_generator(args.global_seed, 0)], "dpm++", 25, device=args.device)
    for k, p in trained.items():
        p.data.copy_(raw[k])
    path.parent.mkdir(exist_ok=True)
    write_mosaic(path, latents.decode(latents.load_vae(args.vae, args.device), z)[0])


# -------------------------------------------------------------------------------------------------------------- main

def parse_args():
    p = parser(__doc__)
    p.add_argument("--data-path", type=Path, required=True, help="data folder; its train split is trained on")
    p.add_argument("--results-dir", type=Path, default=Path("results"), help="each run gets a folder NNN-MODEL here")
    p.add_argument("--model", choices=models.DiT_models, default="DiT-XL/2", metavar="NAME", help="one of " + ", ".join(models.DiT_models))
    p.add_argument("--image-size", type=int, help="side of the mosaics, pixels, to be checked; default: what the data folder says")
    p.add_argument("--num-classes", type=int, default=1000, help="rows of the class table but for the null class")
    p.add_argument("--ckpt", default="DiT-XL-2-512x512.pt", metavar="FILE|none", help="weights to begin with: official .pt, training "
                   "checkpoint of the original code, diffusers folder, .safetensors, or none")
    p.add_argument("--tune", choices=models.TUNING, default="difffit", help="what trains")
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
    p.add_argument("--global-seed", type=seed, default=0, help="step s draws from (seed, s)")
    p.add_argument("--ema-decay", type=float, default=0.9999, help="of the moving average over what trains, per step")
    p.add_argument("--vae", default="ema", metavar="ema|mse|PATH", help="VAE whose latents are trained on")
    p.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the arithmetic; what trains stays fp32")
    p.add_argument("--grad-checkpoint", action="store_true", help="recompute each block in the backward pass, to save memory")
    p.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    add_device(p)
    p.add_argument("--log-every", type=int, default=100, help="steps")
    p.add_argument("--ckpt-every", type=int, default=5000, help="steps")
    p.add_argument("--sample-every", type=int, default=0, help="steps between sample mosaics in the run folder; 0: none")
    p.add_argument("--resume", default="auto", metavar="auto|PATH|none", help="go on with the newest run begun by the same "
                   "flags, with that run folder, or begin anew")
    p.add_argument("--dry-run", action="store_true", help="say what would train and what memory it needs, then stop")
    args = p.parse_args()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("WORLD_SIZE: train.py runs in one process; start it with python, not torchrun")
    if args.global_batch_size < 1 or args.accum < 1 or args.global_batch_size % args.accum:
        raise UserError(f"--accum {args.accum}: must divide --global-batch-size {args.global_batch_size}")
    if not 0 <= args.ema_decay < 1 or not 0 <= args.label_dropout <= 1 or not 0 <= args.weight_decay < math.inf:
        raise UserError("--ema-decay must be in [0, 1), --label-dropout in [0, 1], --weight-decay 0 or more")
    if args.ckpt == "none" and args.tune != "full":
        raise UserError("--ckpt none: random weights are of no use when only some parameters train; add --tune full")
    if min(args.max_steps, args.log_every, args.ckpt_every, args.num_classes) < 1 or args.sample_every < 0:
        raise UserError("--max-steps, --log-every, --ckpt-every and --num-classes must be at least 1")
    if args.base_grid is not None and (args.ckpt != "none" or args.base_grid < 1):
        raise UserError(f"--base-grid {args.base_grid}: a positive number, and only with --ckpt none; other weights know their own")
    if not 0 <= args.gamma_blocks <= models.config_of(args.model)["depth"]:
        raise UserError(f"--gamma-blocks {args.gamma_blocks}: {args.model} has {models.config_of(args.model)['depth']} blocks")
    return args


def check_data(args, header, entries, vae):
    """Refuses flags that do not fit the data, before anything is allocated. Returns the side of the latents."""
    image, f, patch = header["grid"] * header["size"], latents.factor(vae), models.config_of(args.model)["patch_size"]
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


def main():
    args = parse_args()
    header, entries = read_manifest(args.data_path)
    entries = select(entries, "train", args.data_path)
    vae = latents.load_vae(args.vae, args.device)
    side, channels = check_data(args, header, entries, vae), vae.config.latent_channels
    if args.dry_run:
        config = dict(models.config_of(args.model), input_size=side, in_channels=channels, num_classes=args.num_classes,
                      gamma_blocks=args.gamma_blocks)
        return dry_run(args, config, len(entries))
    if args.epochs:
        args.max_steps = math.ceil(args.epochs * len(entries) / args.global_batch_size)
    name = Path(args.vae).name
    moments = latents.cached_moments(args.data_path, header, entries, vae, name)
    vae_config = dict(scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.get("shift_factor"),
                      sha256=latents.fingerprint(vae), path=str(Path(args.vae).resolve()) if Path(args.vae).is_dir() else None)
    del vae
    labels = torch.tensor([v["class"] for v in entries])
    model, trained, meta = build_model(args, header, vae_config, channels, side)
    meta["data_key"] = hashlib.sha256(moments.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    ema = {k: p.detach().clone().to(args.device) for k, p in trained.items()}
    to_device(model, args)
    optimizer = torch.optim.AdamW(trained.values(), args.lr, weight_decay=args.weight_decay)
    update_ema = get_ema_multi_avg_fn(args.ema_decay)

    run_ = Run.to_resume(args)
    step, sums, count = 0, torch.zeros(3, device=args.device), 0
    if run_:
        state, groups = checkpoints.load_checkpoint(run_.last)
        for what, ours, theirs in (("the data folder's geometry", meta["header"], state["header"]), ("the VAE", meta["vae"], state["vae"]),
                                   ("the weights of --ckpt", meta["begun_from"], state["begun_from"]),
                                   ("the mosaics or their classes", meta["data_key"], state["data_key"])):
            if ours != theirs:
                raise UserError(f"--resume {args.resume}: {what} changed since {run_.folder} was begun; put it back, or --resume none")
        step, count = state["step"], state["log_count"]
        sums += torch.tensor(state["log_sums"], device=args.device)
        for k, p in trained.items():
            p.data.copy_(groups["raw"][k])
            ema[k].copy_(groups["ema"][k])
            optimizer.state[p] = dict(step=torch.tensor(float(step)), exp_avg=groups["exp_avg"][k].to(args.device),
                                      exp_avg_sq=groups["exp_avg_sq"][k].to(args.device))
        if step >= args.max_steps:
            print(f"{run_.folder} has its {step} steps already; for another run give --resume none, to go on a higher --max-steps")
            return
    else:
        run_ = Run.new(args)
    run_.open_logs(step)
    n = sum(p.numel() for p in trained.values())
    run_.say(f"{run_.folder}: {args.model} on {len(entries)} mosaics, --tune {args.tune}: {n:,} values train, "
             f"{model.grid ** 2} tokens, {args.precision} on {args.device}" + (f"; goes on at step {step}" if step else ""))

    def save(step):
        groups = dict(ema=ema, raw=trained)
        if not all(t.isfinite().all() for named in groups.values() for t in named.values()):
            raise UserError(f"--lr {args.lr:g}: the weights are no longer finite at step {step}; use a lower one. "
                            "The checkpoints before it stand")
        checkpoints.save_checkpoint(run_.folder / "checkpoints" / f"{step:07d}.safetensors", dict(meta, step=step), **groups)
        moments_of = {m: {k: optimizer.state[p][m] for k, p in trained.items()} for m in ("exp_avg", "exp_avg_sq")}
        checkpoints.save_checkpoint(run_.last, dict(meta, step=step, log_sums=sums.tolist(), log_count=count), **groups, **moments_of)

    clock, clock_step = time.monotonic(), step
    bar = tqdm(total=args.max_steps, initial=step, desc="steps", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    while step < args.max_steps:
        step += 1
        sums += train_step(model, moments, labels, meta["vae"], optimizer, args, step)
        count += 1
        update_ema(list(ema.values()), [p.detach() for p in trained.values()], step)
        bar.update()
        if step % args.log_every == 0 or step == args.max_steps:
            loss, mse, vb = (sums / count).tolist()
            rate = (step - clock_step) / (time.monotonic() - clock)
            if not math.isfinite(loss):
                raise UserError(f"--lr {args.lr:g}: the loss is {loss} at step {step}; use a lower one. The checkpoints before it stand")
            run_.record(dict(step=step, loss=loss, mse=mse, vb=vb, lr=learning_rate(args, step),
                             images_per_s=round(rate * args.global_batch_size, 4)))
            run_.say(f"step {step}/{args.max_steps}: loss {loss:.4f} (mse {mse:.4f}, vb {vb:.5f}), {rate:.3g} steps/s, "
                     f"{(args.max_steps - step) / rate / 3600:.2f} h left")
            sums.zero_()
            count, clock, clock_step = 0, time.monotonic(), step
        if step % args.ckpt_every == 0 or step == args.max_steps:
            save(step)
        if args.sample_every and step % args.sample_every == 0:
            sample_now(model, ema, trained, meta, args, run_.folder / "samples" / f"{step:07d}.png")
    bar.close()
    run_.say(f"done: {run_.folder / 'checkpoints' / f'{step:07d}.safetensors'}")


if __name__ == "__main__":
    run(main)
