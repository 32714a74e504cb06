#!/usr/bin/env python3
"""Draws mosaics and NIfTI volumes from a checkpoint of train.py.

    python sample.py --ckpt results/000-DiT-XL-2/checkpoints/0066000.safetensors --num-samples 32 --output samples/adni

The checkpoint knows its model, VAE and geometry. Sample i draws from (seed, i): the same volume whatever the batch size.
Run again, the same command goes on with the samples that are not there yet.
"""
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoints
import diffusion
import latents
import manifest
import models
import mosaic
import volumes
from cli import UserError, add_device, parser, progress, run, seed, write_text


def parse_args():
    p = parser(__doc__)
    p.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint written by train.py")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="samples folder: mosaics/, nifti/, samples.json")
    p.add_argument("--num-samples", type=int, default=32, help="volumes")
    p.add_argument("--seed", type=seed, default=0, help="sample i draws from (seed, i)")
    p.add_argument("--sampler", choices=diffusion.SAMPLERS, default="ddpm", help="dpm++ needs 20 to 50 steps, ddpm 250")
    p.add_argument("--num-sampling-steps", type=int, default=250, help="network evaluations a sample")
    p.add_argument("--cfg-scale", type=float, default=1.0, help="classifier-free guidance; 1: none, at half the cost")
    p.add_argument("--cfg-channels", type=int, help="latent channels that are guided; 3: as the published DiT code; default: all")
    p.add_argument("--class-label", type=int, default=0, help="class to draw, as numbered in the manifest")
    p.add_argument("--batch-size", type=int, default=8, help="volumes at once")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained")
    p.add_argument("--vae", metavar="ema|mse|PATH", help="VAE that decodes; default: the one that was trained with")
    p.add_argument("--base", metavar="FILE", help="base weights, where they are no longer where train.py read them")
    p.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the arithmetic")
    add_device(p)
    args = p.parse_args()
    if min(args.num_samples, args.batch_size) < 1:
        raise UserError("--num-samples and --batch-size must be at least 1")
    most = diffusion.NUM_TIMESTEPS - (args.sampler == "dpm++")
    if not 2 <= args.num_sampling_steps <= most:
        raise UserError(f"--num-sampling-steps {args.num_sampling_steps}: {args.sampler} takes 2 to {most}")
    if not math.isfinite(args.cfg_scale):
        raise UserError(f"--cfg-scale {args.cfg_scale}: must be a finite number")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("WORLD_SIZE: sample.py runs in one process; start it with python, not torchrun")
    return args


def load_decoder(args, meta):
    """The VAE to decode with. Raises UserError when its shape, or without --vae its weights, are not those trained with."""
    recorded = meta["vae"]
    vae = latents.load_vae(args.vae or recorded["path"] or recorded["name"], args.device)
    if not args.vae and latents.fingerprint(vae) != recorded["sha256"]:
        raise UserError(f"--vae {recorded['path'] or recorded['name']}: changed since {args.ckpt} was trained; name the right one")
    shape = latents.factor(vae) * meta["config"]["input_size"], vae.config.latent_channels
    if shape != (meta["image_size"], meta["config"]["in_channels"]):
        raise UserError(f"--vae {args.vae or recorded['name']}: decodes latents of side {meta['config']['input_size']} to "
                        f"{shape[0]} pixels with {shape[1]} channels; the model was trained for {meta['image_size']} pixels")
    return vae


def begin(args, recipe):
    """The entries of a samples folder: new, or one that the same recipe began."""
    path = args.output / "samples.json"
    if not path.is_file():
        if args.output.exists() and any(args.output.iterdir()):
            raise UserError(f"--output {args.output}: exists already and was not begun by sample.py; name a new folder")
        return {}
    content = manifest.read_json(path)
    try:
        theirs = dict(content["recipe"])
        done = {s["id"]: s for s in content["samples"] if (args.output / "nifti" / f"{s['id']}.nii.gz").is_file()}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; name a new folder for --output") from None
    different = [k for k in recipe if theirs.get(k) != recipe[k]]
    if different:
        k = different[0]
        raise UserError(f"--output {args.output}: holds samples of {k} {theirs.get(k)}, not {recipe[k]}; name a new folder")
    return done


def write_samples_json(args, meta, recipe, entries):
    content = {"format": "mosaicdit-samples", "version": manifest.VERSION, **{k: meta["header"][k] for k in manifest.HEADER},
               "recipe": recipe, "samples": [entries[k] for k in sorted(entries)]}
    write_text(args.output / "samples.json", json.dumps(content, indent=1) + "\n")


def main():
    args = parse_args()
    meta = checkpoints.read_meta(args.ckpt)
    header = manifest.check_header(meta["header"], args.ckpt)
    config = meta["config"]
    if not 0 <= args.class_label < len(header["classes"]):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(header["classes"]))
        raise UserError(f"--class-label {args.class_label}: the model was trained on {known}")
    if args.cfg_channels is not None and not 1 <= args.cfg_channels <= config["in_channels"]:
        raise UserError(f"--cfg-channels {args.cfg_channels}: the latents have {config['in_channels']}")
    vae = load_decoder(args, meta)
    recipe = dict(ckpt_sha256=checkpoints.sha256_of(args.ckpt), vae_sha256=latents.fingerprint(vae), **{k: getattr(args, k) for k in (
        "seed", "sampler", "num_sampling_steps", "cfg_scale", "cfg_channels", "class_label", "weights", "precision")})
    entries = begin(args, recipe)
    wanted = [i for i in range(args.num_samples) if f"{i:06d}" not in entries]
    if not wanted:
        print(f"{args.output} has its {args.num_samples} samples already")
        return
    model, _ = checkpoints.restore_model(args.ckpt, args.weights, args.base)
    model.requires_grad_(False).to(args.device)
    if args.precision == "bf16":
        models.matrices_to_bf16(model)

    for folder in ("mosaics", "nifti"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
    write_samples_json(args, meta, recipe, entries)
    affine = np.array(header["affine"])
    shape = (config["in_channels"], config["input_size"], config["input_size"])
    batches = [wanted[i:i + args.batch_size] for i in range(0, len(wanted), args.batch_size)]
    for batch in progress(batches, f"batches of {args.batch_size}"):
        generators = [diffusion.seeded_generator(args.seed, i) for i in batch]
        y = torch.full((len(batch),), args.class_label)
        with tqdm(total=args.num_sampling_steps, desc="steps", leave=False, disable=not sys.stderr.isatty()) as bar, \
                torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            z = diffusion.sample(model, shape, y, config["num_classes"], generators, args.sampler, args.num_sampling_steps,
                                 args.cfg_scale, args.cfg_channels, args.device, bar.update)
        if not z.isfinite().all():
            raise UserError(f"--cfg-scale {args.cfg_scale:g}: samples {batch[0]} to {batch[-1]} are not finite; use a lower scale, "
                            "--precision fp32, or an earlier checkpoint")
        for i, sheet in zip(batch, latents.decode(vae, z)):
            name = f"{i:06d}"
            manifest.write_mosaic(manifest.mosaic_path(args.output, name), sheet)
            volumes.write_nifti(args.output / "nifti" / f"{name}.nii.gz", mosaic.untile(sheet, header["size"], header["layout"]), affine)
            entries[name] = {"id": name, "index": i, "class": args.class_label}
        write_samples_json(args, meta, recipe, entries)
    print(f"{args.output}: {len(entries)} mosaics and NIfTI volumes, step {meta['step']}, {args.sampler} {args.num_sampling_steps} steps")


if __name__ == "__main__":
    run(main)
