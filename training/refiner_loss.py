"""The objective of the refiner: close to the real volume, and as rich in detail as it is."""
import torch

FLOOR = 1e-8    # of a mean squared step, so that the root of a crop of background has a gradient


def refiner_loss(refined, target, timesteps, gradient_weight, halving_timestep):
    """Weighted squared error, plus the squared relative error of the root gradient energy.

    Squared error alone blurs: of what the model made up at a high timestep, the mean of all real
    volumes is closest to the target. So a pair's weight falls with its timestep t as
    1 / (1 + t / halving_timestep), and the second term, which has no such weight, asks for the
    target's mean squared step between neighbors along each axis.

    :param refined, target: (N, X, Y, Z) in [0, 1]
    :param timesteps: (N,) that the input was noised to; 0: only through the VAE
    :param gradient_weight: of the second term; 0: without it
    :return: scalar
    """
    error = torch.square(refined - target).mean(dim=(1, 2, 3))
    loss = (error / (1 + timesteps / halving_timestep)).mean()
    if gradient_weight:
        loss = loss + gradient_weight * gradient_error(refined, target).mean()
    return loss


def gradient_error(refined, target):
    """Squared relative error of the root gradient energy, summed over the axes, (N,)."""
    ratios = [root_energy(refined, axis) / root_energy(target, axis) for axis in (1, 2, 3)]
    return sum(torch.square(ratio - 1) for ratio in ratios)


def root_energy(x, axis):
    """Root mean squared difference of neighbors along an axis of (N, X, Y, Z), (N,)."""
    return (torch.square(x.diff(dim=axis)).mean(dim=(1, 2, 3)) + FLOOR).sqrt()
