"""One training step, and all that a run is between two of them.

Step s draws all it needs from (seed, s) for the whole global batch, and each process takes its part: what a run is after it
depends on the steps before alone, not on when or by how many processes they were done, up to the rounding of sums.

Nothing in a step waits for the device: whether a step's loss and gradient are finite is decided and obeyed there, and the host
hears of it when it asks (`TrainingState.settle`).
"""
import math
from concurrent.futures import ThreadPoolExecutor

import torch

from diffusion import gaussian_diffusion as diffusion
from diffusion import vae as latents
from utils import distributed, seeding


def draw_step(seed, step, volumes, batch, latent_shape, label_dropout):
    """Everything random of one step's global batch, from (seed, step) alone: indices, t, noise, VAE noise, dropped labels."""
    g = seeding.seeded_generator(seed, step)
    return (torch.randint(volumes, (batch,), generator=g), torch.randint(diffusion.NUM_TIMESTEPS, (batch,), generator=g),
            torch.randn(batch, *latent_shape, generator=g), torch.randn(batch, *latent_shape, generator=g),
            torch.rand(batch, generator=g) < label_dropout)


class Batches:
    """This process's share of every step's batch, on the host. While one is computed a thread prepares the next."""

    def __init__(self, moments, labels, vae_config, null_class, args):
        self.moments, self.labels, self.vae_config, self.null_class, self.args = moments, labels, vae_config, null_class, args
        self._pool, self._ahead = ThreadPoolExecutor(1) if args.prefetch else None, {}

    def drawn(self, step):
        shape = (self.moments.shape[1] // 2, *self.moments.shape[2:])
        return draw_step(self.args.global_seed, step, len(self.moments), self.args.global_batch_size, shape, self.args.label_dropout)

    def prepare(self, step):
        """x0, t, y, noise."""
        index, t, noise, vae_noise, drop = (d.chunk(distributed.world_size())[distributed.rank()] for d in self.drawn(step))
        x0 = latents.draw_latents(self.vae_config, self.moments[index], vae_noise)
        return x0, t, torch.where(drop, self.null_class, self.labels[index]), noise

    def take(self, step):
        """What `prepare` gives; in page-locked memory where it goes to a GPU, so that no copy waits."""
        ahead = self._ahead.pop(step, None)
        batch = ahead.result() if ahead else self.prepare(step)
        if self._pool and step < self.args.max_steps:
            self._ahead = {step + 1: self._pool.submit(self.prepare, step + 1)}
        return tuple(v.pin_memory() for v in batch) if torch.device(self.args.device).type == "cuda" else batch


def learning_rate(args, step):
    """Of step 1…max_steps, from the step alone: constant, or half a cosine from --lr to zero."""
    return args.lr if args.lr_schedule == "constant" else args.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / args.max_steps))


def compute_gradients(model, batch, trained, args):
    """The gradient of the global batch's mean loss, summed over --accum parts and over processes, each computing its share.

    :param batch: this process's share: x0, t, y, noise
    :return: mean loss, mse and vb of the global batch, (3,); 1 where loss or gradient is not finite, else 0, (); on the device
    """
    device = torch.device(args.device)
    sums = torch.zeros(3, device=device)
    for part in zip(*(v.chunk(args.accum) for v in batch)):
        x0, t, y, noise = (v.to(device, non_blocking=True) for v in part)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            losses = diffusion.training_losses(model, x0, t, y, noise)
        (losses["loss"].sum() / args.global_batch_size).backward()
        sums += torch.stack([losses[k].detach().sum() for k in ("loss", "mse", "vb")])
    distributed.sum_over_processes(sums)
    distributed.sum_gradients(trained)
    largest = torch.nn.utils.get_total_norm([p.grad for p in trained], math.inf)
    return sums / args.global_batch_size, 1 - (sums.sum() + largest).isfinite().float()


