"""Guidance between two timesteps alone (Kynkaanniemi et al. 2024), with every sampler."""
import pytest
import torch
from helpers import randomize, small_dit

from diffusion import samplers
from utils.seeding import seeded_generator

NULL = 10
STEPS = 8


@pytest.fixture(scope="module", params=["all tokens", "foreground"])
def model(request):
    torch.manual_seed(0)
    kept = torch.tensor([0, 3, 7, 9]) if request.param == "foreground" else None
    return randomize(small_dit()).keep_tokens(kept)


def draw(model, sampler, **guidance):
    generators = [seeded_generator(3, i) for i in range(2)]
    return samplers.sample(model, (4, 8, 8), torch.tensor([1, 4]), NULL, generators, sampler, STEPS,
                           **guidance)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_everywhere_is_plain_guidance_and_nowhere_is_none(model, sampler):
    plain, without = draw(model, sampler, cfg_scale=3), draw(model, sampler)
    assert not torch.allclose(plain, without, atol=1e-3)
    assert torch.equal(draw(model, sampler, cfg_scale=3, cfg_interval=(0, 1000)), plain)
    assert torch.equal(draw(model, sampler, cfg_scale=3, cfg_interval=(500, 500)), without)
    part = draw(model, sampler, cfg_scale=3, cfg_interval=(300, 700))
    assert not torch.allclose(part, plain, atol=1e-3)
    assert not torch.allclose(part, without, atol=1e-3)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_only_the_interval_costs_two_passes(sampler):
    """Each call of the network: its timestep, and how many images it computes."""
    calls = []

    def network(x, t, y):
        calls.append((int(t[0]), len(x)))
        return torch.cat([x, torch.zeros_like(x)], 1)

    draw(network, sampler, cfg_scale=3, cfg_interval=(250, 600))
    assert calls == [(t, 4 if 250 <= t < 600 else 2) for t, _ in calls]
    guided = sum(n == 4 for _, n in calls)
    assert 0 < guided < STEPS == len(calls)
    assert samplers.guided_steps(sampler, STEPS, (250, 600)) == guided
    assert samplers.guided_steps(sampler, STEPS, samplers.EVERYWHERE) == STEPS


def test_the_bounds_are_half_open():
    """DDPM with two steps starts at 999 and at 0."""
    counts = [samplers.guided_steps("ddpm", 2, interval)
              for interval in ((0, 1000), (0, 999), (1, 999), (999, 1000), (0, 0))]
    assert counts == [2, 1, 0, 1, 0]
