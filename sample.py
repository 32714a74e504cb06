#!/usr/bin/env python3
"""Draws mosaics and NIfTI volumes from a checkpoint of train.py.

    python sample.py --ckpt results/000-DiT-XL-2/checkpoints/0066000.safetensors --num-samples 32 --output samples/adni

    torchrun --nproc-per-node 4 sample.py --ckpt results/000-DiT-XL-2 --output samples/adni

The checkpoint knows its model, VAE and geometry. Sample i draws from (seed, i), and batch b holds the samples from b times
--batch-size on, whoever computes it: processes of torchrun and jobs with a --shard each write into one folder, and write the
same bits as one process, on a CPU. Run again, the same command goes on with the samples that are not there yet.
"""
import json
import math
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffusion import gaussian_diffusion as diffusion
from diffusion import samplers
from diffusion import vae as latents
from mri import manifest, mosaic, mosaic_files, nifti
from training import acceleration, pretrained
from training import checkpoint as checkpoints
from utils import distributed, files, seeding
from utils.errors import UserError, run_script
from utils.files import write_text
from utils.flags import add_compile_flag, add_device_flag, make_parser, shard, whole_number
from utils.progress import progress


def parse_args():
    p = make_parser(__doc__)
    p.add_argument("--ckpt", type=Path, required=True, metavar="FILE|DIR", help="checkpoint written by train.py; of a "
                   "run folder its newest, of a results folder that of its last run")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="samples folder: mosaics/, nifti/, samples.json")
    p.add_argument("--num-samples", type=int, default=32, help="volumes")
    p.add_argument("--seed", type=whole_number, default=0, help="sample i draws from (seed, i)")
    p.add_argument("--sampler", choices=samplers.SAMPLERS, default="ddpm", help="dpm++ needs 20 to 50 steps, ddpm 250")
    p.add_argument("--num-sampling-steps", type=int, default=250, help="network evaluations a sample")
    p.add_argument("--cfg-scale", type=float, default=1.0, help="classifier-free guidance; 1: none, at half the cost")
    p.add_argument("--cfg-channels", type=int, help="latent channels that are guided; 3: as the published DiT code; default: all")
    p.add_argument("--class-label", type=int, default=0, help="class to draw, as numbered in the manifest")
    p.add_argument("--batch-size", type=int, default=8, help="volumes at once")
    p.add_argument("--shard", type=shard, metavar="I/N", help="compute part I of N, counted from 1, such as one task of a job array")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained")
    p.add_argument("--vae", metavar="ema|mse|PATH", help="VAE that decodes; default: the one that was trained with")
    p.add_argument("--base", metavar="FILE", help="base weights, where they are no longer where train.py read them")
    p.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the DiT's arithmetic")
    p.add_argument("--vae-precision", choices=("fp32", "bf16"), default="fp32", help="of the VAE's; bf16 is twice as fast and moved the "
                   "grey levels of the demo's VAE by 0.3 of 255 (rms)")
    add_compile_flag(p)
    add_device_flag(p)
    args = p.parse_args()
    if min(args.num_samples, args.batch_size) < 1:
        raise UserError("--num-samples and --batch-size must be at least 1")
    most = diffusion.NUM_TIMESTEPS - (args.sampler == "dpm++")
    if not 2 <= args.num_sampling_steps <= most:
        raise UserError(f"--num-sampling-steps {args.num_sampling_steps}: {args.sampler} takes 2 to {most}")
    if not math.isfinite(args.cfg_scale):
        raise UserError(f"--cfg-scale {args.cfg_scale}: must be a finite number")
    args.device = distributed.own_device(args.device)
    if args.ckpt.is_dir():
        name = "checkpoints/[0-9]*[0-9].safetensors"
        found = sorted(args.ckpt.glob(name)) or sorted(args.ckpt.glob(f"[0-9][0-9][0-9]-*/{name}"))
        if not found:
            raise UserError(f"--ckpt {args.ckpt}: holds no checkpoints/STEP.safetensors; name a file, or a run folder that has one")
        args.ckpt = found[-1]
    return args


def check_folder(args, recipe):
    """How many samples the samples folder is to hold. UserError where it is there and was not begun by the same recipe."""
    path, count = args.output / "samples.json", args.num_samples
    if path.is_file():
        content = files.read_json(path)
        try:
            theirs, count = {"vae_precision": "fp32"} | content["recipe"], max(count, len(content["samples"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: damaged; name a new folder for --output") from None
        different = [k for k in recipe if theirs.get(k) != recipe[k]]
        if different:
            k = different[0]
            raise UserError(f"--output {args.output}: holds samples of {k} {theirs.get(k)}, not {recipe[k]}; name a new folder")
    elif args.output.exists() and any(p.name[0] != "." for p in args.output.iterdir()) and not path.is_file():  # written first
        raise UserError(f"--output {args.output}: exists already and was not begun by sample.py; name a new folder")
    return count


def begin(args, meta, recipe, count):
    """Begins the samples folder, or goes on with it: samples.json lists what it is to hold.

    Every process and job that writes there writes the same samples.json, so that none waits for another.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    content = {"format": "mosaicdit-samples", "version": manifest.FORMAT_VERSION, **{k: meta["header"][k] for k in manifest.HEADER_KEYS},
               "recipe": recipe, "samples": [{"id": f"{i:06d}", "index": i, "class": args.class_label} for i in range(count)]}
    write_text(args.output / "samples.json", json.dumps(content, indent=1) + "\n")
    for folder in ("mosaics", "nifti"):
        (args.output / folder).mkdir(exist_ok=True)


def nifti_path(args, i):
    """Of sample i; written last, so that where it is the sample is whole."""
    return args.output / "nifti" / f"{i:06d}.nii.gz"


def my_batches(args):
    """Of the batches of samples 0…num_samples - 1, those of this shard and process in which one is missing."""
    batches = [range(i, min(i + args.batch_size, args.num_samples)) for i in range(0, args.num_samples, args.batch_size)]
    part, parts = args.shard or (1, 1)
    mine = batches[part - 1::parts][distributed.rank()::distributed.world_size()]
    return [b for b in mine if not all(nifti_path(args, i).is_file() for i in b)]


class Writer:
    """Writes samples while the next are computed: a thread, and at most one batch waiting for it. An error ends the main thread too."""

    def __init__(self, args, header):
        self.args, self.header, self.affine = args, header, np.array(header["affine"])
        self._pool, self._jobs = ThreadPoolExecutor(1), deque()

    def write(self, i, sheet):
        self._jobs.append(self._pool.submit(self._write, i, sheet))
        while len(self._jobs) > self.args.batch_size:
            self._jobs.popleft().result()

    def _write(self, i, sheet):
        mosaic_files.write_mosaic(mosaic_files.mosaic_path(self.args.output, f"{i:06d}"), sheet)
        nifti.write_nifti(nifti_path(self.args, i), mosaic.untile(sheet, self.header["size"], self.header["layout"]), self.affine)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._pool:
            while self._jobs:
                self._jobs.popleft().result()


def main():
    args = parse_args()
    meta = checkpoints.read_metadata(args.ckpt)
    header = manifest.check_header(meta["header"], args.ckpt)
    config = meta["config"]
    if not 0 <= args.class_label < len(header["classes"]):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(header["classes"]))
        raise UserError(f"--class-label {args.class_label}: the model was trained on {known}")
    if args.cfg_channels is not None and not 1 <= args.cfg_channels <= config["in_channels"]:
        raise UserError(f"--cfg-channels {args.cfg_channels}: the latents have {config['in_channels']}")
    vae = latents.load_decoder(meta, args.vae, args.device, args.ckpt)
    recipe = dict(ckpt_sha256=pretrained.sha256_of_weights(args.ckpt), vae_sha256=latents.fingerprint(vae), **{k: getattr(args, k) for k in (
        "seed", "sampler", "num_sampling_steps", "cfg_scale", "cfg_channels", "class_label", "weights", "precision", "vae_precision")})
    count = check_folder(args, recipe)
    batches = my_batches(args)
    who = "".join([f"shard {args.shard[0]}/{args.shard[1]}: " if args.shard else "",
                   f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""])
    if not batches:
        print(f"{who}{args.output} has its {args.num_samples} samples already" if not who else f"{who}nothing left to do in {args.output}")
        return
    model, _ = pretrained.restore_model(args.ckpt, args.weights, args.base)
    compiling = acceleration.prepare_for_sampling(model, args.device, args.precision == "bf16", args.compile)
    if compiling:
        print(f"{who}{compiling}", file=sys.stderr, flush=True)

    begin(args, meta, recipe, count)
    shape = (config["in_channels"], config["input_size"], config["input_size"])
    written = 0
    with Writer(args, header) as writer:
        for batch in progress(batches, f"batches of {args.batch_size}"):
            generators = [seeding.seeded_generator(args.seed, i) for i in batch]
            y = torch.full((len(batch),), args.class_label)
            with tqdm(total=args.num_sampling_steps, desc="steps", leave=False, disable=not sys.stderr.isatty()) as bar, \
                    torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
                z = samplers.sample(model, shape, y, config["num_classes"], generators, args.sampler, args.num_sampling_steps,
                                     args.cfg_scale, args.cfg_channels, args.device, bar.update)
            if not z.isfinite().all():
                raise UserError(f"--cfg-scale {args.cfg_scale:g}: samples {batch[0]} to {batch[-1]} are not finite; use a lower scale, "
                                "--precision fp32, or an earlier checkpoint")
            for i, latent in zip(batch, z):
                if not nifti_path(args, i).is_file():  # a batch that was begun is computed whole: its bits depend on who is in it
                    writer.write(i, latents.decode(vae, latent[None], args.vae_precision == "bf16")[0])
                    written += 1
    print(f"{who}{args.output}: {written} mosaics and NIfTI volumes, step {meta['step']}, {args.sampler} {args.num_sampling_steps} steps")


if __name__ == "__main__":
    run_script(main)
