"""Cost of a sampling step and of the decoding: the published sampling loop against sample.py's."""
import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import baseline, measure, networks
from diffusion import samplers, vae
from training import acceleration
from utils.precision import autocast
from utils.seeding import seeded_generator

EXTRAPOLATED = {"ddpm 250": 250, "dpm++ 50": 50, "dpm++ 25": 25}  # {name: steps} of whole volumes


@dataclass(frozen=True, kw_only=True)
class SamplingSetup(networks.NetworkSetup):
    """A sampling step to measure."""
    vae_precision: str = "fp32"     # compute dtype of the optimized decoding


@dataclass(frozen=True, kw_only=True)
class SamplingCost(measure.StepCost):
    """Cost of a sampling step, and of decoding the batch."""
    decode_seconds: list


# -------------------------------------------------------------------------------------- measuring

def baseline_step(setup):
    """Cost of a step of the published sampling loop. To be called in a process of its own.

    :param setup: SamplingSetup
    :return: SamplingCost
    """
    measure.limit_memory(setup.device, setup.memory_limit)
    model = _frozen_dit(setup, "fp32")
    autoencoder = networks.random_vae(setup, torch.contiguous_format)
    baseline.allow_tf32()

    def network(x, t, y):
        return baseline.forward(model, x, t, y)

    def decode(z):
        return vae.from_pixels(autoencoder.decode(z / autoencoder.config.scaling_factor).sample)

    seconds, z = _time_sampling(setup, network, model.num_classes, "fp32")
    decoding = _time_decoding(setup, decode, z)
    return SamplingCost(step_seconds=seconds, decode_seconds=decoding,
                        peak_gb=measure.peak_gb(setup.device))


def foreground_step(setup):
    """Cost of a step of sample.py for a model of --tokens foreground. To be called in a process of
    its own.

    :param setup: SamplingSetup
    :return: SamplingCost
    """
    return optimized_step(setup, networks.foreground_tokens(setup))


def optimized_step(setup, kept=None):
    """Cost of a step of sample.py. To be called in a process of its own.

    :param setup: SamplingSetup
    :param kept: (K,) int64, the tokens that are computed; None: all
    :return: SamplingCost
    """
    measure.limit_memory(setup.device, setup.memory_limit)
    model = _frozen_dit(setup, setup.precision).keep_tokens(kept)
    autoencoder = networks.random_vae(setup, torch.channels_last)
    message = acceleration.accelerate_blocks(model, setup.device, setup.compile, setup.precision)

    def decode(z):
        return vae.decode(autoencoder, z, setup.vae_precision)

    seconds, z = _time_sampling(setup, model, model.num_classes, setup.precision)
    decoding = _time_decoding(setup, decode, z)
    return SamplingCost(step_seconds=seconds, decode_seconds=decoding,
                        peak_gb=measure.peak_gb(setup.device), message=message)


def _frozen_dit(setup, precision):
    model, _ = networks.random_dit(setup, precision)
    return model.requires_grad_(False).eval()


class _StepTimer:
    """Called after each step; `seconds` are the times from one call to the next."""

    def __init__(self, device):
        self.device = device
        self.seconds = []
        self._last = time.perf_counter()

    def __call__(self):
        measure.wait(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def _time_sampling(setup, network, null_class, precision):
    """Seconds of each step after the first, and the sampled latents."""
    shape = (4, setup.latent_side, setup.latent_side)
    labels = torch.zeros(setup.batch_size, dtype=torch.long)
    generators = [seeded_generator(0, i) for i in range(setup.batch_size)]
    timer = _StepTimer(setup.device)
    with autocast(setup.device, precision):
        z = samplers.sample(
            network, shape, labels, null_class, generators, sampler="ddpm",
            num_steps=setup.steps + 1, device=setup.device, callback=timer)
    return timer.seconds[1:], z


@torch.no_grad()
def _time_decoding(setup, decode, z):
    """Seconds of one decoding of the batch, in a list; on a GPU, the first ones load kernels."""
    for _ in range(measure.warm_up_steps(setup.device)):
        start = time.perf_counter()
        decode(z)
        seconds = time.perf_counter() - start
    return [seconds]


def merge(turns):
    """As measure.merge; the decoding times of all turns, too."""
    merged = measure.merge(turns)
    if merged is None:
        return None
    seconds = [second for turn in turns for second in turn.decode_seconds]
    return dataclasses.replace(merged, decode_seconds=seconds)


WAYS = {"baseline": baseline_step, "optimized": optimized_step, "foreground": foreground_step}

# -------------------------------------------------------------------------------------- reporting

COMPARED = [("baseline", "optimized"), ("optimized", "foreground"), ("baseline", "foreground")]
HEADING = (f"{'':10} {'s/step':>9} {'decoding':>9} {'peak GB':>8}   s/volume:   "
           + " ".join(f"{name:>9}" for name in EXTRAPOLATED))


def report(setup, turns, costs):
    """Lines that tell the user what was measured.

    :param turns: turns of each way
    :param costs: {name: SamplingCost of all turns, or None if out of memory}
    """
    lines = [f"{networks.describe(setup)}; {turns} turns of {setup.steps} steps and a decoding, "
             "medians; times of whole volumes are calculated from them", HEADING]
    for name, cost in costs.items():
        if cost and cost.message:
            lines.append(cost.message)
        lines.append(row(name, cost, setup.batch_size))
    totals = {name: seconds_per_volume(cost, setup.batch_size)
              for name, cost in costs.items() if cost}
    for slow, fast in COMPARED:
        if slow in totals and fast in totals:
            ratios = [totals[slow][way] / totals[fast][way] for way in EXTRAPOLATED]
            lines.append(f"{slow + ' / ' + fast + ', times':53} "
                         + " ".join(f"{ratio:9.2f}" for ratio in ratios))
    if "foreground" in totals:
        kept = len(networks.foreground_tokens(setup))
        lines.append(f"foreground: {kept} of the {setup.tokens} tokens")
    if "optimized" in totals:
        faster = totals["optimized"]["ddpm 250"] / totals["optimized"]["dpm++ 25"]
        lines.append(f"optimized: dpm++ 25 is {faster:.2f} times faster than ddpm 250")
    return lines


def row(name, cost, batch_size):
    """One way's line of the table under HEADING."""
    if cost is None:
        return f"{name:10} out of memory"
    step = float(np.median(cost.step_seconds))
    decoding = float(np.median(cost.decode_seconds))
    totals = seconds_per_volume(cost, batch_size).values()
    volumes = " ".join(f"{seconds:9.2f}" for seconds in totals)
    return f"{name:10} {step:9.3f} {decoding:9.3f} {cost.peak_gb:8.2f} {'':13} {volumes}"


def seconds_per_volume(cost, batch_size):
    """{name: seconds of one volume} for each sampler of EXTRAPOLATED."""
    step = float(np.median(cost.step_seconds))
    decoding = float(np.median(cost.decode_seconds))
    return {name: (steps * step + decoding) / batch_size for name, steps in EXTRAPOLATED.items()}
