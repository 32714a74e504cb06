"""."""

import diffusers  # lazily: a part is imported where it is first used
import numpy as np
import torch

from diffusion.gaussian_diffusion import NUM_TIMESTEPS, _alphas_bar, _betas, guided

SAMPLERS = ("ddpm", "ddim", "dpm++")


def respaced_timesteps(num_steps):
    """The timesteps of a respaced process, ascending: num_steps of 0…999, ends included, evenly spaced and rounded."""
    return np.round(np.linspace(0, NUM_TIMESTEPS - 1, num_steps)).astype(np.int64)


def _respaced_betas(timesteps):
    """Betas of the process that visits these timesteps only: its alpha-bars are the full process's there."""
    kept = _alphas_bar[timesteps]
    return 1 - kept / np.append(1.0, kept[:-1])


def make_scheduler(sampler, num_steps):
    """A diffusers scheduler, and the timestep of the full process that the network is given at each of its timesteps.

    ddpm and ddim run on the respaced process itself, as the published code does, so that both ends are its own.
    """
    if sampler == "dpm++":
        scheduler = diffusers.DPMSolverMultistepScheduler(
            NUM_TIMESTEPS, trained_betas=_betas, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace",
            final_sigmas_type="zero")
        scheduler.set_timesteps(num_steps)
        return scheduler, np.arange(NUM_TIMESTEPS)
    timesteps = respaced_timesteps(num_steps)
    betas = _respaced_betas(timesteps)
    if sampler == "ddpm":
        scheduler = diffusers.DDPMScheduler(num_steps, trained_betas=betas, variance_type="learned_range", clip_sample=False)
    elif sampler == "ddim":
        scheduler = diffusers.DDIMScheduler(num_steps, trained_betas=betas, clip_sample=False, set_alpha_to_one=True)
    else:
        raise ValueError(f"sampler {sampler!r}: must be one of {', '.join(SAMPLERS)}")
    scheduler.set_timesteps(num_steps)
    return scheduler, timesteps


@torch.no_grad()
def sample(model, shape, y, null_class, generators, sampler="ddpm", num_steps=250, cfg_scale=1.0, guided_channels=None,
           device="cpu", callback=None):
    """Draws latents from noise.

    :param model: called model(x, t, y), returns (N, 2C, H, W)
    :param shape: (C, H, W)
    :param y: (N,) labels
    :param generators: one CPU generator a sample (`seeded_generator`)
    :param callback: called after each step
    :return: (N, C, H, W) float32, in the DiT's scale
    """
    scheduler, timestep_of = make_scheduler(sampler, num_steps)
    y = y.to(device)
    x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
    for step in scheduler.timesteps:
        t = torch.full((len(x),), int(timestep_of[int(step)]), device=device)
        out = guided(model, x, t, y, null_class, cfg_scale, guided_channels).float()
        if sampler == "ddpm":
            x = scheduler.step(out, step, x, generator=generators).prev_sample
        else:
            x = scheduler.step(out[:, :shape[0]], step, x).prev_sample
        if callback:
            callback()
    return x
