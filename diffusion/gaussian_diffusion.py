"""The noise process of DiT: its tables, training loss and classifier-free guidance.

Improved DDPM (Nichol & Dhariwal 2021): 1000 steps, linear betas 1e-4…0.02; the network predicts
the noise and a fraction that interpolates the log variance between its bounds. "DDPM" below is
Ho et al. 2020.
"""
import functools
import math

import numpy as np
import torch

NUM_TIMESTEPS = 1000

BETAS = np.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=np.float64)
ALPHAS_BAR = np.cumprod(1 - BETAS)
_alphas_bar_prev = np.append(1.0, ALPHAS_BAR[:-1])
_posterior_variance = BETAS * (1 - _alphas_bar_prev) / (1 - ALPHAS_BAR)          # DDPM, eq. 7

_TABLES = {
    "signal": np.sqrt(ALPHAS_BAR),
    "noise": np.sqrt(1 - ALPHAS_BAR),
    # at t = 0 the posterior variance is 0 and its logarithm -inf: the next value stands in
    "min_log_variance": np.log(np.append(_posterior_variance[1], _posterior_variance[1:])),
    "max_log_variance": np.log(BETAS),
    "posterior_mean_x0": BETAS * np.sqrt(_alphas_bar_prev) / (1 - ALPHAS_BAR),    # DDPM, eq. 7
    "posterior_mean_xt": (1 - _alphas_bar_prev) * np.sqrt(1 - BETAS) / (1 - ALPHAS_BAR),
}


@functools.cache
def _table_on(device, name):
    """A table on a device, copied there once: every copy would make the host wait.

    As float32, to which its entries are rounded anyway: Apple GPUs have no float64.
    """
    return torch.from_numpy(_TABLES[name]).float().to(device)


def _at(name, t):
    """Entries t of a table, (N,) -> (N, 1, 1, 1) float32."""
    return _table_on(t.device, name)[t].view(-1, 1, 1, 1)


# --------------------------------------------------------------------------------------- training

def add_noise(x0, t, noise):
    """Samples q(x_t | x_0), DDPM eq. 4."""
    return _at("signal", t) * x0 + _at("noise", t) * noise


def training_losses(model, x0, t, y, noise, positions=None):
    """L_simple + L_vlb of improved DDPM (eq. 16 with lambda = 1, as in DiT), per sample.

    Only the predicted variance learns from the bound: its mean is detached.

    :param model: called model(x_t, t, y), returns (N, 2C, H, W)
    :param x0: (N, C, H, W) latents
    :param t: (N,) int64, 0…999
    :param y: (N,) labels
    :param noise: like x0, standard normal
    :param positions: (P,) int64 positions in the flattened (H * W) latents over which losses are
        averaged, or (N, P), a sample's own; None: all
    :return: dict of (N,) float32: loss = mse + vb; vb in bits per dimension
    """
    x_t = add_noise(x0, t, noise)
    predicted = model(x_t, t, y).float()
    if positions is not None:
        x0, x_t, noise, predicted = (_take(values, positions)
                                     for values in (x0, x_t, noise, predicted))
    predicted_noise, fraction = predicted.chunk(2, dim=1)
    mse = _mean_per_sample(torch.square(predicted_noise - noise))
    vb = _variational_bound(x0, x_t, t, predicted_noise.detach(), fraction)
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def _take(values, positions):                                    # (N, C, H, W) -> (N, C, P, 1)
    flat = values.flatten(2)
    if positions.ndim == 1:
        return flat[:, :, positions, None]
    return flat.gather(2, positions[:, None].expand(-1, flat.shape[1], -1))[..., None]


def _variational_bound(x0, x_t, t, predicted_noise, fraction):
    """One term of the variational bound, (N,) in bits per dimension (improved DDPM, eq. 4 to 6).

    KL(q(x_{t-1} | x_t, x_0) || p) for t > 0, -log p(x_0 | x_1) for t = 0.
    """
    predicted_x0 = (x_t - _at("noise", t) * predicted_noise) / _at("signal", t)
    mean = _posterior_mean(predicted_x0, x_t, t)
    true_mean = _posterior_mean(x0, x_t, t)
    low, high = _at("min_log_variance", t), _at("max_log_variance", t)
    log_variance = low + (fraction + 1) / 2 * (high - low)               # improved DDPM, eq. 15
    kl = 0.5 * (log_variance - low - 1 + torch.exp(low - log_variance)
                + torch.square(true_mean - mean) * torch.exp(-log_variance))
    nll = -_log_likelihood_of_bin(x0, mean, 0.5 * log_variance)
    nats = torch.where(t.view(-1, 1, 1, 1) == 0, nll, kl)
    return _mean_per_sample(nats) / math.log(2)


def _posterior_mean(x0, x_t, t):
    return _at("posterior_mean_x0", t) * x0 + _at("posterior_mean_xt", t) * x_t


def _log_likelihood_of_bin(x, mean, log_std):
    """Log probability of the bin of x under a Gaussian, DDPM eq. 13.

    [-1, 1] is cut into 255 bins, the outer ones open. The normal distribution function is the
    tanh approximation (Page 1977), as in the code that DiT was trained with.
    """
    inv_std = torch.exp(-log_std)
    below = _normal_cdf(inv_std * (x - mean - 1 / 255))
    above = _normal_cdf(inv_std * (x - mean + 1 / 255))
    p = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return p.clamp(min=1e-12).log()


def _normal_cdf(z):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))


def _mean_per_sample(x):
    return x.flatten(1).mean(1)


# --------------------------------------------------------------------------------------- guidance

def guided(model, x, t, y, null_class, scale, guided_channels=None):
    """Classifier-free guidance (Ho & Salimans 2022) of the predicted noise.

    :param y: (N,) labels
    :param null_class: label of the unconditional prediction
    :param scale: 1 means no guidance, and one forward pass instead of one of twice the batch
    :param guided_channels: number of noise channels that are guided; None: all of them; 3: as in
        the published DiT code
    :return: (N, 2C, H, W); the variance is that of the conditional prediction
    """
    if scale == 1:
        return model(x, t, y)
    null = torch.full_like(y, null_class)
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
    conditional, unconditional = both.chunk(2)
    n = x.shape[1] if guided_channels is None else guided_channels
    noise = unconditional[:, :n] + scale * (conditional[:, :n] - unconditional[:, :n])
    return torch.cat([noise, conditional[:, n:]], dim=1)
