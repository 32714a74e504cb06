"""Foreground tokens: which they are, what a model computes of them, what fills the others."""
import json

import numpy as np
import pytest
import torch
from helpers import golden

import models
from benchmarks import baseline
from diffusion import foreground, gaussian_diffusion, samplers
from training import finetuning
from utils.errors import UserError
from utils.seeding import seeded_generator

KEPT = torch.tensor([1, 2, 4, 7, 8, 11, 13])     # of the 16 tokens of a 4 x 4 grid


def golden_model(kept=None):
    """The reference's small model, and its inputs x, t, y."""
    g = golden("dit_small.npz")
    model = models.DiT(**json.loads(str(g["config"]))).eval()
    model.load_state_dict({key.removeprefix("state/"): torch.from_numpy(value)
                           for key, value in g.items() if key.startswith("state/")})
    return model.keep_tokens(kept), [torch.from_numpy(g[key]) for key in "xty"]


def test_touched_latents_are_those_with_a_pixel_above_zero():
    mosaic = np.zeros((16, 24, 3), np.uint8)
    mosaic[0, 0, 0] = mosaic[7, 8, 2] = mosaic[15, 23, 1] = 1
    expected = np.array([[1, 1, 0], [0, 0, 1]], bool)
    assert np.array_equal(foreground.touched_latents(mosaic, 8), expected)


def test_tokens_are_patches_with_a_touched_latent_and_a_margin():
    touched = np.zeros((8, 8), bool)
    touched[0, 0] = touched[5, 5] = True        # patches (0, 0) and (2, 2) of 4 x 4
    assert foreground.foreground_tokens(touched, 2).tolist() == [0, 10]
    expected = [0, 1, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15]
    assert foreground.foreground_tokens(touched, 2, margin=1).tolist() == expected
    with pytest.raises(UserError, match="--tokens foreground: all mosaics are black"):
        foreground.foreground_tokens(np.zeros((8, 8), bool), 2)


@pytest.mark.parametrize("way", ["as built", "long", "lean", "recomputed"])
def test_kept_tokens_are_computed_as_under_masked_attention_over_all(way, monkeypatch):
    model, inputs = golden_model(KEPT)
    assert model.grid == 4
    model.save_memory(way == "lean", 2 if way == "recomputed" else 0)
    if way in ("long", "lean"):
        monkeypatch.setattr(models, "LONG_SEQUENCE", 1)
    out, expected = model(*inputs), baseline.forward(model, *inputs)
    assert (out - expected).norm() <= 1e-6 * expected.norm()
    gradients = []
    for result in (out, expected):
        loss = result.square().mean()
        gradients.append(torch.autograd.grad(loss, [p for p in model.parameters()
                                                    if p.requires_grad]))
    for ours, theirs in zip(*gradients):
        assert (ours - theirs).norm() <= 5e-5 * theirs.norm()


def test_all_tokens_kept_is_the_model_itself():
    model, inputs = golden_model()
    whole = model(*inputs)
    assert torch.equal(model.keep_tokens(torch.arange(16))(*inputs), whole)
    assert torch.equal(model.keep_tokens(None)(*inputs), whole)


def test_output_and_loss_depend_on_kept_tokens_alone():
    model, (x, t, y) = golden_model(KEPT)
    side = x.shape[-1]
    patch = side // 4
    outside = torch.ones(16, dtype=torch.bool)
    outside[KEPT] = False
    mask = outside.view(4, 4).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    changed = torch.where(mask, x + 7, x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    assert torch.equal(model(changed, t, y), model(x, t, y))
    assert (model(x, t, y)[:, :, mask] == 0).all() and (model(x, t, y)[:, :, ~mask] != 0).any()
    losses, others = (gaussian_diffusion.training_losses(model, x0, t, y, noise,
                                                         model.kept_latents)
                      for x0 in (x, changed))
    assert all(torch.equal(losses[key], others[key]) for key in losses)
    predicted = model(gaussian_diffusion.add_noise(x, t, noise), t, y)[:, :x.shape[1]]
    mse = torch.square(predicted - noise)[:, :, ~mask].flatten(1).mean(1)
    assert torch.allclose(losses["mse"], mse, rtol=1e-6)


def test_only_kept_tokens_have_gradients_of_their_embedding():
    model, (x, t, y) = golden_model(KEPT)
    trained = finetuning.set_trainable(model, "difffit")
    model(x, t, y).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in trained.values())
    assert trained["x_embedder.proj.bias"].grad.abs().sum() > 0


def test_samples_are_filled_with_the_background():
    model, (x, _, _) = golden_model(KEPT)
    background = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(1))
    part = foreground.Foreground(KEPT, background)
    latents = samplers.sample(model, tuple(x.shape[1:]), torch.zeros(2, dtype=torch.long), 10,
                              [seeded_generator(0, i) for i in range(2)], "dpm++", 4)
    filled = part.fill(latents, model.kept_latents)
    positions = torch.zeros(x.shape[-1] ** 2, dtype=torch.bool)
    positions[model.kept_latents] = True
    inside = positions.view(x.shape[-2:])
    assert torch.equal(filled[:, :, inside], latents[:, :, inside])
    assert torch.equal(filled[1][:, ~inside], background[:, ~inside])
    assert inside.sum() == len(KEPT) * model.patch_size ** 2


@pytest.mark.parametrize("spoil", ["order", "range", "dtype", "shape", "nan", "missing"])
def test_tensors_of_another_model_are_refused(spoil):
    tensors = {"kept": KEPT.clone(), "background": torch.zeros(4, 8, 8)}
    config = {"input_size": 8, "patch_size": 2, "in_channels": 4}
    assert torch.equal(foreground.check(dict(tensors), config, "f").kept, KEPT)
    if spoil == "order":
        tensors["kept"][0] = 5
    elif spoil == "range":
        tensors["kept"][-1] = 16
    elif spoil == "dtype":
        tensors["kept"] = KEPT.int()
    elif spoil == "shape":
        tensors["background"] = torch.zeros(4, 8, 4)
    elif spoil == "nan":
        tensors["background"][0, 0, 0] = torch.nan
    else:
        del tensors["background"]
    with pytest.raises(UserError, match="f: its foreground tokens are not those of its model"):
        foreground.check(tensors, config, "f")
