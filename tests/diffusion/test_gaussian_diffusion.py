import json

import numpy as np
import torch
from helpers import golden

import models
from diffusion import gaussian_diffusion


def close(ours, theirs, relative):
    return np.abs(ours.numpy() - theirs).max() <= relative * np.abs(theirs).max()


def test_losses_are_the_references():
    g = {k: torch.from_numpy(v) for k, v in golden("training_losses.npz").items()}
    assert close(gaussian_diffusion.add_noise(g["x0"], g["t"], g["noise"]), g["x_t"].numpy(), 1e-6)

    def model(x_t, t, y):
        assert close(x_t, g["x_t"].numpy(), 1e-6) and torch.equal(t, g["t"])
        return g["model_output"]

    losses = gaussian_diffusion.training_losses(model, g["x0"], g["t"], None, g["noise"])
    for k in ("loss", "mse", "vb"):
        assert (torch.abs(losses[k] - g[k]) <= 1e-5 * g[k]).all()


def test_the_bound_trains_the_variance_alone():
    torch.manual_seed(0)
    out = torch.randn(3, 8, 4, 4, requires_grad=True)
    x0, noise = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    losses = gaussian_diffusion.training_losses(
        lambda *a: out, x0, torch.tensor([0, 10, 900]), None, noise
    )
    (grad,) = torch.autograd.grad(losses["vb"].sum(), out, retain_graph=True)
    assert torch.count_nonzero(grad[:, :4]) == 0 and torch.count_nonzero(grad[:, 4:]) > 0
    (grad,) = torch.autograd.grad(losses["mse"].sum(), out)
    assert torch.count_nonzero(grad[:, 4:]) == 0


def test_guidance_is_the_references_with_three_channels():
    g = golden("dit_small.npz")
    model = models.DiT(**json.loads(str(g["config"]))).eval()
    model.load_state_dict(
        {
            k.removeprefix("state/"): torch.from_numpy(v)
            for k, v in g.items()
            if k.startswith("state/")
        }
    )
    x, t, y = (torch.from_numpy(g[f"cfg_{k}"])[:2] for k in "xty")
    scale = float(g["cfg_scale"])
    with torch.no_grad():
        three = gaussian_diffusion.guided(model, x, t, y, 10, scale, 3)
        four = gaussian_diffusion.guided(model, x, t, y, 10, scale)
        conditional, null = model(x, t, y), model(x, t, torch.full_like(y, 10))
    assert close(three, g["cfg_out"][:2], 1e-5)
    assert torch.allclose(
        four[:, :4], null[:, :4] + scale * (conditional - null)[:, :4], rtol=1e-4, atol=1e-4
    )
    assert torch.allclose(four[:, 4:], conditional[:, 4:], rtol=1e-4, atol=1e-4) and torch.allclose(
        four[:, :3], three[:, :3]
    )


def test_one_forward_when_nothing_guides():
    calls = []
    model = lambda x, t, y: calls.append(len(x)) or torch.cat([x, x], 1)  # noqa: E731
    x, t, y = (
        torch.randn(3, 4, 2, 2),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(3, dtype=torch.long),
    )
    gaussian_diffusion.guided(model, x, t, y, 10, 1.0)
    gaussian_diffusion.guided(model, x, t, y, 10, 1.5)
    assert calls == [3, 6]


def test_nothing_on_the_device_is_float64():
    """Apple GPUs have no float64; the tables are rounded to float32 before they are copied."""
    t = torch.arange(0, 1000, 37)
    for name, table in gaussian_diffusion._TABLES.items():
        values = gaussian_diffusion._table_on(torch.device("cpu"), name)
        assert values.dtype == torch.float32
        exact = torch.from_numpy(table)[t].float().view(-1, 1, 1, 1)
        assert torch.equal(gaussian_diffusion._at(name, t), exact)
