"""One training step, and all that a run is between two of them.

Step s draws all it needs from (seed, s) for the whole global batch, and each process takes its part: what a run is after it
depends on the steps before alone, not on when or by how many processes they were done, up to the rounding of sums.

Nothing in a step waits for the device: whether a step's loss and gradient are finite is decided and obeyed there, and the host
hears of it when it asks (`State.settle`).
"""
import math
from concurrent.futures import ThreadPoolExecutor

import torch

from diffusion import gaussian_diffusion as diffusion
from diffusion import vae as latents
from training import checkpoint as checkpoints
from utils import distributed


def draw_step(seed, step, volumes, batch, latent_shape, label_dropout):
    """Everything random of one step's global batch, from (seed, step) alone: indices, t, noise, VAE noise, dropped labels."""
    g = diffusion.seeded_generator(seed, step)
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
        index, t, noise, vae_noise, drop = (d.chunk(distributed.world())[distributed.rank()] for d in self.drawn(step))
        x0 = latents.draw(self.vae_config, self.moments[index], vae_noise)
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


def gradients(model, batch, trained, args):
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


class State:
    """What a run is after a step: weights that train, their EMA, the optimizer's moments, and the log's running sums."""

    def __init__(self, trained, args):
        self.trained, self.args = trained, args
        self.ema = {k: p.detach().clone() for k, p in trained.items()}
        self.optimizer = torch.optim.AdamW(trained.values(), args.lr, weight_decay=args.weight_decay, fused=True)
        for p in trained.values():  # as AdamW itself would at the first step
            self.optimizer.state[p] = dict(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p),
                                           exp_avg_sq=torch.zeros_like(p))
        self.step = self.skipped = self.in_a_row = self.count = 0  # count: steps in the sums of the log line to come
        self.sums = torch.zeros(3, device=args.device)
        self._unsettled = []

    def update(self, losses, bad):
        """One step of AdamW on the gradients, and of the EMA; where `bad` is 1 nothing changes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args, self.step)
        self.optimizer.found_inf = bad  # as torch.amp.GradScaler tells a fused optimizer
        self.optimizer.step()
        weight = (1 - self.args.ema_decay) * (1 - bad)
        for k, p in self.trained.items():
            self.ema[k].lerp_(p.detach(), weight)
        self.sums += torch.where(bad > 0, torch.zeros_like(losses), losses)
        self._unsettled.append(torch.stack([bad, losses[0]]))

    def settle(self):
        """Waits for the device, and returns what it left out since the last call: [(step, loss, how many in a row by then)]."""
        bad_steps, seen = [], torch.stack(self._unsettled).tolist() if self._unsettled else []
        self._unsettled = []
        for step, (bad, loss) in enumerate(seen, self.step - len(seen) + 1):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                bad_steps.append((step, loss, self.in_a_row))
        self.skipped += len(bad_steps)
        self.count += len(seen) - len(bad_steps)
        return bad_steps

    def new_log_line(self):
        self.sums.zero_()
        self.count = 0

    def weights(self):
        return dict(ema=self.ema, raw=self.trained)

    def groups(self):
        return self.weights() | {m: {k: self.optimizer.state[p][m] for k, p in self.trained.items()} for m in ("exp_avg", "exp_avg_sq")}

    def meta(self):
        """Of a settled state."""
        return dict(step=self.step, skipped=self.skipped, log_sums=self.sums.tolist(), log_count=self.count)

    def load(self, path, meta):
        """The inverse of saving `groups` and `meta`."""
        checkpoints.load_into(path, **self.groups())
        self.step, self.skipped, self.count = meta["step"], meta.get("skipped", 0), meta["log_count"]
        self.sums.copy_(torch.tensor(meta["log_sums"]))
        for p in self.trained.values():
            self.optimizer.state[p]["step"].fill_(self.step - self.skipped)
