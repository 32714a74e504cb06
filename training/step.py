"""One training step: its random draws, its batch, its gradients and its learning rate.

Step s draws everything it needs from (seed, s) for the whole global batch, and each process takes
its share. So the state after a step depends on the steps before it alone, not on when or by how
many processes they were computed, up to the rounding of sums.

Nothing in a step waits for the device: whether loss and gradient are finite is decided and acted
on there; the host learns of it when it asks (`training.state.TrainingState.settle`).
"""
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from diffusion.gaussian_diffusion import NUM_TIMESTEPS, training_losses
from diffusion.vae import draw_latents
from training.token_drop import network_and_positions
from utils import distributed
from utils.flags import CPU_CORES
from utils.precision import autocast
from utils.seeding import seeded_generator

STEPS_AHEAD = 4     # prepared for a GPU, each in a thread: one alone may be slower than the GPU
COVARIATES = 2  # purpose of a generator of its own: other draws of a step stay what they were
LR_SCHEDULES = ("constant", "cosine")


class Draws(NamedTuple):
    """Everything random of one step's global batch of N."""
    index: torch.Tensor          # (N,) volumes
    t: torch.Tensor              # (N,) timesteps
    noise: torch.Tensor          # (N, C, h, w), added to the latents
    vae_noise: torch.Tensor      # (N, C, h, w), draws the latents from their moments
    drop_label: torch.Tensor     # (N,) bool
    variant: torch.Tensor        # (N,) of the volumes
    drop_covariate: torch.Tensor    # (N, K) bool
    passing: torch.Tensor        # (N, n) tokens that pass all blocks, ascending; n = 0: all pass


def draw_step(seed, step, volumes, batch_size, latent_shape, label_dropout, variants=1,
              num_covariates=0, condition_dropout=0.0, tokens=0, passing=0):
    """Draws a step's global batch from (seed, step) alone.

    :param volumes: number of volumes to draw from, with replacement
    :param latent_shape: (C, h, w)
    :param label_dropout: probability of the null class
    :param variants: number of variants of each volume to draw from
    :param num_covariates: K
    :param condition_dropout: probability of leaving out a covariate, of each on its own
    :param tokens: number of tokens that the model computes
    :param passing: number of these to draw for each volume; 0: none are drawn, all pass
    """
    g = seeded_generator(seed, step)
    of_covariates = seeded_generator(seed, step, purpose=COVARIATES)
    # the order of these calls is part of the format: it decides what a resumed run draws
    return Draws(
        index=torch.randint(volumes, (batch_size,), generator=g),
        t=torch.randint(NUM_TIMESTEPS, (batch_size,), generator=g),
        noise=torch.randn(batch_size, *latent_shape, generator=g),
        vae_noise=torch.randn(batch_size, *latent_shape, generator=g),
        drop_label=torch.rand(batch_size, generator=g) < label_dropout,
        variant=torch.randint(variants, (batch_size,), generator=g),
        drop_covariate=torch.rand(batch_size, num_covariates,
                                  generator=of_covariates) < condition_dropout,
        passing=torch.stack([_draw_some(tokens, passing, g) for _ in range(batch_size)]))


def _draw_some(n, count, generator):
    """`count` of 0…n - 1 without replacement, (count,) int64, ascending."""
    if count == 0:
        return torch.empty(0, dtype=torch.long)
    return torch.randperm(n, generator=generator)[:count].sort().values


class Batches:
    """This process's share of every step's batch, on the host.

    While one batch is computed, a thread prepares the next; for a GPU, several do the next few.

    :param moments: (volumes * variants, 2C, h, w) of the VAE's posterior: a tensor, or
        latent_cache.Latents
    :param labels: (volumes,) class of each
    :param vae_config: mapping with scaling_factor and perhaps shift_factor
    :param null_class: label of the unconditional prediction
    :param seed, global_batch_size, label_dropout: see `draw_step`
    :param last_step: no batch after it is prepared
    :param device: where batches will go; for a GPU they lie in page-locked memory
    :param prefetch: prepare the next batches in threads
    :param variants: of each volume in `moments`, one after another
    :param covariates: (volumes, K), see `models.ConditionEmbedder`; None: there are none
    :param condition_dropout: see `draw_step`
    :param token_drop: TokenDrop, or None if every step computes all tokens
    :param tokens: number of tokens that the model computes, for `token_drop`
    """

    def __init__(self, moments, labels, vae_config, null_class, *, seed, global_batch_size,
                 label_dropout, last_step, device, prefetch=True, variants=1, covariates=None,
                 condition_dropout=0.0, token_drop=None, tokens=0):
        self.moments = moments
        self.labels = labels
        self.vae_config = vae_config
        self.null_class = null_class
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.label_dropout = label_dropout
        self.last_step = last_step
        self.variants = variants
        self.covariates = torch.zeros(len(labels), 0) if covariates is None else covariates
        self.condition_dropout = condition_dropout
        self.token_drop = token_drop
        self.tokens = tokens
        self.pin_memory = torch.device(device).type == "cuda"
        # steps beyond the one that is taken; on a CPU, threads would take cores from the step
        self.ahead = min(STEPS_AHEAD, CPU_CORES) if self.pin_memory else 1
        self._pool = ThreadPoolExecutor(self.ahead) if prefetch else None
        self._next = {}     # {step: future of what `_prepare_to_go` returns}

    def drawn(self, step):
        """The draws of a step's global batch."""
        latent_shape = (self.moments.shape[1] // 2, *self.moments.shape[2:])
        passing = self.token_drop.passing_at(step, self.tokens) if self.token_drop else 0
        return draw_step(self.seed, step, len(self.labels), self.global_batch_size, latent_shape,
                         self.label_dropout, self.variants, self.covariates.shape[1],
                         self.condition_dropout, self.tokens, passing)

    def prepare(self, step):
        """This process's share of a step's batch: x0, t, y, noise, covariates; and the tokens that
        pass all blocks, if not all do."""
        rank, processes = distributed.rank(), distributed.world_size()
        mine = Draws(*(values.chunk(processes)[rank] for values in self.drawn(step)))
        rows = mine.index * self.variants + mine.variant
        x0 = draw_latents(self.vae_config, self.moments[rows], mine.vae_noise)
        y = torch.where(mine.drop_label, self.null_class, self.labels[mine.index])
        covariates = self.covariates[mine.index].masked_fill(mine.drop_covariate, math.nan)
        batch = x0, mine.t, y, mine.noise, covariates
        return (*batch, mine.passing) if mine.passing.shape[1] else batch

    def take(self, step):
        """What `prepare` returns, in page-locked memory if it goes to a GPU, so no copy waits."""
        if not self._pool:
            return self._prepare_to_go(step)
        coming = range(step, max(step, min(step + self.ahead, self.last_step)) + 1)
        for s in coming:
            if s not in self._next:
                self._next[s] = self._pool.submit(self._prepare_to_go, s)
        batch = self._next[step].result()
        self._next = {s: self._next[s] for s in coming[1:]}
        return batch

    def _prepare_to_go(self, step):
        batch = self.prepare(step)
        return tuple(v.pin_memory() for v in batch) if self.pin_memory else batch


def compute_gradients(model, batch, parameters, *, global_batch_size, accum=1, precision="bf16",
                      device="cpu", loss_scaler=None):
    """The gradient of the global batch's mean loss, summed over --accum parts and processes.

    :param batch: this process's share, see `Batches.prepare`
    :param parameters: list of the trainable parameters, which receive the gradients
    :param accum: parts in which this share is computed, to save memory
    :param loss_scaler: LossScaler of fp16, or None
    :return: mean loss, mse and vb of the global batch over the tokens that are computed, (3,); 1
        if loss or gradient is not finite, else 0, (); both on the device
    """
    sums = torch.zeros(3, device=device)
    for part in zip(*(values.chunk(accum) for values in batch)):
        values = [value.to(device, non_blocking=True) for value in part]
        x0, t, y, noise, covariates, *passing = values
        network, positions = network_and_positions(model, *passing or [None])
        with autocast(device, precision):
            losses = training_losses(partial(network, covariates=covariates), x0, t, y, noise,
                                     positions)
        loss = losses["loss"].sum() / global_batch_size
        (loss * loss_scaler.scale if loss_scaler else loss).backward()
        sums += torch.stack([losses[key].detach().sum() for key in ("loss", "mse", "vb")])
    distributed.sum_over_processes(sums)
    distributed.sum_gradients(parameters)
    if loss_scaler:
        loss_scaler.unscale(parameters)
    largest = torch.nn.utils.get_total_norm([p.grad for p in parameters], math.inf)
    is_bad = 1 - (sums.sum() + largest).isfinite().float()
    return sums / global_batch_size, is_bad


def learning_rate(step, *, lr, schedule, max_steps):
    """Learning rate of step 1…max_steps.

    :param schedule: "constant", or "cosine": half a cosine from lr to zero
    """
    if schedule == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / max_steps))
