#!/usr/bin/env python3
"""Trains a refiner: a small 3D network that makes the slices of sampled volumes fit together.

    python train_refiner.py --data-path data/adni --vae ema --ckpt results/000-DiT-XL-2 \\
        --output refiner/adni
    python sample.py --ckpt results/000-DiT-XL-2 --refiner refiner/adni --output samples/refined

It learns to restore real volumes of the train split after a round trip through the VAE, and with
--ckpt also after they were partly noised and sampled again by the model. The folder gets the
refiner, refiner.json with the numbers of held-out volumes before and after, and a figure. Training
takes minutes; if it is interrupted, it starts over. The same seed on the same machine gives the
same refiner.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion import refiner as refiner_module
from diffusion import samplers
from diffusion import vae as vae_module
from diffusion.foreground import Foreground
from diffusion.gaussian_diffusion import NUM_TIMESTEPS
from metrics import refinement
from mri import manifest, mosaic
from mri.geometry import voxel_sizes
from mri.mosaic_files import read_mosaics
from reporting import figures
from training import acceleration, checkpoint_choice, pretrained, refiner_pairs, refiner_record
from training.conditions import Conditions, encode_entries
from training.refiner_loss import refiner_loss
from utils import flags
from utils.files import atomic_folder, require_new_folder, write_text
from utils.precision import autocast
from utils.progress import progress
from utils.seeding import seeded_generator

WARM_UP_STEPS = 50          # over which the learning rate rises to its peak
MAX_GRADIENT_NORM = 0.02    # a few times the usual one: a rare larger one would end in divergence
LAST_TIMESTEP = NUM_TIMESTEPS - 1
HELD_OUT_SEED = 1           # added to --seed for the noise of held-out volumes


# ------------------------------------------------------------------------------------------- data

@dataclass(frozen=True)
class Data:
    """A data folder's header, and manifest entries."""
    header: dict
    train: list
    held_out: list
    split: str      # that the held-out ones are of


def read_data(folder, count, seed):
    """Reads a manifest and chooses at most `count` volumes to train on and as many held-out ones.

    Held-out ones are of the val split, or if there is none of the test split. Without either, the
    numbers are of volumes that were trained on.
    """
    header, entries = manifest.read_manifest(folder)
    of_split = {split: [entry for entry in entries if entry["split"] == split]
                for split in manifest.SPLITS}
    train = manifest.select_split(entries, "train", folder)
    split = next((split for split in ("val", "test") if of_split[split]), "train")
    if split == "train":
        print(f"{folder}: has no val or test split, so the numbers below are of volumes that were "
              "trained on")
    if len(train) > count:
        print(f"{folder}: trains on {count} of the {len(train)} volumes (--pairs)")
        chosen = torch.randperm(len(train), generator=seeded_generator(seed, 0))[:count]
        train = [train[i] for i in sorted(chosen.tolist())]
    return Data(header, train, of_split[split][:count], split)


@dataclass(frozen=True)
class Denoiser:
    """The model whose samples are to be refined."""
    model: torch.nn.Module
    conditions: Conditions | None   # covariates that it takes
    foreground: Foreground | None   # tokens that it computes; None: all
    steps: np.ndarray       # as training.refiner_pairs.steps_between gives them
    sha256: str             # of the checkpoint
    path: Path


def load_models(args, data):
    """The VAE, and the Denoiser of --ckpt or None.

    :raises UserError: they do not fit each other or the data folder
    """
    if args.ckpt is None:
        return vae_module.load_vae(args.vae, args.device), None
    chosen = checkpoint_choice.choose_checkpoint(args.ckpt)
    for note in chosen.notes:
        print(f"note: {note}")
    model, metadata = pretrained.restore_model(chosen.path, base=args.base)
    conditions = refiner_pairs.check_data(metadata, chosen.path, data.header,
                                          data.train + data.held_out, args.data_path)
    vae = vae_module.load_decoder(metadata, args.vae, args.device, chosen.path)
    acceleration.prepare_for_sampling(model, args.device, args.precision, compiled=False)
    steps = refiner_pairs.steps_between(*args.timesteps, args.num_sampling_steps)
    sha256 = pretrained.sha256_of_weights(chosen.path)
    foreground = pretrained.read_foreground(chosen.path, metadata["config"])
    return vae, Denoiser(model, conditions, foreground, steps, sha256, chosen.path)


def make_pairs(args, data, entries, vae, denoiser, count, seed):
    """Pairs of both kinds, of these entries.

    :param count: number of resampled volumes
    """
    mosaics = read_mosaics(args.data_path, data.header, entries)
    pairs, moments = refiner_pairs.round_trips(vae, mosaics, data.header)
    if denoiser is None:
        return pairs
    labels = np.array([entry["class"] for entry in entries])
    return refiner_pairs.joined(pairs, *refiner_pairs.resampled(
        denoiser.model, vae, moments, labels, count, denoiser.steps, header=data.header,
        num_steps=args.num_sampling_steps, seed=seed, precision=args.precision,
        covariates=encode_entries(denoiser.conditions, entries, args.data_path),
        foreground=denoiser.foreground))


# --------------------------------------------------------------------------------------- training

def train(network, pairs, args):
    """Trains on random crops; step s draws from (seed, s).

    :return: list of dicts of step, loss and seconds, one for each log line
    """
    crop = min(args.crop, pairs.inputs.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, args.max_steps))
    history = []
    start = time.monotonic()
    for step in progress(range(1, args.max_steps + 1), "refiner steps"):
        batch = refiner_pairs.draw_batch(
            pairs, args.batch_size, crop, seeded_generator(args.seed, step))
        loss = loss_of(network, batch, args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % args.log_every == 0 or step == args.max_steps:
            if not loss.isfinite():
                raise UserError(f"--lr {args.lr:g}: the loss is {loss.item()} at step {step}; "
                                "use a lower learning rate")
            seconds = round(time.monotonic() - start, 1)
            history.append(dict(step=step, loss=loss.item(), seconds=seconds))
    return history


def loss_of(network, batch, args):
    """The objective of a batch."""
    inputs, targets = (crops.to(args.device).float() / 255
                       for crops in (batch.inputs, batch.targets))
    place = (batch.first_slices[:, None] + torch.arange(inputs.shape[3])) % network.places
    with autocast(args.device, args.precision):
        refined = network(inputs, place.to(args.device))
    return refiner_loss(refined.float(), targets, batch.timesteps.to(args.device),
                        args.gradient_weight, args.halving_timestep)


def learning_rate_factor(step, max_steps):
    """Learning rate of step 0, 1, … over its peak: a linear warm-up, times half a cosine."""
    warm_up = min((step + 1) / min(WARM_UP_STEPS, max_steps), 1)
    return warm_up * 0.5 * (1 + np.cos(np.pi * step / max_steps))


# ------------------------------------------------------------------------------------- evaluation

def compare(network, pairs):
    """Numbers of held-out volumes before and after refining, for each kind of input.

    :return: {"KIND, before": of `metrics.refinement.numbers`, …}; refined volumes, like the inputs
    :raises UserError: training has failed
    """
    refined = np.stack([refiner_module.refine_volume(network, one)
                        for one in progress(pairs.inputs, "refined volumes")])
    if any(one.min() == one.max() for one in refined):
        raise UserError("--lr: training diverged, as a refined volume is constant; use a lower "
                        "learning rate")
    found = {}
    for is_resampled, name in ((False, "round trips"), (True, "resampled")):
        chosen = pairs.kind(is_resampled)
        if len(chosen):
            targets = pairs.targets[pairs.target_of[chosen]]
            found[f"{name}, before"] = refinement.numbers(pairs.inputs[chosen], targets)
            found[f"{name}, after"] = refinement.numbers(refined[chosen], targets)
    return found, refined


def draw(path, pairs, refined, header):
    """A figure of a held-out volume before and after; of the resampled kind if there is one."""
    i = int(pairs.timesteps.argmax())
    t = pairs.timesteps[i]
    columns = [("real", pairs.targets[pairs.target_of[i]]),
               (f"noised to t = {t}, sampled again" if t else "through the VAE", pairs.inputs[i]),
               ("refined", refined[i])]
    figures.montage(path, columns, voxel_sizes(header["affine"]), affine=header["affine"])


# ---------------------------------------------------------------------------------------- command

def parse_flags():
    parser = flags.make_parser(__doc__)
    g = parser.add_argument_group("data and output")
    g.add_argument("--data-path", type=Path, required=True, metavar="DIR",
                   help="data folder; the refiner trains on its train split")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="new folder for the refiner, refiner.json and refinement.png")
    g = parser.add_argument_group("what is refined")
    g.add_argument("--vae", metavar="ema|mse|DIR",
                   help="VAE that decodes; default: the one that --ckpt was trained with")
    g.add_argument("--ckpt", type=Path, metavar="FILE|DIR",
                   help="checkpoint of train.py, or its run folder, whose samples are to be "
                   "refined; default: real volumes that went through the VAE alone")
    g.add_argument("--base", metavar="FILE",
                   help="base weights of --ckpt; default: where train.py read them, or weights/")
    g = parser.add_argument_group("pairs")
    g.add_argument("--pairs", type=int, default=200, metavar="N",
                   help="number of volumes that --ckpt samples again, and largest number of "
                   "training volumes to use; all are kept in memory")
    g.add_argument("--timesteps", type=flags.whole_number, nargs=2, default=(40, 220),
                   metavar=("LOWEST", "HIGHEST"),
                   help="range of timesteps, 0 to 999, that real volumes are noised to")
    g.add_argument("--num-sampling-steps", type=int, default=50, metavar="N",
                   help="steps of the full ddpm sampler; a volume that was noised to a timestep "
                   "takes the steps from there on")
    g = parser.add_argument_group("training")
    g.add_argument("--max-steps", type=int, default=1000, help="number of optimizer steps")
    g.add_argument("--batch-size", type=int, default=8, help="crops per step")
    g.add_argument("--crop", type=int, default=24, help="side of a crop, voxels; at most the "
                   "volume's")
    g.add_argument("--lr", type=flags.positive, default=5e-3,
                   help="peak learning rate of AdamW; it falls to zero along half a cosine")
    g.add_argument("--gradient-weight", type=flags.non_negative, default=0.003,
                   help="weight of the squared relative error of the root gradient energy, which "
                   "keeps detail; 0: squared error alone")
    g.add_argument("--halving-timestep", type=flags.positive, default=100.0, metavar="T",
                   help="timestep at which the weight of a pair's squared error is half that of a "
                   "round trip")
    g.add_argument("--seed", type=flags.whole_number, default=0,
                   help="random seed of weights, pairs and crops")
    g = parser.add_argument_group("computation")
    flags.add_precision_flag(g, "the DiT and of the refiner in training")
    flags.add_device_flag(g)
    g.add_argument("--log-every", type=int, default=50,
                   help="steps between two losses in refiner.json")
    args = parser.parse_args()
    check_flags(args)
    return args


def check_flags(args):
    require_new_folder(args.output)
    if args.vae is None and args.ckpt is None:
        raise UserError("--vae: name the VAE that decodes, or a --ckpt that records it")
    if min(args.pairs, args.max_steps, args.batch_size, args.log_every) < 1:
        raise UserError("--pairs, --max-steps, --batch-size and --log-every must be at least 1")
    if args.crop < refiner_module.FOLD or args.crop % refiner_module.FOLD:
        raise UserError(f"--crop {args.crop}: must be a positive multiple of "
                        f"{refiner_module.FOLD}")
    low, high = args.timesteps
    ddpm = samplers.SAMPLERS["ddpm"]
    if not ddpm.min_steps <= args.num_sampling_steps <= ddpm.max_steps:
        raise UserError(f"--num-sampling-steps {args.num_sampling_steps}: must be "
                        f"{ddpm.min_steps} to {ddpm.max_steps}")
    if not 1 <= low <= high <= LAST_TIMESTEP or not len(
            refiner_pairs.steps_between(low, high, args.num_sampling_steps)):
        raise UserError(f"--timesteps {low} {high}: must be a range within 1 to {LAST_TIMESTEP} "
                        f"that one of the {args.num_sampling_steps} sampling steps starts in")


def main():
    args = parse_flags()
    data = read_data(args.data_path, args.pairs, args.seed)
    vae, denoiser = load_models(args, data)
    torch.manual_seed(args.seed)
    network = refiner_module.RefinerNet(mosaic.SLICES_PER_TILE[data.header["layout"]])
    network.to(args.device, memory_format=torch.channels_last_3d)
    with atomic_folder(args.output) as folder:  # before the work, so that it can be created
        pairs = make_pairs(args, data, data.train, vae, denoiser, args.pairs, args.seed)
        held_out = make_pairs(args, data, data.held_out, vae, denoiser, len(data.held_out),
                              args.seed + HELD_OUT_SEED)
        print(f"{len(pairs.inputs)} pairs of {len(pairs.targets)} volumes; "
              f"{sum(p.numel() for p in network.parameters()):,} parameters train")
        history = train(network, pairs, args)
        found, refined = compare(network, held_out)
        config = refiner_module.save_refiner(
            folder, network, size=data.header["size"], layout=data.header["layout"],
            vae_sha256=vae_module.fingerprint(vae),
            ckpt_sha256=denoiser.sha256 if denoiser else None)
        report = dict(held_out=found, split=data.split, volumes=len(held_out.targets),
                      steps=history, args=vars(args))
        write_text(folder / "refiner.json", json.dumps(report, indent=1, default=str) + "\n")
        draw(folder / "refinement.png", held_out, refined, data.header)
    problem = denoiser and refiner_record.record_refiner(
        denoiser.path, args.output, config["sha256"])
    heading = f"{len(held_out.targets)} {data.split} volumes"
    print("\n".join(refinement.table(heading, found)))
    if problem:
        print(f"note: {problem}")
    print(f"{args.output}: refiner {config['sha256'][:12]}, refiner.json, refinement.png")


if __name__ == "__main__":
    run_script(main)
