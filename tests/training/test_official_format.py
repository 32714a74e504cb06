import json
import math

import original_dit
import pytest
import torch
from helpers import GOLDEN, golden, randomize, small_dit

import models
from training import official_format


def inputs(model):
    torch.manual_seed(3)
    side = model.grid * model.patch_size
    return (torch.randn(3, model.in_channels, side, side), torch.tensor([0, 371, 999]),
            torch.tensor([0, 1, model.num_classes]))


def test_the_independent_description_is_the_reference():
    g = golden("dit_small.npz")
    state = {k.removeprefix("state/"): torch.from_numpy(v) for k, v in g.items()
             if k.startswith("state/")}
    heads = json.loads(str(g["config"]))["num_heads"]
    out = original_dit.forward(state, *(torch.from_numpy(g[k]) for k in "xty"), heads)
    assert (out - torch.from_numpy(g["out"])).abs().max() <= 1e-5 * abs(g["out"]).max()
    official = json.loads((GOLDEN / "state_dict_shapes.json").read_text())["DiT-XL/2@512"]
    described = original_dit.shapes(1152, 28, 2, 4, 1000, 32)
    assert {name: list(shape) for name, shape in described.items()} == official


def test_scale_vectors_are_folded_into_the_weights():
    model = randomize(small_dit(gamma_blocks=2, base_grid=2, num_classes=2)).eval()
    state = official_format.official_state_dict(model)
    assert {k: tuple(v.shape) for k, v in state.items()} == original_dit.shapes(64, 3, 2, 4, 2, 4)
    assert torch.equal(state["pos_embed"][0], models.pos_embed(64, 4, 2))
    with torch.no_grad():
        ours = model(*inputs(model))
        theirs = original_dit.forward(state, *inputs(model), heads=4)
        unscaled = {**state, "blocks.1.mlp.fc2.weight": model.blocks[1].mlp.fc2.weight}
        wrong = original_dit.forward(unscaled, *inputs(model), heads=4)
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()
    assert (ours - wrong).abs().max() > 1e-4 * ours.abs().max()
    assert "blocks.0.gamma1" in model.state_dict()      # the model itself is as it was


def test_a_choice_of_covariates_is_folded_into_the_class_table():
    model = randomize(small_dit(covariates=(0, 2), num_classes=2)).eval()
    x, t, y = inputs(model)                             # y: 0, 1 and the null class
    for row in ([0.7, 1.0], [math.nan, 0.0], [math.nan, math.nan]):
        covariates = torch.tensor([row])
        state = official_format.official_state_dict(model, covariates)
        assert {k: tuple(v.shape) for k, v in state.items()} == original_dit.shapes(
            64, 3, 2, 4, 2, 4)
        with torch.no_grad():
            ours = model(x, t, y, covariates.expand(3, -1))
            nothing = model(x, t, y)
            theirs = original_dit.forward(state, x, t, y, heads=4)
        assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()
        differs = (theirs - nothing).abs().amax((1, 2, 3)) > 1e-4 * ours.abs().max()
        is_asked = not all(map(math.isnan, row))
        assert differs.tolist() == [is_asked, is_asked, False]
    kept = official_format.official_state_dict(model)
    assert torch.equal(kept["condition_embedder.missing"], model.condition_embedder.missing)
    assert torch.equal(kept["y_embedder.embedding_table.weight"],
                       model.y_embedder.embedding_table.weight)


def test_the_config_is_of_the_weights():
    config = dict(models.config_of("DiT-T/4"), num_classes=2, gamma_blocks=3, covariates=[0, 2])
    folded, kept = (official_format.official_config(config, folded) for folded in (True, False))
    assert folded == dict(models.config_of("DiT-T/4"), num_classes=2, gamma_blocks=0)
    assert kept == folded | {"covariates": [0, 2]} and config["gamma_blocks"] == 3


METADATA = dict(
    model="DiT-XL/2", image_size=896, vae=dict(name="ema", scaling_factor=0.18215),
    header=dict(classes=["CN", "AD"]),
    config=dict(models.config_of("DiT-XL/2"), input_size=112, in_channels=4, num_classes=1000,
                numerics="official"))


def test_what_has_to_be_changed_for_the_papers_model():
    size, classes = official_format.needed_changes(METADATA)
    assert "256 and 512 pixels: add 896" in size and "classes here, 0 to 1" in classes
    assert official_format.differences(METADATA) == []


@pytest.mark.parametrize("change, words", [
    (dict(num_classes=3), "null class is 1000: write 3"),
    (dict(in_channels=8), "4 channels, these 8"),
    (dict(input_size=224), "side of 112, these 224")])
def test_other_changes(change, words):
    metadata = METADATA | {"config": METADATA["config"] | change}
    assert any(words in line for line in official_format.needed_changes(metadata))


def test_models_and_vaes_that_the_original_does_not_have():
    small = METADATA | {"model": "DiT-T/2", "vae": dict(name="vae/x", scaling_factor=0.5)}
    lines = official_format.needed_changes(small)
    assert "no DiT-T/2" in lines[0] and "multiplied by 0.5" in lines[-1]


def test_what_the_original_code_computes_otherwise():
    diffusers = METADATA | {"config": METADATA["config"] | {"numerics": "diffusers"}}
    (numerics,) = official_format.differences(diffusers)
    (tokens,) = official_format.differences(METADATA, kept_tokens=2100)
    assert "time frequencies" in numerics and "2,100 of 3,136 tokens" in tokens
