"""The refiner's objective against values computed by hand."""
import numpy as np
import torch

from training import refiner_loss


def ramp(slopes, side=4):
    """Volumes that rise by `slope` a voxel along the first axis, (N, side, side, side)."""
    steps = torch.arange(side).float()[None, :, None, None] * torch.tensor(slopes)[:, None, None,
                                                                                 None]
    return steps.expand(len(slopes), side, side, side)


def test_the_weight_of_the_squared_error_falls_with_the_timestep():
    target = torch.zeros(2, 4, 4, 4)
    refined = torch.stack([torch.full((4, 4, 4), 0.2), torch.full((4, 4, 4), 0.4)])
    loss = refiner_loss.refiner_loss(refined, target, torch.tensor([0, 100]), 0, 100)
    assert np.isclose(loss.item(), (0.04 + 0.16 / 2) / 2)
    loss = refiner_loss.refiner_loss(refined, target, torch.tensor([0, 300]), 0, 100)
    assert np.isclose(loss.item(), (0.04 + 0.16 / 4) / 2)


def test_root_energy_of_a_ramp_is_its_slope():
    x = ramp([0.1, 0.25])
    floor = np.sqrt(refiner_loss.FLOOR)
    for axis, expected in ((1, [0.1, 0.25]), (2, [floor] * 2), (3, [floor] * 2)):
        np.testing.assert_allclose(refiner_loss.root_energy(x, axis), expected, rtol=1e-4)


def test_the_gradient_error_is_relative():
    """A ramp of half the slope: (1/2 - 1)^2 along its axis, 0 along the others."""
    error = refiner_loss.gradient_error(ramp([0.1, 0.4]), ramp([0.2, 0.2]))
    np.testing.assert_allclose(error, [0.25, 1.0], rtol=1e-3)
    timesteps = torch.tensor([0, 0])
    refined, target = ramp([0.1]), ramp([0.2])
    both = [refiner_loss.refiner_loss(refined, target, timesteps[:1], weight, 100).item()
            for weight in (0, 2.0)]
    assert np.isclose(both[1] - both[0], 2 * 0.25, rtol=1e-3)


def test_a_crop_of_background_has_a_finite_gradient():
    refined = torch.zeros(1, 4, 4, 4, requires_grad=True)
    refiner_loss.refiner_loss(refined, torch.zeros(1, 4, 4, 4), torch.tensor([0]), 1.0,
                              100).backward()
    assert refined.grad.isfinite().all()
