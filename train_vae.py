#!/usr/bin/env python3
"""Trains a VAE on mosaics, or adapts a pretrained one's decoder to them.

    python train_vae.py --data-path data/adni --init weights/sd-vae-ft-mse --tune decoder \\
        --output vae/adni
    python train_vae.py --data-path data/t1w data/t2w --init tiny --tune all --output vae/tiny

`--tune decoder` keeps the encoder, and so the latent space: a pretrained DiT still fits. `--init
tiny` is a small VAE of factor 4 with 8 channels, for CPUs. At the end, held-out volumes go through
the VAE, and their PSNR is written, with a figure: what the VAE loses, no DiT can restore.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.vae import downsampling_factor, encode_moments, load_vae, reconstruct, to_pixels
from metrics.psnr import psnr, slice_psnr
from mri import mosaic
from mri.geometry import VIEWS, voxel_sizes
from mri.manifest import read_manifest, select_split
from mri.mosaic_files import MosaicReader, read_mosaics
from reporting import figures
from utils.files import atomic_folder, require_new_folder, write_text
from utils.flags import (
    add_device_flag,
    add_precision_flag,
    make_parser,
    non_negative,
    positive,
    whole_number,
)
from utils.precision import autocast
from utils.progress import progress

WARM_UP_STEPS = 100         # over which the learning rate rises to its peak
MAX_GRADIENT_NORM = 1.0
SCALING_MOSAICS = 64        # mosaics from which the scaling factor is estimated

# ------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Folder:
    """A data folder."""
    path: Path
    header: dict
    train: list     # manifest entries of the volumes to train on
    held_out: list  # manifest entries of the volumes for the PSNR


def read_folder(path):
    """Reads a manifest. Without a test split, the PSNR is of volumes that were trained on."""
    header, entries = read_manifest(path)
    held_out = [entry for entry in entries if entry["split"] == "test"]
    if not held_out:
        print(f"{path}: has no test split, so the PSNR below is of volumes that were trained on")
    return Folder(path, header, select_split(entries, "train", path), held_out or entries)


def check_alike(folders):
    """Raises UserError unless all folders hold mosaics of one size and layout."""
    first = folders[0]
    for folder in folders[1:]:
        if any(folder.header[key] != first.header[key] for key in ("size", "layout")):
            raise UserError(f"--data-path {folder.path}: another size or layout than "
                            f"{first.path}; preprocess both with the same --size and --layout")


# -------------------------------------------------------------------------------------- the model

def initial_vae(init, seed):
    """The VAE to start from, on the CPU; the seed is for random weights."""
    torch.manual_seed(seed)
    return tiny_vae() if init == "tiny" else load_vae(init, flag="--init")


def tiny_vae():
    """A small AutoencoderKL: factor 4, 8 channels, no attention, so that it can train on crops."""
    import diffusers  # here, as its import takes seconds

    blocks = 3
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, mid_block_add_attention=False)


def crop_side(crop, side, factor):
    """Side of the crops in pixels: at most the mosaics' side, and a multiple of the factor."""
    size = min(crop, side) // factor * factor
    if side % factor or size < factor:
        raise UserError(f"--crop {crop}: must be at least the VAE's factor, {factor}, and the "
                        f"mosaics' side, {side}, a multiple of it")
    return size


def set_trainable(vae, tune):
    """Freezes everything but the parameters that --tune names, and returns these."""
    vae.requires_grad_(False)
    modules = [vae] if tune == "all" else [vae.decoder, vae.post_quant_conv]
    return [p.requires_grad_() for module in modules for p in module.parameters()]


# --------------------------------------------------------------------------------------- training

def train(vae, mosaics, parameters, crop, args):
    """Trains on random crops.

    :param vae: AutoencoderKL on its device
    :param mosaics: MosaicReader
    :param parameters: list of the trainable ones
    :param crop: side of the crops, pixels
    :return: list of dicts of step, loss and seconds, one for each log line
    """
    encoder_trains = args.tune == "all"
    optimizer = make_optimizer(parameters, args.lr, args.device)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, args.max_steps))
    generator = torch.Generator().manual_seed(args.seed)
    factor = downsampling_factor(vae)
    history = []
    start = time.monotonic()
    vae.train()
    for step in progress(range(1, args.max_steps + 1), "VAE steps"):
        crops = random_crops(mosaics, args.batch_size, crop, factor, generator)
        x = to_pixels(crops, args.device)
        with autocast(args.device, args.precision):
            loss = loss_of(vae, x, generator, encoder_trains, args.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % args.log_every == 0 or step == args.max_steps:
            seconds = round(time.monotonic() - start, 1)
            history.append(dict(step=step, loss=loss.item(), seconds=seconds))
            if not np.isfinite(loss.item()):
                raise UserError(f"--lr {args.lr:g}: the loss is {loss.item()} at step {step}; "
                                "use a lower learning rate")
    vae.eval().requires_grad_(False)
    return history


def make_optimizer(parameters, lr, device):
    """AdamW, fused on a CPU only: on a GPU the fused one needs gradients laid out as their weights,
    which those of 1 x 1 convolutions in channels_last need not be."""
    fused = True if torch.device(device).type == "cpu" else None
    return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=0, fused=fused)


def learning_rate_factor(step, max_steps):
    """Learning rate of step 0, 1, … over its peak: a linear warm-up, times half a cosine."""
    warm_up = min((step + 1) / min(WARM_UP_STEPS, max_steps), 1)
    return warm_up * 0.5 * (1 + np.cos(np.pi * step / max_steps))


def random_crops(mosaics, count, size, step, generator):
    """Random crops of random mosaics, cut at multiples of `step` pixels.

    :param mosaics: MosaicReader
    :return: (count, size, size, 3) uint8
    """
    which = torch.randint(len(mosaics), (count,), generator=generator).tolist()
    places = (mosaics.side - size) // step + 1          # along each axis
    corners = (torch.randint(places, (count, 2), generator=generator) * step).tolist()
    return np.stack([mosaics[i][y:y + size, x:x + size] for i, (y, x) in zip(which, corners)])


def loss_of(vae, x, noise_generator, encoder_trains, kl_weight):
    """Mean squared error of the round trip, which is what PSNR measures.

    If the encoder trains, the KL divergence per latent value is added with its weight.

    :param x: (N, 3, H, W)
    """
    with torch.set_grad_enabled(encoder_trains):
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=noise_generator).to(x)
        z = posterior.mean + posterior.std * noise
    loss = F.mse_loss(vae.decode(z).sample, x)
    if encoder_trains:
        loss = loss + kl_weight * posterior.kl().mean() / z[0].numel()
    return loss


def set_scaling_factor(vae, mosaics):
    """Makes the latents of mosaics have unit variance for the DiT, as Stable Diffusion's constant
    does.

    It is estimated from some of them, evenly over all data folders, whose contrasts may differ.

    :param mosaics: MosaicReader
    """
    count = min(SCALING_MOSAICS, len(mosaics))
    chosen = [mosaics[i * len(mosaics) // count] for i in range(count)]
    mean, std = encode_moments(vae, chosen).chunk(2, 1)
    variance = mean.var() + (std ** 2).mean()
    vae.register_to_config(scaling_factor=float(1 / variance.sqrt()))


# ------------------------------------------------------------------------------------- evaluation

def evaluate(vae, folders):
    """PSNR of the held-out volumes after the round trip.

    :return: list of dicts, one for each volume; montage columns of the first of each folder
    """
    rows = []
    columns = []
    for folder in folders:
        for i, entry in enumerate(progress(folder.held_out, f"round trips of {folder.path}")):
            real, fake = round_trip(vae, folder, entry)
            row = dict(folder=str(folder.path), id=entry["id"], split=entry["split"],
                       volume=psnr(real, fake),
                       **{view: slice_psnr(real, fake, axis) for view, axis in VIEWS.items()})
            rows.append(row)
            if i == 0:
                columns.append((f"{entry['id']}: real", real))
                columns.append((f"through the VAE, {row['volume']:.1f} dB", fake))
    return rows, columns


def round_trip(vae, folder, entry):
    """A volume, and what is left of it after the way through mosaic and latent, (D, D, D) uint8."""
    size = folder.header["size"]
    layout = folder.header["layout"]
    mosaics = read_mosaics(folder.path, folder.header, [entry])
    real = mosaic.untile(mosaics[0], size, layout)
    return real, mosaic.untile(reconstruct(vae, mosaics)[0], size, layout)


# ---------------------------------------------------------------------------------------- command

def parse_flags():
    parser = make_parser(__doc__)
    group = parser.add_argument_group("data and output")
    group.add_argument("--data-path", type=Path, required=True, nargs="+", metavar="DIR",
                       help="data folders; the VAE trains on their train splits, the PSNR is of "
                       "their test splits")
    group.add_argument("--output", type=Path, required=True, metavar="DIR",
                       help="new folder for the VAE in diffusers' format, psnr.json and "
                       "reconstruction.png")
    group = parser.add_argument_group("model")
    group.add_argument("--init", required=True, metavar="ema|mse|DIR|tiny",
                       help="VAE to start from: ema or mse for a public one, a folder, or tiny for "
                       "a small random one")
    group.add_argument("--tune", choices=("decoder", "all"), default="decoder",
                       help="part that is trained")
    group = parser.add_argument_group("training")
    group.add_argument("--max-steps", type=int, default=2000, help="number of optimizer steps")
    group.add_argument("--batch-size", type=int, default=4, help="crops per step")
    group.add_argument("--crop", type=int, default=256,
                       help="side of a crop, pixels; at most the mosaic's")
    group.add_argument("--lr", type=positive, default=1e-4, help="peak learning rate of AdamW; it "
                       "falls to zero along half a cosine")
    group.add_argument("--kl-weight", type=non_negative, default=1e-5,
                       help="weight of the KL divergence per latent value, where the encoder "
                       "trains")
    group.add_argument("--seed", type=whole_number, default=0,
                       help="random seed of weights, crops and noise")
    group = parser.add_argument_group("computation")
    add_precision_flag(group, "the VAE in training; weights stay in fp32", default="fp32")
    add_device_flag(group)
    group.add_argument("--log-every", type=int, default=50,
                       help="steps between two losses in psnr.json")
    return parser.parse_args()


def main():
    args = parse_flags()
    require_new_folder(args.output)
    if args.init == "tiny" and args.tune != "all":
        raise UserError("--init tiny: starts from random weights, so the encoder must train too; "
                        "add --tune all")
    if min(args.max_steps, args.batch_size, args.log_every) < 1:
        raise UserError("--max-steps, --batch-size and --log-every must be at least 1")

    folders = [read_folder(path) for path in args.data_path]
    check_alike(folders)
    mosaics = MosaicReader([(folder.path, folder.header, entry)
                            for folder in folders for entry in folder.train])
    vae = initial_vae(args.init, args.seed)
    side = mosaics.side
    crop = crop_side(args.crop, side, downsampling_factor(vae))
    vae.to(args.device, memory_format=torch.channels_last)
    parameters = set_trainable(vae, args.tune)
    print(f"{len(mosaics)} mosaics of {side} x {side}; factor {downsampling_factor(vae)}, "
          f"{vae.config.latent_channels} channels; {sum(p.numel() for p in parameters):,} of "
          f"{sum(p.numel() for p in vae.parameters()):,} parameters train")

    with atomic_folder(args.output) as folder:  # before training, so that it can be created
        history = train(vae, mosaics, parameters, crop, args)
        if args.tune == "all":
            set_scaling_factor(vae, mosaics)
        rows, columns = evaluate(vae, folders)
        means = {key: float(np.mean([row[key] for row in rows])) for key in ("volume", *VIEWS)}
        report = dict(unit="dB", mean=means, volumes=rows, steps=history, args=vars(args))
        vae.save_pretrained(folder)
        write_text(folder / "psnr.json", json.dumps(report, indent=1, default=str) + "\n")
        figures.montage(folder / "reconstruction.png", columns,
                        voxel_sizes(folders[0].header["affine"]),
                        affine=folders[0].header["affine"])
    views = ", ".join(f"{view} {means[view]:.2f}" for view in VIEWS)
    print(f"PSNR of {len(rows)} volumes: {means['volume']:.2f} dB; mean over slices: {views}")
    print(f"{args.output}: VAE, psnr.json, reconstruction.png; "
          f"scaling factor {vae.config.scaling_factor:.5f}")


if __name__ == "__main__":
    run_script(main)
