import json

import diffusers.schedulers.scheduling_ddpm
import numpy as np
import pytest
import torch
from helpers import golden

import models
from diffusion import gaussian_diffusion as diffusion
from diffusion import samplers
from utils import seeding


def close(ours, theirs, relative):
    return np.abs(ours.numpy() - theirs).max() <= relative * np.abs(theirs).max()


def test_losses_are_the_references():
    g = {k: torch.from_numpy(v) for k, v in golden("training_losses.npz").items()}
    assert close(diffusion.add_noise(g["x0"], g["t"], g["noise"]), g["x_t"].numpy(), 1e-6)

    def model(x_t, t, y):
        assert close(x_t, g["x_t"].numpy(), 1e-6) and torch.equal(t, g["t"])
        return g["model_output"]

    losses = diffusion.training_losses(model, g["x0"], g["t"], None, g["noise"])
    for k in ("loss", "mse", "vb"):
        assert (torch.abs(losses[k] - g[k]) <= 1e-5 * g[k]).all()


def test_the_bound_trains_the_variance_alone():
    torch.manual_seed(0)
    out = torch.randn(3, 8, 4, 4, requires_grad=True)
    x0, noise = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    losses = diffusion.training_losses(lambda *a: out, x0, torch.tensor([0, 10, 900]), None, noise)
    grad, = torch.autograd.grad(losses["vb"].sum(), out, retain_graph=True)
    assert torch.count_nonzero(grad[:, :4]) == 0 and torch.count_nonzero(grad[:, 4:]) > 0
    grad, = torch.autograd.grad(losses["mse"].sum(), out)
    assert torch.count_nonzero(grad[:, 4:]) == 0


class Replay:
    """Stands in for the generators of a batch: hands out the reference's noise, step after step."""

    def __init__(self, monkeypatch, x_t, noise):
        steps = iter(torch.from_numpy(noise))
        monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *a, **k: next(steps))
        monkeypatch.setattr(torch, "randn", lambda shape, generator: generator)
        self.generators = list(torch.from_numpy(x_t))


def closed_form(weight):
    weight = torch.from_numpy(weight)
    return lambda x, t, y: torch.tanh(torch.einsum("oc,nchw->nohw", weight, x)) * torch.cos(t.float() / 300).view(-1, 1, 1, 1)


@pytest.mark.parametrize("steps", [10, 250])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_trajectories_are_the_references(sampler, steps, monkeypatch):
    g = golden("samplers.npz")
    assert np.array_equal(samplers.respaced_timesteps(steps), g[f"ddpm{steps}/timesteps"])
    replay = Replay(monkeypatch, g[f"ddpm{steps}/x_T"], g[f"ddpm{steps}/noise"])
    x0 = samplers.sample(closed_form(g["weight"]), (4, 4, 4), torch.zeros(2, dtype=torch.long), 0, replay.generators, sampler, steps)
    assert close(x0, g[f"{sampler}{steps}/x_0"], 1e-4)


@pytest.mark.parametrize("sampler, steps, tolerance", [("dpm++", 25, 0.03), ("dpm++", 50, 0.005), ("ddim", 250, 0.03), ("ddpm", 250, None)])
def test_samplers_reach_the_distribution_they_must(sampler, steps, tolerance):
    """For data of variance s^2 the right noise prediction is linear in x, and the ODE samplers scale x_T by a known factor."""
    s = 0.5
    alphas_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))

    def model(x, t, y):
        a = alphas_bar[t].float().view(-1, 1, 1, 1)
        eps = (1 - a).sqrt() * x / (a * s ** 2 + 1 - a)
        return torch.cat([eps, torch.full_like(eps, -1)], 1)

    generators = [seeding.seeded_generator(1, i) for i in range(4)]
    x0 = samplers.sample(model, (4, 32, 32), torch.zeros(4, dtype=torch.long), 0, generators, sampler, steps)
    if tolerance is None:
        assert abs(float(x0.std()) - s) < 0.02
    else:
        x_t = torch.stack([torch.randn((4, 32, 32), generator=seeding.seeded_generator(1, i)) for i in range(4)])
        a = alphas_bar[-1].float()
        assert torch.allclose(x0, x_t * s / (a * s ** 2 + 1 - a).sqrt(), rtol=tolerance, atol=1e-3)


def test_guidance_is_the_references_with_three_channels():
    g = golden("dit_small.npz")
    model = models.DiT(**json.loads(str(g["config"]))).eval()
    model.load_state_dict({k.removeprefix("state/"): torch.from_numpy(v) for k, v in g.items() if k.startswith("state/")})
    x, t, y = (torch.from_numpy(g[f"cfg_{k}"])[:2] for k in "xty")
    scale = float(g["cfg_scale"])
    with torch.no_grad():
        three = diffusion.guided(model, x, t, y, 10, scale, 3)
        four = diffusion.guided(model, x, t, y, 10, scale)
        conditional, null = model(x, t, y), model(x, t, torch.full_like(y, 10))
    assert close(three, g["cfg_out"][:2], 1e-5)
    assert torch.allclose(four[:, :4], null[:, :4] + scale * (conditional - null)[:, :4], rtol=1e-4, atol=1e-4)
    assert torch.allclose(four[:, 4:], conditional[:, 4:], rtol=1e-4, atol=1e-4) and torch.allclose(four[:, :3], three[:, :3])


def test_one_forward_when_nothing_guides():
    calls = []
    model = lambda x, t, y: calls.append(len(x)) or torch.cat([x, x], 1)  # noqa: E731
    x, t, y = torch.randn(3, 4, 2, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    diffusion.guided(model, x, t, y, 10, 1.0)
    diffusion.guided(model, x, t, y, 10, 1.5)
    assert calls == [3, 6]


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    model = closed_form(golden("samplers.npz")["weight"])

    def draw(indices):
        generators = [seeding.seeded_generator(7, i) for i in indices]
        return samplers.sample(model, (4, 4, 4), torch.zeros(len(indices), dtype=torch.long), 0, generators, sampler, 10)

    together = draw([0, 1, 2, 3])
    assert torch.allclose(together, torch.cat([draw([0]), draw([1, 2]), draw([3])]), atol=1e-5)
    assert not torch.allclose(together[0], together[1])
    a, b = (torch.randn(4, generator=seeding.seeded_generator(seed, 0)) for seed in (7, 8))
    assert not torch.equal(a, b)
