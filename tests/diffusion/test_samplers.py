"""Samplers against the reference's trajectories, and against distributions known exactly."""
import diffusers.schedulers.scheduling_ddpm
import numpy as np
import pytest
import torch
from helpers import golden

from diffusion import samplers
from utils import seeding


def close(ours, theirs, relative):
    return np.abs(ours.numpy() - theirs).max() <= relative * np.abs(theirs).max()


class Replay:
    """Stands in for the generators of a batch: hands out the reference's noise, step after step."""

    def __init__(self, monkeypatch, x_t, noise):
        steps = iter(torch.from_numpy(noise))
        monkeypatch.setattr(
            diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *a, **k: next(steps)
        )
        monkeypatch.setattr(torch, "randn", lambda shape, generator: generator)
        self.generators = list(torch.from_numpy(x_t))


def closed_form(weight):
    weight = torch.from_numpy(weight)
    return lambda x, t, y: (
        torch.tanh(torch.einsum("oc,nchw->nohw", weight, x))
        * torch.cos(t.float() / 300).view(-1, 1, 1, 1)
    )


@pytest.mark.parametrize("steps", [10, 250])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_trajectories_are_the_references(sampler, steps, monkeypatch):
    g = golden("samplers.npz")
    assert np.array_equal(samplers.respaced_timesteps(steps), g[f"ddpm{steps}/timesteps"])
    replay = Replay(monkeypatch, g[f"ddpm{steps}/x_T"], g[f"ddpm{steps}/noise"])
    x0 = samplers.sample(
        closed_form(g["weight"]),
        (4, 4, 4),
        torch.zeros(2, dtype=torch.long),
        0,
        replay.generators,
        sampler,
        steps,
    )
    assert close(x0, g[f"{sampler}{steps}/x_0"], 1e-4)


def exact_model(s):
    """The exact noise prediction for data of standard deviation s."""
    alphas_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))

    def model(x, t, y):
        a = alphas_bar[t].float().view(-1, 1, 1, 1)
        noise = (1 - a).sqrt() * x / (a * s**2 + 1 - a)
        return torch.cat([noise, torch.full_like(noise, -1)], 1)

    return model


@pytest.mark.parametrize(
    "sampler, steps, tolerance",
    [
        ("dpm++", 25, 0.03),
        ("dpm++", 50, 0.005),
        ("unipc", 25, 0.03),
        ("unipc", 50, 0.006),
        ("ddim", 250, 0.03),
        ("ddpm", 250, None),
    ],
)
def test_samplers_reach_the_distribution_they_must(sampler, steps, tolerance):
    """For data of variance s^2 the exact noise prediction is linear in x.

    Samplers that solve the ODE then scale x_T by a known factor.
    """
    s = 0.5
    alphas_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    generators = [seeding.seeded_generator(1, i) for i in range(4)]
    x0 = samplers.sample(
        exact_model(s), (4, 32, 32), torch.zeros(4, dtype=torch.long), 0, generators, sampler, steps
    )
    if tolerance is None:
        assert abs(float(x0.std()) - s) < 0.02
    else:
        x_t = torch.stack(
            [torch.randn((4, 32, 32), generator=seeding.seeded_generator(1, i)) for i in range(4)]
        )
        a = alphas_bar[-1].float()
        assert torch.allclose(x0, x_t * s / (a * s**2 + 1 - a).sqrt(), rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    model = closed_form(golden("samplers.npz")["weight"])

    def draw(indices):
        generators = [seeding.seeded_generator(7, i) for i in indices]
        return samplers.sample(
            model,
            (4, 4, 4),
            torch.zeros(len(indices), dtype=torch.long),
            0,
            generators,
            sampler,
            10,
        )

    together = draw([0, 1, 2, 3])
    assert torch.allclose(together, torch.cat([draw([0]), draw([1, 2]), draw([3])]), atol=1e-5)
    assert not torch.allclose(together[0], together[1])
    a, b = (torch.randn(4, generator=seeding.seeded_generator(seed, 0)) for seed in (7, 8))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("end", ["min_steps", "max_steps"])
def test_fewest_and_most_steps_are_finite(sampler, end):
    """The limits of the registry: one step more than the most would divide by zero."""
    steps = getattr(samplers.SAMPLERS[sampler], end)
    generators = [seeding.seeded_generator(1, 0)]
    y = torch.zeros(1, dtype=torch.long)
    x0 = samplers.sample(exact_model(0.5), (4, 4, 4), y, 0, generators, sampler, steps)
    assert x0.isfinite().all() and (steps == 2 or 0.3 < x0.std() < 0.7)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="must be one of ddpm, ddim"):
        samplers.sample(None, (4, 4, 4), torch.zeros(1), 0, [], "euler")


def test_every_sampler_describes_itself():
    text = samplers.describe_samplers()
    assert all(f"{name}: " in text for name in samplers.SAMPLERS)


def test_every_sampler_has_its_own_default_number_of_steps(monkeypatch):
    """`--sampler dpm++` alone takes 25 steps, not the 250 of ddpm."""
    defaults = {name: sampler.default_steps for name, sampler in samplers.SAMPLERS.items()}
    assert defaults == {"ddpm": 250, "ddim": 250, "dpm++": 25, "unipc": 25}
    assert samplers.describe_default_steps() == "ddpm 250, ddim 250, dpm++ 25, unipc 25"
    calls = []
    samplers.sample(exact_model(0.5), (4, 4, 4), torch.zeros(1, dtype=torch.long), 0,
                    [seeding.seeded_generator(1, 0)], "dpm++", callback=lambda: calls.append(1))
    assert len(calls) == 25
    for sampler in samplers.SAMPLERS.values():
        assert sampler.min_steps <= sampler.default_steps <= sampler.max_steps
