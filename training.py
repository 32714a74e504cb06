"""One training step, and all that a run is between two of them.

Step s draws all it needs from (seed, s) for the whole global batch, and each process takes its part: what a run is after it
depends on the steps before alone, not on when or by how many processes they were done, up to the rounding of sums.
"""
import math

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import checkpoints
import diffusion
import distributed
import latents


def draw_step(seed, step, volumes, batch, latent_shape, label_dropout):
    """Everything random of one step's global batch, from (seed, step) alone: indices, t, noise, VAE noise, dropped labels."""
    g = diffusion.seeded_generator(seed, step)
    return (torch.randint(volumes, (batch,), generator=g), torch.randint(diffusion.NUM_TIMESTEPS, (batch,), generator=g),
            torch.randn(batch, *latent_shape, generator=g), torch.randn(batch, *latent_shape, generator=g),
            torch.rand(batch, generator=g) < label_dropout)


def learning_rate(args, step):
    """Of step 1…max_steps, from the step alone: constant, or half a cosine from --lr to zero."""
    return args.lr if args.lr_schedule == "constant" else args.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / args.max_steps))


def gradients(model, moments, labels, vae_config, trained, args, step):
    """The gradient of the global batch's mean loss, summed over --accum parts and over processes, each computing its share.

    :return: mean loss, mse and vb of the global batch, on the device; the volumes drawn; whether loss and gradient are finite
    """
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    drawn = draw_step(args.global_seed, step, len(moments), args.global_batch_size, shape, args.label_dropout)
    mine = [d.chunk(distributed.world())[distributed.rank()] for d in drawn]
    device = torch.device(args.device)
    sums = torch.zeros(3, device=device)
    for index, t, noise, vae_noise, drop in zip(*(d.chunk(args.accum) for d in mine)):
        x0 = latents.draw(vae_config, moments[index], vae_noise).to(device, non_blocking=True)
        y = torch.where(drop, model.num_classes, labels[index])
        t, noise, y = (v.to(device, non_blocking=True) for v in (t, noise, y))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            losses = diffusion.training_losses(model, x0, t, y, noise)
        (losses["loss"].sum() / args.global_batch_size).backward()
        sums += torch.stack([losses[k].detach().sum() for k in ("loss", "mse", "vb")])
    distributed.sum_over_processes(sums)
    distributed.sum_gradients(trained)
    largest = torch.nn.utils.get_total_norm([p.grad for p in trained], math.inf)
    return sums / args.global_batch_size, drawn[0].tolist(), bool((sums.sum() + largest).isfinite())


class State:
    """What a run is after a step: weights that train, their EMA, the optimizer's moments, and the log's running sums."""

    def __init__(self, trained, args):
        self.trained, self.args = trained, args
        self.ema = {k: p.detach().clone() for k, p in trained.items()}
        self.optimizer = torch.optim.AdamW(trained.values(), args.lr, weight_decay=args.weight_decay)
        for p in trained.values():  # as AdamW itself would at the first step
            self.optimizer.state[p] = dict(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        self.average = get_ema_multi_avg_fn(args.ema_decay)
        self.step = self.skipped = self.count = 0  # count: steps in the sums of the log line to come
        self.sums = torch.zeros(3, device=args.device)

    def update(self, losses):
        """One step of AdamW on the gradients, and of the EMA."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args, self.step)
        self.optimizer.step()
        self.average(list(self.ema.values()), [p.detach() for p in self.trained.values()], self.step)
        self.sums += losses
        self.count += 1

    def weights(self):
        return dict(ema=self.ema, raw=self.trained)

    def groups(self):
        return self.weights() | {m: {k: self.optimizer.state[p][m] for k, p in self.trained.items()} for m in ("exp_avg", "exp_avg_sq")}

    def meta(self):
        return dict(step=self.step, skipped=self.skipped, log_sums=self.sums.tolist(), log_count=self.count)

    def load(self, path, meta):
        """The inverse of saving `groups` and `meta`."""
        checkpoints.load_into(path, **self.groups())
        self.step, self.skipped, self.count = meta["step"], meta.get("skipped", 0), meta["log_count"]
        self.sums.copy_(torch.tensor(meta["log_sums"]))
        for p in self.trained.values():
            self.optimizer.state[p]["step"].fill_(self.step - self.skipped)
