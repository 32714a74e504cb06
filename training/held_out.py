"""The held-out loss: the training loss on volumes that are not trained on, to see over-fitting.

Timesteps and noises are fixed, so that two evaluations differ by the weights alone; the weights are
the moving average (EMA), which is what gets sampled. As many training volumes are measured in the
same way: over-fitting is a held-out loss that rises while theirs falls.

Nothing here draws from or changes what training uses: a run is bitwise the same without it.
"""
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from diffusion.gaussian_diffusion import NUM_TIMESTEPS, training_losses
from diffusion.vae import draw_latents
from mri import manifest
from training import latent_cache
from training.conditions import encode_entries
from utils import distributed
from utils.errors import UserError
from utils.precision import autocast
from utils.seeding import seeded_generator

DRAWS_PER_VOLUME = 4    # timesteps of each volume, which are also the batch: little memory
SEED = 2404             # of timesteps and noises: the same for every run
KEY_DIGITS = 12         # of a checksum, to tell whether two evaluations were of the same volumes


@dataclass(frozen=True)
class Volumes:
    """Volumes to measure.

    :param moments: (R, 2C, h, w) of the VAE's posterior: a tensor, or latent_cache.Latents
    :param labels: (N,) int64, class of each
    :param rows: (N,) int64, which of the R moments is that of each
    :param covariates: (N, K), see `models.ConditionEmbedder`
    """
    moments: object
    labels: torch.Tensor
    rows: torch.Tensor
    covariates: torch.Tensor

    def __len__(self):
        return len(self.rows)


class Measured(NamedTuple):
    """Mean losses (mse + vb) per volume."""
    held_out: float
    training: float     # of training volumes, at times and noises drawn in the same way


def encode_held_out(folder, split, vae, name, num_classes, conditions=None):
    """The volumes of a split, whose latents are encoded where the cache lacks them.

    :param folder: data folder
    :param split: "test" or "val"
    :param name: the VAE's name, for the file names of the cache
    :param conditions: Conditions that the model takes, or None
    :raises UserError: the split is empty, or has a class that the model does not have
    """
    header, entries = manifest.read_manifest(folder)
    entries = manifest.select_split(entries, split, folder)
    labels = torch.tensor([entry["class"] for entry in entries])
    if labels.max() >= num_classes:
        raise UserError(f"--num-classes {num_classes}: the split {split!r} of {folder} has class "
                        f"{labels.max()}; raise it, or give --val-every 0")
    latents = latent_cache.cached_latents(folder, header, entries, vae, name)
    covariates = encode_entries(conditions, entries, folder)
    if covariates is None:
        covariates = torch.zeros(len(labels), 0)
    return Volumes(latents, labels, torch.arange(len(labels)), covariates)


def some_training_volumes(moments, labels, covariates, variants, count):
    """At most `count` training volumes, evenly spaced over the manifest, without augmentation.

    :param moments: (volumes * variants, 2C, h, w), variant 0 of each volume is itself
    :param labels: (volumes,) int64
    :param covariates: (volumes, K)
    """
    count = min(count, len(labels))
    chosen = torch.arange(count) * len(labels) // count
    return Volumes(moments, labels[chosen], chosen * variants, covariates[chosen])


def stratified_timesteps(volumes):
    """Timesteps that cover 0…999 evenly: with N volumes one of each of 4 N equal parts.

    Of the four timesteps of a volume, one lies in each quarter of the range.

    :param volumes: N
    :return: (N, DRAWS_PER_VOLUME) int64
    """
    g = seeded_generator(SEED, 0)
    parts = volumes * DRAWS_PER_VOLUME
    places = [torch.randperm(volumes, generator=g) for _ in range(DRAWS_PER_VOLUME)]
    part = torch.stack(places, 1) + volumes * torch.arange(DRAWS_PER_VOLUME)
    within = torch.rand(part.shape, generator=g, dtype=torch.float64)
    return ((part + within) / parts * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)


@torch.no_grad()
def mean_loss(model, volumes, vae_config, *, precision, device):
    """Mean loss of the volumes at their fixed times and noises, over the tokens that are computed.

    Each process computes some of the volumes. A batch is one volume, whatever their number, and
    the mean is taken in the order of the volumes, so it does not depend on the number either.

    :param volumes: Volumes
    :param vae_config: mapping with scaling_factor and perhaps shift_factor
    """
    timesteps = stratified_timesteps(len(volumes))
    losses = torch.zeros(len(volumes), dtype=torch.float64)
    for i in range(distributed.rank(), len(volumes), distributed.world_size()):
        moments = volumes.moments[volumes.rows[i:i + 1]].expand(DRAWS_PER_VOLUME, -1, -1, -1)
        shape = (DRAWS_PER_VOLUME, moments.shape[1] // 2, *moments.shape[2:])
        g = seeded_generator(SEED, 1 + i)
        vae_noise, noise = (torch.randn(shape, generator=g).to(device) for _ in range(2))
        x0 = draw_latents(vae_config, moments.to(device), vae_noise)
        t = timesteps[i].to(device)
        y = volumes.labels[i].expand(DRAWS_PER_VOLUME).to(device)
        covariates = volumes.covariates[i].expand(DRAWS_PER_VOLUME, -1).to(device)
        with autocast(device, precision):
            found = training_losses(partial(model, covariates=covariates), x0, t, y, noise,
                                    model.kept_latents)
        losses[i] = found["loss"].double().mean()
    return float(distributed.sum_over_processes(losses).mean())


class HeldOutLoss:
    """Measures the loss of held-out volumes, and of training volumes in the same way.

    :param held_out, training: Volumes
    :param vae_config: mapping with scaling_factor and perhaps shift_factor
    :param split: "test" or "val", for the log
    :param every: steps between evaluations; the last step is measured, too
    :param precision: compute dtype
    """

    def __init__(self, held_out, training, vae_config, *, split, every, precision, device):
        self.held_out = held_out
        self.training = training
        self.vae_config = vae_config
        self.split = split
        self.every = every
        self.precision = precision
        self.device = device
        self.key = held_out.moments.checksum_and_mean(held_out.labels)[0][:KEY_DIGITS]

    def describe(self):
        """A line for the log."""
        return (f"held-out loss every {self.every} steps: {len(self.held_out)} volumes of the "
                f"split {self.split!r} and {len(self.training)} of the training volumes, "
                f"{DRAWS_PER_VOLUME} timesteps each, EMA weights")

    def is_due(self, step, is_last):
        return is_last or step % self.every == 0

    def measure(self, model, state):
        """The losses of the EMA weights; training continues with its own as if nothing had been.

        :param state: TrainingState
        :return: Measured
        """
        with state.averaged_weights():
            return Measured(*(mean_loss(model, volumes, self.vae_config, precision=self.precision,
                                        device=self.device)
                              for volumes in (self.held_out, self.training)))

    def entry(self, step, measured):
        """A line of log.jsonl; a loss that is not finite is null."""
        finite = [loss if abs(loss) < float("inf") else None for loss in measured]
        return dict(step=step, held_out_loss=finite[0], held_out_train_loss=finite[1],
                    split=self.split, key=self.key)
