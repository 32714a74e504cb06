#!/usr/bin/env python3
"""Samples mosaics and NIfTI volumes from a checkpoint of train.py.

    python sample.py --ckpt results/000-DiT-XL-2 --num-samples 32 --output samples/adni
    torchrun --nproc-per-node 4 sample.py --ckpt results/000-DiT-XL-2 --output samples/adni

The checkpoint records its model, VAE and NIfTI geometry. Sample i depends only on (seed, i), and
batch b holds the samples from b times --batch-size on, no matter which process computes it.
Processes of torchrun, and jobs with a --shard each, write into one folder; on a CPU the result is
bitwise identical to that of one process. Run the same command again to compute missing samples.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion import refiner as refiner_module
from diffusion import samplers
from diffusion import vae as vae_module
from diffusion.foreground import Foreground
from mri import manifest, samples_folder
from mri.sample_writer import SampleWriter, nifti_path
from reporting.sweep_figure import draw_sweep
from training import acceleration, checkpoint, checkpoint_choice, pretrained, refiner_record
from training.class_choice import ClassChoice, choose_class
from training.condition_choice import DEFAULT_COUNT, ConditionChoice, choose_condition
from training.conditions import recorded_conditions, with_covariates
from training.flags import add_condition_flags, add_sampling_flags
from utils import distributed, flags
from utils.escaping import printable
from utils.flags import make_parser, shard
from utils.precision import autocast, resolve_precision
from utils.progress import progress
from utils.seeding import seeded_generator

# flags that decide what a sample looks like, recorded in samples.json beside those of the Plan
RECIPE_FLAGS = ("seed", "sampler", "cfg_scale", "cfg_channels", "cfg_interval", "weights",
                "vae_precision")
# what earlier versions did not record
RECIPE_DEFAULTS = {"vae_precision": "fp32", "conditions": None,
                   "cfg_interval": list(samplers.EVERYWHERE)}


@dataclass(frozen=True)
class Plan:
    """What flags and checkpoint decide together."""
    header: dict            # of the checkpoint's data folder
    config: dict            # of its model
    num_steps: int          # sampling steps
    precision: str          # compute dtype of the transformer
    classes: ClassChoice
    conditions: ConditionChoice
    num_samples: int
    description: str        # for the NIfTI headers
    foreground: Foreground | None   # tokens that the model computes; None: all

    def class_of(self, seed, i):
        """Index of the class of sample i; as the noise, one for all samples of a sweep."""
        return self.classes.of_sample(seed, self.conditions.noise_index(i))

    def condition_of(self, seed, i):
        """The covariates that sample i is asked to have, {name: value}."""
        return self.conditions.of_sample(seed, i, self.class_of(seed, i))


# ------------------------------------------------------------------------------------------ flags

def parse_args():
    """The command line, checked as far as possible without the checkpoint."""
    p = make_parser(__doc__)
    add_model_and_output_flags(p)
    add_sampling_flags(p.add_argument_group("sampling"))
    add_condition_flags(p.add_argument_group("covariates"))
    add_speed_flags(p)
    args = p.parse_args()
    if min(1 if args.num_samples is None else args.num_samples, args.batch_size) < 1:
        raise UserError("--num-samples and --batch-size must be at least 1")
    sampler, steps = samplers.SAMPLERS[args.sampler], args.num_sampling_steps
    if steps is not None and not sampler.min_steps <= steps <= sampler.max_steps:
        raise UserError(f"--num-sampling-steps {steps}: {args.sampler} takes "
                        f"{sampler.min_steps} to {sampler.max_steps}")
    if not math.isfinite(args.cfg_scale):
        raise UserError(f"--cfg-scale {args.cfg_scale}: must be a finite number")
    check_cfg_interval(args)
    return args


def check_cfg_interval(args):
    low, high = args.cfg_interval
    everywhere = samplers.EVERYWHERE
    if not everywhere[0] <= low <= high <= everywhere[1]:
        raise UserError(f"--cfg-interval {low} {high}: must be two timesteps, the lower first, of "
                        f"{everywhere[0]} to {everywhere[1]}")
    if args.cfg_scale == 1 and (low, high) != everywhere:
        raise UserError(f"--cfg-interval {low} {high}: --cfg-scale 1 guides nowhere; give another "
                        "scale, or leave --cfg-interval out")


def add_model_and_output_flags(p):
    g = p.add_argument_group("model")
    g.add_argument("--ckpt", type=Path, required=True, metavar="FILE|DIR",
                   help="checkpoint of train.py; of a run folder, its newest checkpoint (or its "
                   "state, if it was interrupted before the first one); of a results folder, that "
                   "of the newest run that has one")
    g.add_argument("--base", metavar="FILE",
                   help="base weights; default: where train.py read them, or weights/")
    g.add_argument("--weights", choices=("ema", "raw"), default="ema",
                   help="trained parameters to use: their moving average (ema), or their values "
                   "at that step (raw)")
    g.add_argument("--vae", metavar="ema|mse|DIR",
                   help="VAE that decodes; default: the one that the model was trained with")
    g.add_argument("--refiner", type=Path, metavar="DIR",
                   help="refiner of train_refiner.py that makes the slices of each volume fit "
                   "together; mosaics then show the refined volumes; default: none")
    g = p.add_argument_group("output")
    g.add_argument("--output", type=Path, required=True, metavar="DIR",
                   help="samples folder, which gets mosaics/, nifti/ and samples.json")
    g.add_argument("--num-samples", type=int, metavar="N",
                   help=f"number of volumes; default: {DEFAULT_COUNT}, or one per row of "
                   "--conditions TABLE, or per value of --sweep")


def add_speed_flags(p):
    g = p.add_argument_group("speed and memory")
    g.add_argument("--batch-size", type=int, default=8, help="volumes per batch")
    g.add_argument("--shard", type=shard, metavar="I/N",
                   help="compute part I of N, counted from 1, such as one task of a job array; "
                   "default: everything")
    flags.add_precision_flag(g, default=None)
    flags.add_precision_flag(
        g, "the VAE; bf16 is twice as fast and changed the gray levels of the demo's VAE by 0.3 of "
        "255 (rms)", "--vae-precision", "fp32")
    flags.add_compile_flag(g)
    flags.add_device_flag(g)


# --------------------------------------------------------------------------------- samples folder

def missing_batches(args, num_samples):
    """The batches of this shard and process in which a sample is missing, as ranges of samples."""
    batches = [range(i, min(i + args.batch_size, num_samples))
               for i in range(0, num_samples, args.batch_size)]
    part, parts = args.shard or (1, 1)
    mine = batches[part - 1::parts][distributed.rank()::distributed.world_size()]
    return [batch for batch in mine
            if not all(nifti_path(args.output, i).is_file() for i in batch)]


# --------------------------------------------------------------------------------------- sampling

def make_plan(args, ckpt, metadata, sha256, refiner, device):
    """What the flags mean for this checkpoint. Raises UserError if they do not fit it."""
    header = manifest.check_header(metadata["header"], ckpt)
    if refiner:
        refiner.check_shape(header["size"], header["layout"], f"--ckpt {ckpt}")
    config = metadata["config"]
    channels = config["in_channels"]
    if args.cfg_channels is not None and not 1 <= args.cfg_channels <= channels:
        raise UserError(f"--cfg-channels {args.cfg_channels}: the latents have {channels}")
    pixels = header["grid"] * header["size"]
    if metadata["image_size"] != pixels:
        raise UserError(f"{ckpt}: its model makes mosaics of {metadata['image_size']} pixels, its "
                        f"header describes {pixels}; use another checkpoint")
    steps = args.num_sampling_steps
    classes = choose_class(args.class_label, metadata, header["classes"], ckpt,
                           config["num_classes"])
    choice = choose_condition(
        recorded_conditions(metadata, ckpt), classes.indices(), condition=args.condition,
        table=args.conditions, sweep=args.sweep, checkpoint=ckpt)
    return Plan(
        header=header, config=config,
        num_steps=samplers.SAMPLERS[args.sampler].default_steps if steps is None else steps,
        precision=resolve_precision(args.precision, device),
        classes=classes, conditions=choice, num_samples=choice.count(args.num_samples),
        description=checkpoint_choice.nifti_description(
            metadata, sha256, refiner and refiner.sha256),
        foreground=pretrained.read_foreground(ckpt, config))


def sample_batch(args, model, plan, batch, device):
    """Latents (N, C, h, w) of a batch of samples."""
    config = plan.config
    shape = (config["in_channels"], config["input_size"], config["input_size"])
    y = torch.tensor([plan.class_of(args.seed, i) for i in batch])
    generators = [seeded_generator(args.seed, plan.conditions.noise_index(i)) for i in batch]
    asked = plan.conditions.encode([plan.condition_of(args.seed, i) for i in batch])
    bar = tqdm(total=plan.num_steps, desc="steps", leave=False, disable=not sys.stderr.isatty())
    with bar, autocast(device, plan.precision):
        latents = samplers.sample(
            with_covariates(model, asked, device), shape, y, config["num_classes"], generators,
            args.sampler, plan.num_steps, args.cfg_scale, args.cfg_channels, device, bar.update,
            args.cfg_interval)
    if plan.foreground:
        latents = plan.foreground.fill(latents, model.kept_latents)
    if not latents.isfinite().all():
        raise UserError(f"--cfg-scale {args.cfg_scale:g}: samples {batch[0]} to {batch[-1]} are "
                        "not finite; use a lower scale, --precision fp32, or an earlier checkpoint")
    return latents


def write_batches(args, model, plan, vae, refiner, batches, device):
    """Samples the batches and writes what is missing. Returns the number of samples written."""
    written = 0
    describe = describe_samples(args, plan)
    with SampleWriter(args.output, plan.header, describe, args.batch_size) as writer:
        for batch in progress(batches, f"batches of {args.batch_size}"):
            # as a whole, even if one sample is missing: the bits of a sample depend on its batch
            for i, latent in zip(batch, sample_batch(args, model, plan, batch, device)):
                if not nifti_path(args.output, i).is_file():
                    pixels = vae_module.decode(vae, latent[None], args.vae_precision)[0]
                    writer.write(i, refiner.refine_mosaic(pixels) if refiner else pixels)
                    written += 1
    return written


def describe_samples(args, plan):
    """Index of a sample -> what its NIfTI header says of it."""
    return lambda i: plan.conditions.add_to(plan.description, plan.condition_of(args.seed, i))


def draw_sweep_if_complete(args, plan):
    """Draws sweep.png once all samples of a sweep are there, whichever process was the last."""
    name = plan.conditions.swept
    if name and all(nifti_path(args.output, i).is_file() for i in range(plan.num_samples)):
        headings = plan.conditions.headings(plan.num_samples)
        print(f"{draw_sweep(args.output, plan.header, name, headings)}: {len(headings)} samples of "
              "one noise")


def worker_name(args):
    """Which part of the work this is, for messages."""
    name = f"shard {args.shard[0]}/{args.shard[1]}: " if args.shard else ""
    if distributed.world_size() > 1:
        name += f"process {distributed.rank()}: "
    return name


def guidance_notes(args, num_steps):
    """A line on the steps that are guided, if not all of them are."""
    if args.cfg_interval == list(samplers.EVERYWHERE):
        return []
    low, high = args.cfg_interval
    count = samplers.guided_steps(args.sampler, num_steps, args.cfg_interval)
    return [f"--cfg-interval {low} {high}: {count} of {num_steps} steps are guided"]


def announce(who, chosen, metadata, plan, weights):
    """Prints which checkpoint is sampled, and warnings about it."""
    run, classes = checkpoint_choice.run_of(chosen.path), plan.header["classes"]
    run = printable(run or "not recorded")
    print(f"{who}{printable(chosen.path)}: run {run}, step {metadata['step']}, "
          + ", ".join(filter(None, (plan.classes.describe(classes), plan.conditions.describe()))),
          flush=True)
    average = checkpoint_choice.warn_of_average(metadata, weights)
    covariates = (plan.conditions.hint, *plan.conditions.warnings)
    for note in filter(None, (*chosen.notes, average, *covariates)):
        print(f"{who}note: {printable(note)}", file=sys.stderr, flush=True)


def refiner_notes(refiner, ckpt, recipe):
    """Lines about a refiner of something else, or about the one that there is for a checkpoint."""
    if refiner:
        return refiner.doubts(recipe["vae_sha256"], recipe["ckpt_sha256"], ckpt)
    hint = refiner_record.refiner_hint(ckpt)
    return [hint] if hint else []


def main():
    args = parse_args()
    distributed.end_with_launcher()
    device = distributed.own_device(args.device)
    chosen = checkpoint_choice.choose_checkpoint(args.ckpt)
    ckpt = chosen.path
    metadata, sha256 = checkpoint.read_metadata(ckpt), pretrained.sha256_of_weights(ckpt)
    refiner = refiner_module.load_refiner(args.refiner, device) if args.refiner else None
    plan = make_plan(args, ckpt, metadata, sha256, refiner, device)
    who = worker_name(args)
    announce(who, chosen, metadata, plan, args.weights)
    vae = vae_module.load_decoder(metadata, args.vae, device, ckpt)
    recipe = dict(ckpt_sha256=sha256, vae_sha256=vae_module.fingerprint(vae),
                  num_sampling_steps=plan.num_steps, class_label=plan.classes.label,
                  precision=plan.precision, refiner_sha256=refiner and refiner.sha256,
                  conditions=plan.conditions.recipe(),
                  **{name: getattr(args, name) for name in RECIPE_FLAGS})
    for note in (*refiner_notes(refiner, ckpt, recipe), *guidance_notes(args, plan.num_steps)):
        print(f"{who}note: {printable(note)}", file=sys.stderr, flush=True)
    samples_folder.planned_count(args.output, plan.num_samples, recipe, RECIPE_DEFAULTS)
    batches = missing_batches(args, plan.num_samples)
    if not batches:
        part = "its part of" if who else "all of"
        print(f"{who}{args.output} already has {part} the {plan.num_samples} samples")
        draw_sweep_if_complete(args, plan)
        return
    model, _ = pretrained.restore_model(ckpt, args.weights, args.base)
    compile_message = acceleration.prepare_for_sampling(model, device, plan.precision, args.compile)
    if compile_message:
        print(f"{who}{compile_message}", file=sys.stderr, flush=True)
    samples_folder.begin(
        args.output, plan.num_samples, recipe, defaults=RECIPE_DEFAULTS, header=plan.header,
        class_of=lambda i: plan.class_of(args.seed, i),
        condition_of=plan.conditions.names and (lambda i: plan.condition_of(args.seed, i)),
        condition_names=plan.conditions.names,
        made_by={"provenance": checkpoint_choice.provenance(ckpt, metadata, args.refiner),
                 "description": plan.description})
    written = write_batches(args, model, plan, vae, refiner, batches, device)
    print(f"{who}{args.output}: {written} mosaics and NIfTI volumes, step {metadata['step']}, "
          f"{args.sampler} {plan.num_steps} steps")
    draw_sweep_if_complete(args, plan)


if __name__ == "__main__":
    run_script(main)
