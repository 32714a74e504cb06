"""The same seeds of a trained model by each sampler: time, and how far the results differ."""
import time
from dataclasses import dataclass

import numpy as np
import torch

from diffusion import samplers, vae
from diffusion.foreground import Foreground
from metrics import mmd, ms_ssim
from metrics.volume_sets import find_set
from mri import geometry, manifest, mosaic
from reporting import figures
from training import acceleration, pretrained
from training.condition_choice import ConditionChoice, choose_as_in_training
from training.conditions import with_covariates
from utils.files import atomic_folder, write_text
from utils.precision import autocast
from utils.seeding import seeded_generator

FEW_STEPS = 100     # samplers whose default is fewer are also compared at twice as many


def _ways(all_samplers):
    """(sampler, steps) of each sampler at its default number of steps, and with few at twice it."""
    for name, sampler in all_samplers.items():
        if sampler.default_steps < FEW_STEPS:
            yield name, 2 * sampler.default_steps
        yield name, sampler.default_steps


WAYS = tuple(_ways(samplers.SAMPLERS))
# times are compared with the slowest; results with the deterministic one of many steps, whose path
# dpm++ and unipc approximate
SLOWEST = ("ddpm", samplers.SAMPLERS["ddpm"].default_steps)
REFERENCE = ("ddim", samplers.SAMPLERS["ddim"].default_steps)


@dataclass(frozen=True)
class TrainedModel:
    """A finetuned model, ready to sample, and what its latents mean."""
    network: torch.nn.Module
    autoencoder: torch.nn.Module
    config: dict            # constructor arguments of the network, from its checkpoint
    header: dict            # of the manifest that it was trained on
    device: str
    precision: str          # compute dtype of the network
    message: str | None     # what to tell the user about compilation
    foreground: Foreground | None   # tokens that the network computes; None: all
    class_index: int = 0    # of all samples
    conditions: ConditionChoice = ConditionChoice()     # what is asked for


def load(checkpoint, *, base, vae_name, device, precision, compiled):
    """Restores a checkpoint of train.py, and the VAE that decodes its latents.

    :param base: file of base weights; None: where train.py read them
    :param vae_name: as diffusion.vae.load_decoder takes it
    :param compiled: as training.acceleration.accelerate_blocks takes it
    :return: TrainedModel
    :raises UserError: something is missing, damaged, or does not fit
    """
    network, metadata = pretrained.restore_model(checkpoint, base=base)
    header = manifest.check_header(metadata["header"], checkpoint)
    autoencoder = vae.load_decoder(metadata, vae_name, device, checkpoint)
    message = acceleration.prepare_for_sampling(network, device, precision, compiled)
    conditions, class_index = choose_as_in_training(metadata, checkpoint)
    return TrainedModel(network, autoencoder, metadata["config"], header, device, precision,
                        message, pretrained.read_foreground(checkpoint, metadata["config"]),
                        class_index, conditions)


def read_volumes(folder):
    """Volumes of the test split of a data folder, (N, D, D, D) uint8."""
    found = find_set(folder, None, "--real")
    return np.stack([found.read(i) for i in range(len(found))])


def draw(trained, sampler, steps, num_samples, seed):
    """Samples volumes; sample i depends on (seed, i) alone.

    :param trained: TrainedModel
    :param sampler: key of diffusion.samplers.SAMPLERS
    :param steps: sampling steps
    :return: (N, D, D, D) uint8
    """
    config = trained.config
    shape = (config["in_channels"], config["input_size"], config["input_size"])
    labels = torch.full((num_samples,), trained.class_index)
    generators = [seeded_generator(seed, i) for i in range(num_samples)]
    asked = trained.conditions.encode(
        [trained.conditions.of_sample(seed, i, trained.class_index) for i in range(num_samples)])
    with autocast(trained.device, trained.precision):
        z = samplers.sample(
            with_covariates(trained.network, asked, trained.device), shape, labels,
            config["num_classes"], generators, sampler=sampler, num_steps=steps,
            device=trained.device)
    if trained.foreground:
        z = trained.foreground.fill(z, trained.network.kept_latents)
    mosaics = vae.decode(trained.autoencoder, z)
    header = trained.header
    return np.stack([mosaic.untile(m, header["size"], header["layout"]) for m in mosaics])


def measure(trained, num_samples, seed, turns):
    """Samples the same seeds by all WAYS, alternating.

    :param turns: how often each is timed
    :return: {way: median seconds}, {way: (N, D, D, D) uint8 volumes}
    """
    draw(trained, "dpm++", 3, num_samples, seed)  # to warm up
    times = {way: [] for way in WAYS}
    drawn = {}
    for _ in range(turns):
        for sampler, steps in WAYS:
            start = time.perf_counter()
            drawn[sampler, steps] = draw(trained, sampler, steps, num_samples, seed)
            times[sampler, steps].append(time.perf_counter() - start)
    return {way: float(np.median(seconds)) for way, seconds in times.items()}, drawn


def table(seconds, drawn, real, device):
    """Lines of a Markdown table of what `measure` returned.

    :param real: (M, D, D, D) uint8 real volumes for MMD, or None
    """
    count = len(drawn[REFERENCE])
    name, steps = REFERENCE
    headings = ["sampler, steps", f"s for {count}", "times faster",
                f"gray levels from {name} {steps}", "MS-SSIM"]
    if real is not None:
        headings.append("linear MMD")
    lines = [_markdown_row(headings), "|---" * len(headings) + "|"]
    for sampler, steps in WAYS:
        volumes = drawn[sampler, steps]
        cells = [
            f"{sampler} {steps}",
            f"{seconds[sampler, steps]:.3g}",
            f"{seconds[SLOWEST] / seconds[sampler, steps]:.1f}",
            f"{_rms_difference(volumes, drawn[REFERENCE]):.1f}",
            f"{ms_ssim.ms_ssim_pairs(volumes, device=device).mean():.4f}",
        ]
        if real is not None:
            cells.append(f"{mmd.mmd_linear(real, volumes, device=device):.1f}")
        lines.append(_markdown_row(cells))
    return lines


def _markdown_row(cells):
    return "| " + " | ".join(cells) + " |"


def _rms_difference(a, b):
    return np.sqrt(np.mean((a.astype(np.float32) - b) ** 2))


def write(folder, lines, drawn, header):
    """Writes samplers.md, the table, and samplers.png, volumes of the same seeds side by side."""
    groups = {f"{sampler} {steps}": drawn[sampler, steps] for sampler, steps in WAYS}
    with atomic_folder(folder) as temporary:
        write_text(temporary / "samplers.md", "\n".join(lines) + "\n")
        figures.gallery(temporary / "samplers.png", groups, geometry.voxel_sizes(header["affine"]),
                        affine=header["affine"])
