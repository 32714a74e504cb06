"""Samplers: from noise to latents, by diffusers' schedulers.

To add one, write a function that makes its scheduler and add an entry to SAMPLERS: the choices
and help of --sampler, its checks of --num-sampling-steps and its tests follow from the entry.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers  # imports its parts where they are first used
import numpy as np
import torch

from diffusion.gaussian_diffusion import ALPHAS_BAR, BETAS, NUM_TIMESTEPS, add_noise, guided

EVERYWHERE = (0, NUM_TIMESTEPS)     # the timesteps at which guidance acts, unless told otherwise


@dataclass(frozen=True)
class Sampler:
    """One way to sample.

    :param make_scheduler: num_steps -> diffusers scheduler whose timesteps are set, and the
        timesteps of the full process, an array: entry i is what the network gets at timestep i
    :param help: phrase for --help
    :param default_steps: steps if the user names no number
    :param learned_variance: the scheduler takes the predicted variance, and draws noise per step
    """
    make_scheduler: Callable[[int], tuple[Any, np.ndarray]]
    help: str
    default_steps: int = 25
    min_steps: int = 2
    max_steps: int = NUM_TIMESTEPS
    learned_variance: bool = False


# ------------------------------------------------------- the respaced process of the published code

def respaced_timesteps(num_steps):
    """num_steps timesteps of 0…999, ascending, ends included, evenly spaced and rounded."""
    return np.round(np.linspace(0, NUM_TIMESTEPS - 1, num_steps)).astype(np.int64)


def _respaced_betas(timesteps):
    """Betas of the process that visits only these timesteps, with the full process's alpha-bars."""
    kept = ALPHAS_BAR[timesteps]
    return 1 - kept / np.append(1.0, kept[:-1])


def _make_ddpm(num_steps):
    """DDPM on the respaced process, as in the published code."""
    timesteps = respaced_timesteps(num_steps)
    scheduler = diffusers.DDPMScheduler(
        num_steps, trained_betas=_respaced_betas(timesteps), variance_type="learned_range",
        clip_sample=False)
    scheduler.set_timesteps(num_steps)
    return scheduler, timesteps


def _make_ddim(num_steps):
    """DDIM (Song et al. 2021, eta 0) on the respaced process, as in the published code."""
    timesteps = respaced_timesteps(num_steps)
    scheduler = diffusers.DDIMScheduler(
        num_steps, trained_betas=_respaced_betas(timesteps), clip_sample=False,
        set_alpha_to_one=True)
    scheduler.set_timesteps(num_steps)
    return scheduler, timesteps


# --------------------------------------------------------- solvers of the probability flow ODE

def _make_dpm_solver(num_steps):
    """DPM-Solver++ (Lu et al. 2022), second order, multistep."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        NUM_TIMESTEPS, trained_betas=BETAS, algorithm_type="dpmsolver++", solver_order=2,
        timestep_spacing="linspace", final_sigmas_type="zero")
    scheduler.set_timesteps(num_steps)
    return scheduler, np.arange(NUM_TIMESTEPS)


def _make_unipc(num_steps):
    """UniPC (Zhao et al. 2023), second order, predicting x0."""
    scheduler = diffusers.UniPCMultistepScheduler(
        NUM_TIMESTEPS, trained_betas=BETAS, solver_order=2, timestep_spacing="linspace",
        final_sigmas_type="zero")
    scheduler.set_timesteps(num_steps)
    return scheduler, np.arange(NUM_TIMESTEPS)


SAMPLERS = {
    "ddpm": Sampler(_make_ddpm, "as in the DiT paper, with fresh noise at every step, 250 steps",
                    default_steps=250, learned_variance=True),
    "ddim": Sampler(_make_ddim, "deterministic, 50 to 250 steps", default_steps=250),
    "dpm++": Sampler(_make_dpm_solver, "DPM-Solver++, deterministic, 20 to 50 steps",
                     max_steps=NUM_TIMESTEPS - 1),
    "unipc": Sampler(_make_unipc, "UniPC, deterministic, 10 to 50 steps",
                     max_steps=NUM_TIMESTEPS - 1),
}


def describe_samplers():
    """One phrase per sampler, for --help."""
    return "; ".join(f"{name}: {sampler.help}" for name, sampler in SAMPLERS.items())


def describe_default_steps():
    """The default steps of all samplers, for --help."""
    return ", ".join(f"{name} {sampler.default_steps}" for name, sampler in SAMPLERS.items())


def guided_steps(sampler, num_steps, interval):
    """How many of a sampler's steps start at a timestep of an interval.

    :param sampler, num_steps, interval: see `sample`
    """
    scheduler, full_timesteps, _ = _prepare(sampler, num_steps)
    return sum(_is_within(full_timesteps[int(step)], interval) for step in scheduler.timesteps)


def _is_within(timestep, interval):
    return interval[0] <= timestep < interval[1]


@torch.no_grad()
def sample(model, shape, y, null_class, generators, sampler="ddpm", num_steps=None, cfg_scale=1.0,
           guided_channels=None, device="cpu", callback=None, cfg_interval=EVERYWHERE):
    """Draws latents from noise.

    :param model: called model(x, t, y), returns (N, 2C, H, W)
    :param shape: (C, H, W) of one latent
    :param y: (N,) labels
    :param null_class: label of the unconditional prediction
    :param generators: one CPU generator per sample, see `utils.seeding.seeded_generator`
    :param sampler: name in SAMPLERS
    :param num_steps: network evaluations per sample (twice the batch each, with guidance); None:
        the sampler's default_steps
    :param cfg_scale, guided_channels: see `gaussian_diffusion.guided`
    :param callback: called after each step
    :param cfg_interval: (low, high): guidance acts at timesteps low <= t < high alone, as in
        Kynkaanniemi et al. 2024; elsewhere there is one forward pass of the batch
    :return: (N, C, H, W) float32, in the DiT's scale
    :raises ValueError: no such sampler
    """
    scheduler, full_timesteps, learned_variance = _prepare(sampler, num_steps)
    x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
    return _denoise(model, x, y.to(device), scheduler, scheduler.timesteps, full_timesteps,
                    learned_variance, generators,
                    dict(null_class=null_class, scale=cfg_scale, guided_channels=guided_channels),
                    cfg_interval, callback)


@torch.no_grad()
def resample(model, latents, step, y, generators, sampler="ddpm", num_steps=None):
    """Noises latents up to a step of the sampler, and draws them from there on.

    :param latents: (N, C, H, W) in the DiT's scale, on the model's device
    :param step: how many of the sampler's steps are taken, 1…num_steps; all of them start at
        nearly pure noise
    :param y, generators, sampler, num_steps: see `sample`
    :return: (N, C, H, W) float32; the timestep that they were noised to, 0…999
    """
    scheduler, full_timesteps, learned_variance = _prepare(sampler, num_steps)
    steps = scheduler.timesteps[-step:]
    timestep = int(full_timesteps[int(steps[0])])
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
    t = torch.full((len(latents),), timestep, device=latents.device)
    x = add_noise(latents, t, noise.to(latents.device))
    x = _denoise(model, x, y.to(latents.device), scheduler, steps, full_timesteps,
                 learned_variance, generators, dict(null_class=None, scale=1))
    return x, timestep


def _prepare(sampler, num_steps):
    """Scheduler, timesteps of the full process, and whether it takes the predicted variance."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: must be one of {', '.join(SAMPLERS)}")
    chosen = SAMPLERS[sampler]
    made = chosen.make_scheduler(chosen.default_steps if num_steps is None else num_steps)
    return *made, chosen.learned_variance


def _denoise(model, x, y, scheduler, steps, full_timesteps, learned_variance, generators, guidance,
             cfg_interval=EVERYWHERE, callback=None):
    """Takes steps of a scheduler, from noisy latents x on."""
    channels = x.shape[1]
    for step in steps:
        timestep = int(full_timesteps[int(step)])
        t = torch.full((len(x),), timestep, device=x.device)
        if _is_within(timestep, cfg_interval):
            out = guided(model, x, t, y, **guidance).float()
        else:
            out = model(x, t, y).float()
        if learned_variance:
            x = scheduler.step(out, step, x, generator=generators).prev_sample
        else:
            x = scheduler.step(out[:, :channels], step, x).prev_sample
        if callback:
            callback()
    return x
