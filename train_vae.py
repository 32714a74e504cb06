#!/usr/bin/env python3
"""Trains a VAE on mosaics, or adapts a pretrained one's decoder to them.

    python train_vae.py --data-path data/adni --init weights/sd-vae-ft-mse --tune decoder --output vae/adni
    python train_vae.py --data-path data/t1w data/t2w --init tiny --tune all --output vae/tiny

`--tune decoder` leaves the encoder, so the latent space, as it is: a pretrained DiT still fits. `--init tiny` is a small
VAE of factor 4 and 8 channels for CPUs. Ends with the PSNR of held-out volumes after the way volume -> mosaic -> latent ->
mosaic -> volume, and a figure of them: what the VAE loses, no DiT can give back.
"""
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from diffusion import vae as latents
from metrics.psnr import psnr, slice_psnr
from mri import geometry, mosaic
from mri.geometry import voxel_sizes
from mri.manifest import read_manifest, select_split
from mri.mosaic_files import read_mosaics
from reporting import figures
from utils.errors import UserError, run_script
from utils.files import atomic_folder, require_new_folder, write_text
from utils.flags import add_device_flag, make_parser, positive, whole_number
from utils.progress import progress


def tiny_vae():
    """A small AutoencoderKL: factor 4, 8 latent channels, no attention, so that it may be trained on crops."""
    blocks = 3
    return AutoencoderKL(block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
                         down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
                         mid_block_add_attention=False)


def crops(pixels, n, size, step, generator):
    """n random crops of the mosaics, (n, 3, size, size), cut at multiples of `step` pixels."""
    which = torch.randint(len(pixels), (n,), generator=generator)
    corners = torch.randint((pixels.shape[2] - size) // step + 1, (n, 2), generator=generator) * step
    return torch.stack([pixels[i, :, y:y + size, x:x + size] for i, (y, x) in zip(which, corners.tolist())])


def loss_of(vae, x, noise_generator, encoder_trains, kl_weight):
    """Mean squared error of the round trip, which is what PSNR judges, and the KL divergence where the encoder trains."""
    with torch.set_grad_enabled(encoder_trains):
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=noise_generator).to(x)
        z = posterior.mean + posterior.std * noise
    out = vae.decode(z).sample
    loss = F.mse_loss(out, x)
    return loss + kl_weight * posterior.kl().mean() / z[0].numel() if encoder_trains else loss






@dataclass
class Folder:
    """A data folder: what trains of it, and the volumes that judge."""
    path: Path
    header: dict
    train: list
    judges: list

    @classmethod
    def read(cls, path):
        header, entries = read_manifest(path)
        held_out = [v for v in entries if v["split"] == "test"]
        if not held_out:
            print(f"{path}: has no test split, so the PSNR below is of volumes that were trained on")
        return cls(path, header, select_split(entries, "train", path), held_out or entries)


def judge(vae, folder, entry):
    """PSNR of one volume after volume -> mosaic -> latent -> mosaic -> volume, and both volumes."""
    size, layout = folder.header["size"], folder.header["layout"]
    sheet = read_mosaics(folder.path, folder.header, [entry])
    moments = latents.encode_moments(vae, sheet)
    z = latents.draw_latents(vae.config, moments, torch.zeros_like(moments.chunk(2, 1)[0]))
    real, fake = (mosaic.untile(m[0], size, layout) for m in (sheet, latents.decode(vae, z)))
    row = dict(folder=str(folder.path), id=entry["id"], split=entry["split"], volume=psnr(real, fake),
               **{view: slice_psnr(real, fake, axis) for view, axis in geometry.NORMAL.items()})
    return row, (real, fake)


def main():
    p = make_parser(__doc__)
    p.add_argument("--data-path", type=Path, required=True, nargs="+", help="data folders; train splits train, test splits judge")
    p.add_argument("--init", required=True, metavar="PATH|tiny", help="VAE to begin with (ema, mse, or a folder), or tiny")
    p.add_argument("--tune", choices=("decoder", "all"), default="decoder", help="what trains")
    p.add_argument("--max-steps", type=int, default=2000, help="optimizer steps")
    p.add_argument("--lr", type=positive, default=1e-4, help="peak learning rate of AdamW, cosine to zero")
    p.add_argument("--batch-size", type=int, default=4, help="crops a step")
    p.add_argument("--crop", type=int, default=256, help="side of a crop, pixels; at most the mosaic's")
    p.add_argument("--kl-weight", type=float, default=1e-5, help="of the KL divergence per latent, where the encoder trains")
    p.add_argument("--seed", type=whole_number, default=0, help="of weights, crops and noise")
    add_device_flag(p)
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic; weights stay fp32")
    p.add_argument("--log-every", type=int, default=50, help="steps")
    p.add_argument("--output", type=Path, required=True, help="new folder: a diffusers VAE, psnr.json, reconstruction.png")
    args = p.parse_args()

    require_new_folder(args.output)
    if args.init == "tiny" and args.tune != "all":
        raise UserError("--init tiny: begins with random weights, so the encoder must train too; add --tune all")
    if min(args.max_steps, args.batch_size, args.log_every) < 1:
        raise UserError("--max-steps, --batch-size and --log-every must be at least 1")
    folders = [Folder.read(path) for path in args.data_path]
    header = folders[0].header
    for f in folders[1:]:
        if (f.header["size"], f.header["layout"]) != (header["size"], header["layout"]):
            raise UserError(f"--data-path {f.path}: another size or layout than {folders[0].path}; preprocess both alike")
    train = np.concatenate([read_mosaics(f.path, f.header, f.train) for f in folders])
    torch.manual_seed(args.seed)
    vae = tiny_vae() if args.init == "tiny" else latents.load_vae(args.init, flag="--init")
    factor = latents.downsampling_factor(vae)
    side = train.shape[1]
    size = min(args.crop, side) // factor * factor
    if side % factor or size < factor:
        raise UserError(f"--crop {args.crop}: mosaics of {side} pixels and a VAE of factor {factor} do not go together")

    vae.to(args.device, memory_format=torch.channels_last).requires_grad_(False)
    trained = [vae] if args.tune == "all" else [vae.decoder, vae.post_quant_conv]
    parameters = [q.requires_grad_() for m in trained for q in m.parameters()]
    vae.train()
    print(f"{len(train)} mosaics of {side} x {side}; factor {factor}, {vae.config.latent_channels} channels; "
          f"{sum(q.numel() for q in parameters):,} of {sum(q.numel() for q in vae.parameters()):,} parameters train")
    pixels = latents.to_pixels(train)
    # fused on CPUs alone: on a GPU it wants gradients laid out as their weights, which 1 x 1 convolutions in channels_last need not be
    optimizer = torch.optim.AdamW(parameters, args.lr, betas=(0.9, 0.99), weight_decay=0,
                                  fused=torch.device(args.device).type == "cpu" or None)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / min(100, args.max_steps), 1)
                                                 * 0.5 * (1 + np.cos(np.pi * s / args.max_steps)))
    generator = torch.Generator().manual_seed(args.seed)
    history, start = [], time.monotonic()
    for step in progress(range(1, args.max_steps + 1), "VAE steps"):
        x = crops(pixels, args.batch_size, size, factor, generator).to(args.device, memory_format=torch.channels_last)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_of(vae, x, generator, args.tune == "all", args.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % args.log_every == 0 or step == args.max_steps:
            history.append(dict(step=step, loss=loss.item(), seconds=round(time.monotonic() - start, 1)))
            if not np.isfinite(history[-1]["loss"]):
                raise UserError(f"--lr {args.lr:g}: the loss is {history[-1]['loss']} at step {step}; use a lower one")
    vae.eval().requires_grad_(False)

    if args.tune == "all":  # latents of unit variance for the DiT, as Stable Diffusion's constant makes them
        moments = latents.encode_moments(vae, train[:64])
        mean, std = moments.chunk(2, 1)
        vae.register_to_config(scaling_factor=float(1 / (mean.var() + (std ** 2).mean()).sqrt()))
    report, shown = [], []
    for f in folders:
        rows = [judge(vae, f, entry) for entry in progress(f.judges, f"round trips of {f.path}")]
        report += [row for row, _ in rows]
        row, (real, fake) = rows[0]
        shown += [(f"{row['id']}: real", real), (f"through the VAE, {row['volume']:.1f} dB", fake)]
    means = {k: float(np.mean([r[k] for r in report])) for k in ("volume", *geometry.VIEWS)}
    with atomic_folder(args.output) as out:
        vae.save_pretrained(out)
        write_text(out / "psnr.json", json.dumps(dict(unit="dB", mean=means, volumes=report, steps=history, args=vars(args)),
                                                 indent=1, default=str) + "\n")
        figures.montage(out / "reconstruction.png", shown, voxel_sizes(header["affine"]))
    print(f"PSNR of {len(report)} volumes: {means['volume']:.2f} dB; mean over slices: "
          + ", ".join(f"{v} {means[v]:.2f}" for v in geometry.VIEWS))
    print(f"{args.output}: VAE, psnr.json, reconstruction.png; scaling factor {vae.config.scaling_factor:.5f}")


if __name__ == "__main__":
    run_script(main)
