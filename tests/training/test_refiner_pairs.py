"""Pairs for the refiner: which they are, and that each depends on the seed and its index alone."""
import math

import numpy as np
import pytest
import torch
from helpers import related

from diffusion import samplers
from diffusion import vae as vae_module
from diffusion.foreground import Foreground
from mri import mosaic
from mri.covariates import CATEGORY, NUMBER, Column
from training import refiner_pairs
from utils.errors import UserError
from utils.seeding import seeded_generator

HEADER = {"size": 16, "layout": "rgb"}
NUM_STEPS = 10


class Zero(torch.nn.Module):
    """Predicts no noise, and the lower bound of the variance."""

    def forward(self, x, t, y):
        return torch.cat([torch.zeros_like(x), -torch.ones_like(x)], 1)


class Told(torch.nn.Module):
    """Predicts as noise, everywhere, its class plus its covariate; of a missing one nothing."""

    def forward(self, x, t, y, covariates):
        value = y + covariates[:, 0].nan_to_num()
        return torch.cat([value[:, None, None, None].expand_as(x), -torch.ones_like(x)], 1)


@pytest.fixture(scope="module")
def vae(vae_folder):
    return vae_module.load_vae(vae_folder)


@pytest.fixture(scope="module")
def volumes():
    return (255 * related(3, 16)).astype(np.uint8)


@pytest.fixture(scope="module")
def pairs_and_moments(vae, volumes):
    mosaics = np.stack([mosaic.tile(volume, "rgb") for volume in volumes])
    return refiner_pairs.round_trips(vae, mosaics, HEADER)


def resampled(vae, moments, count, seed=0, model=None, labels=(0, 0, 0), covariates=None,
              foreground=None):
    return refiner_pairs.resampled(
        model or Zero(), vae, moments, np.array(labels), count, [2, 3], header=HEADER,
        num_steps=NUM_STEPS, seed=seed, precision="fp32", covariates=covariates,
        foreground=foreground)


def test_round_trips_are_what_the_vae_makes_of_real_volumes(vae, volumes, pairs_and_moments):
    pairs, moments = pairs_and_moments
    assert np.array_equal(pairs.targets, volumes)
    assert pairs.target_of.tolist() == [0, 1, 2] and pairs.timesteps.tolist() == [0, 0, 0]
    mosaics = np.stack([mosaic.tile(volume, "rgb") for volume in volumes])
    expected = vae_module.reconstruct(vae, mosaics)
    assert np.array_equal(pairs.inputs, refiner_pairs.untile_all(expected, HEADER))
    assert torch.equal(moments, vae_module.encode_moments(vae, mosaics))


def test_steps_between_timesteps():
    """10 steps of 1000 start at 0, 111, 222, …"""
    assert refiner_pairs.steps_between(100, 350, NUM_STEPS).tolist() == [2, 3, 4]
    assert refiner_pairs.steps_between(112, 221, NUM_STEPS).tolist() == []
    assert samplers.respaced_timesteps(NUM_STEPS)[[1, 3]].tolist() == [111, 333]


def test_resampled_volumes_depend_on_seed_and_index(vae, pairs_and_moments):
    _, moments = pairs_and_moments
    inputs, volume_of, timesteps = resampled(vae, moments, 12)
    assert inputs.shape == (12, 16, 16, 16) and inputs.dtype == np.uint8
    assert set(timesteps) == {111, 222} and set(volume_of) == {0, 1, 2}
    fewer = resampled(vae, moments, 5)
    assert fewer[1].tolist() == volume_of[:5].tolist()
    assert fewer[2].tolist() == timesteps[:5].tolist()
    assert np.abs(fewer[0].astype(int) - inputs[:5]).max() <= 1   # another batch, other rounding
    assert not np.array_equal(resampled(vae, moments, 5, seed=1)[0], fewer[0])


def test_each_volume_has_its_own_class_and_covariates(vae, pairs_and_moments):
    _, moments = pairs_and_moments
    labels, values = (0, 2, 1), torch.tensor([[0.5], [math.nan], [-1.0]])
    inputs, volume_of, _ = resampled(vae, moments, 12, model=Told(), labels=labels,
                                     covariates=values)
    assert set(volume_of) == {0, 1, 2}
    plain = resampled(vae, moments, 12)[0]
    for i, (label, value) in enumerate(zip(labels, values)):
        alike = resampled(vae, moments, 12, model=Told(), labels=(label,) * 3,
                          covariates=value.expand(3, 1))[0]
        chosen = volume_of == i
        assert np.array_equal(inputs[chosen], alike[chosen])
        # volume 2: 1 + -1
        assert np.array_equal(inputs[chosen], plain[chosen]) == (i == 2)


def test_what_a_model_does_not_compute_is_background(vae, pairs_and_moments, monkeypatch):
    """As in sample.py: there the network's output is 0, and the latents end as noise."""
    _, moments = pairs_and_moments
    background = torch.full(moments.shape[1:], 3.0)[:5]
    model, decoded = Zero(), []
    model.kept_latents = torch.arange(60)                   # the first 5 of 12 rows
    decode = vae_module.decode
    monkeypatch.setattr(vae_module, "decode",
                        lambda vae, latents: decoded.append(latents) or decode(vae, latents))
    for foreground in (None, Foreground(torch.arange(3), background)):
        resampled(vae, moments, 4, model=model, foreground=foreground)
    half = len(decoded) // 2
    for plain, filled in zip(decoded[:half], decoded[half:]):
        assert torch.equal(filled[:, :, :5], plain[:, :, :5])
        assert (filled[:, :, 5:] == 3).all() and not (plain[:, :, 5:] == 3).any()


def metadata_of(*columns):
    config = {"num_classes": 2, **({"covariates": [len(c.levels) for c in columns]}
                                   if columns else {})}
    found = {"config": config, "header": HEADER}
    if columns:
        row = [c.levels[0] if c.levels else c.mean for c in columns]
        found["covariates"] = {"columns": [c.to_json() for c in columns], "rows": [[0, row, 2]],
                               "sha256": "ab"}
    return found


def test_a_data_folder_must_have_what_the_model_takes():
    age, sex = Column("age", NUMBER, mean=70, lowest=60, highest=80), Column(
        "sex", CATEGORY, levels=("F", "M"))
    header = HEADER | {"covariates": [age.to_json()]}
    entries = [{"class": 1, "covariates": {"age": 65}}, {"class": 0}]

    def check(metadata, header=header, entries=entries):
        return refiner_pairs.check_data(metadata, "c", header, entries, "d")

    assert check(metadata_of()) is None
    assert check(metadata_of(age)).columns == (age,)
    for given, message in (
            ((metadata_of(age, sex),), "d: lacks the covariates sex that c takes; preprocess"),
            ((metadata_of(age), HEADER), "d: lacks the covariates age that c takes"),
            ((metadata_of(sex), header | {"covariates": [sex.to_json()]},
              [{"class": 0, "covariates": {"sex": "X"}}]), "d: 'X' is not a value of .* sex F, M"),
            ((metadata_of(), header | {"size": 20}), "c: was trained on rgb mosaics of 16.3"),
            ((metadata_of(), header, [{"class": 2}]), "d: has more classes than the 2 of c")):
        with pytest.raises(UserError, match=message):
            check(*given)


def test_resampling_a_step_takes_away_what_the_network_says_is_noise():
    """With no noise predicted, the step from timestep t on divides by sqrt(alpha-bar_t)."""
    latents = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    found, timestep = samplers.resample(Zero(), latents, 1, torch.zeros(1, dtype=torch.long),
                                        [seeded_generator(0, 0)], "ddim", NUM_STEPS)
    noise = torch.randn(2, 4, 4, generator=seeded_generator(0, 0))
    assert timestep == 0
    alpha_bar = samplers.ALPHAS_BAR[0]
    np.testing.assert_allclose(
        found[0], latents[0] + np.sqrt((1 - alpha_bar) / alpha_bar) * noise, atol=1e-5)


def test_batches_are_crops_of_both_kinds(pairs_and_moments):
    pairs, _ = pairs_and_moments
    more = np.stack([255 - pairs.targets[2]])
    pairs = refiner_pairs.joined(pairs, more, np.array([2]), np.array([50]))
    assert pairs.kind(resampled=True).tolist() == [3]
    batch = refiner_pairs.draw_batch(pairs, 6, 8, seeded_generator(0, 1))
    assert batch.timesteps.tolist() == [0, 50] * 3
    assert batch.inputs.shape == batch.targets.shape == (6, 8, 8, 8)
    assert torch.equal(batch.inputs[1::2], 255 - batch.targets[1::2])
    whole = torch.from_numpy(pairs.targets[2])
    for crop, first in zip(batch.targets[1::2], batch.first_slices[1::2]):
        windows = whole.unfold(0, 8, 1).unfold(1, 8, 1)[:, :, int(first):int(first) + 8]
        windows = windows.permute(0, 1, 3, 4, 2)
        same = (windows == crop).flatten(2).all(2) | (windows.flip(2) == crop).flatten(2).all(2)
        assert same.sum() == 1
    again = refiner_pairs.draw_batch(pairs, 6, 8, seeded_generator(0, 1))
    assert torch.equal(again.inputs, batch.inputs)
