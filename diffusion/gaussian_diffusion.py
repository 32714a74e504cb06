"""The noise process of DiT (improved DDPM, Nichol & Dhariwal 2021): training loss, guidance, samplers.

1000 steps, linear betas 1e-4…0.02, the network predicts the noise and interpolates the log variance between its bounds.
"""
import functools
import math

import numpy as np
import torch

NUM_TIMESTEPS = 1000

_betas = np.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=np.float64)
_alphas_bar = np.cumprod(1 - _betas)
_alphas_bar_prev = np.append(1.0, _alphas_bar[:-1])
_posterior_variance = _betas * (1 - _alphas_bar_prev) / (1 - _alphas_bar)                  # eq. 7 of DDPM
_min_log_variance = np.log(np.append(_posterior_variance[1], _posterior_variance[1:]))     # at t = 0 it would be -inf
_max_log_variance = np.log(_betas)
_posterior_mean_x0 = _betas * np.sqrt(_alphas_bar_prev) / (1 - _alphas_bar)                # eq. 7 of DDPM
_posterior_mean_xt = (1 - _alphas_bar_prev) * np.sqrt(1 - _betas) / (1 - _alphas_bar)
_tables = {name: torch.from_numpy(values) for name, values in dict(
    signal=np.sqrt(_alphas_bar), noise=np.sqrt(1 - _alphas_bar), min_log_variance=_min_log_variance, max_log_variance=_max_log_variance,
    posterior_mean_x0=_posterior_mean_x0, posterior_mean_xt=_posterior_mean_xt).items()}


def _at(table, t):
    """Entries t of a table, (N,) -> (N, 1, 1, 1) float32."""
    return _on_device(table, t.device)[t].float().view(-1, 1, 1, 1)


@functools.cache
def _on_device(table, device):
    """A table on a device, copied there once: each such copy would make the host wait."""
    return _tables[table].to(device)


# ------------------------------------------------------------------------------------------------------- training

def add_noise(x0, t, noise):
    """Samples q(x_t | x_0), eq. 4 of DDPM."""
    return _at("signal", t) * x0 + _at("noise", t) * noise


def training_losses(model, x0, t, y, noise):
    """L_simple + L_vlb of improved DDPM (eq. 16 with lambda = 1, as DiT), per sample.

    The bound's mean takes no gradient from it: only the variance learns from it.

    :param model: called model(x_t, t, y), returns (N, 2C, H, W)
    :param x0: (N, C, H, W) latents
    :param t: (N,) int64, 0…999
    :param noise: like x0, standard normal
    :return: dict of (N,) float32: loss = mse + vb; vb in bits per dimension
    """
    x_t = add_noise(x0, t, noise)
    eps, fraction = model(x_t, t, y).float().chunk(2, dim=1)
    mse = _mean(torch.square(eps - noise))
    vb = _variational_bound(x0, x_t, t, eps.detach(), fraction)
    return dict(loss=mse + vb, mse=mse, vb=vb)


def _variational_bound(x0, x_t, t, eps, fraction):
    """One term of the bound: KL(q(x_{t-1} | x_t, x_0) || p) for t > 0, -log p(x_0 | x_1) for t = 0; bits per dimension."""
    predicted_x0 = (x_t - _at("noise", t) * eps) / _at("signal", t)
    mean = _posterior_mean(predicted_x0, x_t, t)
    true_mean = _posterior_mean(x0, x_t, t)
    low, high = _at("min_log_variance", t), _at("max_log_variance", t)
    log_variance = low + (fraction + 1) / 2 * (high - low)                                 # eq. 15 of improved DDPM
    kl = 0.5 * (log_variance - low - 1 + torch.exp(low - log_variance)
                + torch.square(true_mean - mean) * torch.exp(-log_variance))
    nll = -_log_likelihood_of_bin(x0, mean, 0.5 * log_variance)
    return _mean(torch.where(t.view(-1, 1, 1, 1) == 0, nll, kl)) / math.log(2)


def _posterior_mean(x0, x_t, t):
    return _at("posterior_mean_x0", t) * x0 + _at("posterior_mean_xt", t) * x_t


def _log_likelihood_of_bin(x, mean, log_std):
    """Log probability of x's bin, [-1, 1] cut into 255 and open at its ends, under a Gaussian; eq. 13 of DDPM.

    The normal distribution function is the tanh approximation (Page 1977), as in the code DiT was trained with.
    """
    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))

    inv_std = torch.exp(-log_std)
    below, above = cdf(inv_std * (x - mean - 1 / 255)), cdf(inv_std * (x - mean + 1 / 255))
    p = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return p.clamp(min=1e-12).log()


def _mean(x):
    return x.flatten(1).mean(1)


# ------------------------------------------------------------------------------------------------------- sampling

def guided(model, x, t, y, null_class, scale, guided_channels=None):
    """Classifier-free guidance (Ho & Salimans 2022) on the predicted noise; one forward when the scale is 1.

    :param y: (N,) labels
    :param null_class: the label that stands for none
    :param scale: 1 is no guidance
    :param guided_channels: of the noise; None: all of them. 3 is what the published DiT code does
    :return: (N, 2C, H, W); variance from the conditional output
    """
    if scale == 1:
        return model(x, t, y)
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, null_class)]))
    conditional, null = both.chunk(2)
    n = x.shape[1] if guided_channels is None else guided_channels
    noise = null[:, :n] + scale * (conditional[:, :n] - null[:, :n])
    return torch.cat([noise, conditional[:, n:]], dim=1)








def seeded_generator(seed, index):
    """Training step or sample `index` draws all it needs from here: the same whatever the batch or the device."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


