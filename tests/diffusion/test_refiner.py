"""The refiner: identity before training, slabs equal to the whole, files read safely."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion import refiner as refiners
from mri import mosaic
from utils.errors import UserError

SHA = "a" * 64
TRAINED_FOR = dict(size=9, layout="rgb", vae_sha256=SHA, ckpt_sha256=None)


def trained(places=3, seed=0, **sizes):
    """A network with random weights everywhere, so that it changes volumes."""
    torch.manual_seed(seed)
    network = refiners.RefinerNet(places, **sizes)
    torch.nn.init.normal_(network.convolutions[-1].weight, std=0.5)
    return network.requires_grad_(False)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(9, 9, 9), (8, 7, 13), (16, 16, 16)])
def test_it_is_the_identity_before_training(shape):
    volume = random_volume(shape)
    as_float = np.random.default_rng(1).random(shape, np.float32)
    for places in (1, 3):
        network = refiners.RefinerNet(places)
        assert np.array_equal(refiners.refine_volume(network, volume), volume)
        assert np.array_equal(refiners.refine_volume(network, as_float), as_float)
        assert refiners.refine_volume(network, volume).dtype == np.uint8


@pytest.mark.parametrize("slab_voxels", [1, 13 * 8 * 10, 13 * 8 * 14])
def test_slabs_equal_the_whole_volume(slab_voxels):
    volume = np.random.default_rng(2).random((8, 13, 31), np.float32)
    network = trained()
    whole = refiners.refine_volume(network, volume, slab_voxels=10 ** 9)
    assert np.abs(whole - volume).max() > 0.05
    slabs = refiners.refine_volume(network, volume, slab_voxels=slab_voxels)
    np.testing.assert_allclose(slabs, whole, atol=1e-6)
    as_bytes = (volume * 255).round().astype(np.uint8)
    assert np.array_equal(refiners.refine_volume(network, as_bytes, slab_voxels=slab_voxels),
                          refiners.refine_volume(network, as_bytes, slab_voxels=10 ** 9))


def test_a_slab_sees_five_slices_on_either_side_and_not_more():
    """A change of slice 12 reaches slices 7 to 17, whose network has 5 layers."""
    volume = np.full((6, 6, 25), 0.5, np.float32)
    changed = volume.copy()
    changed[:, :, 12] = 0.9
    network = trained()
    difference = np.abs(refiners.refine_volume(network, changed)
                        - refiners.refine_volume(network, volume)).max((0, 1))
    assert np.flatnonzero(difference).tolist() == list(range(7, 18))


def test_the_place_in_the_tile_matters():
    """Equal slices are corrected alike where their places are, away from the ends."""
    network = trained()
    volume = np.full((6, 6, 24), 0.5, np.float32)
    refined = refiners.refine_volume(network, volume)[..., 5:-5]
    np.testing.assert_allclose(refined[..., 3:], refined[..., :-3], atol=1e-6)
    assert np.abs(refined[..., 1:] - refined[..., :-1]).max() > 1e-3
    gray = refiners.refine_volume(trained(places=1), volume)[..., 5:-5]
    np.testing.assert_allclose(gray[..., 1:], gray[..., :-1], atol=1e-6)


def test_fold_moves_blocks_of_pixels_into_channels():
    x = torch.arange(2 * 4 * 6 * 3).float().reshape(2, 4, 6, 3)
    folded = refiners.fold(x)
    assert folded.shape == (2, 4, 2, 3, 3)
    for channel, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        assert torch.equal(folded[:, channel], x[:, row::2, column::2])
    assert torch.equal(refiners.unfold(folded), x)


def test_places_of_slices():
    assert refiners.places_of_slices(4, 5, 3).tolist() == [1, 2, 0, 1, 2]
    assert refiners.places_of_slices(4, 3, 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01])
def test_values_outside_the_unit_range_are_refused(value):
    volume = np.full((4, 4, 4), 0.5, np.float32)
    volume[1, 2, 3] = value
    with pytest.raises(UserError, match="volume to refine: has values from .* in \\[0, 1\\]"):
        refiners.refine_volume(refiners.RefinerNet(3), volume)


def test_a_mosaic_is_refined_as_its_volume(tmp_path):
    volume = random_volume((9, 9, 9))
    refiners.save_refiner(tmp_path, trained(), **TRAINED_FOR)
    refiner = refiners.load_refiner(tmp_path)
    refined = refiner.refine_mosaic(mosaic.tile(volume, "rgb"))
    assert not np.array_equal(refined, mosaic.tile(volume, "rgb"))
    assert np.array_equal(mosaic.untile(refined, 9, "rgb"), refiner.refine(volume))


# -------------------------------------------------------------------------------------------- files

def test_a_folder_gives_the_refiner_back(tmp_path):
    network = trained(channels=8, layers=3)
    config = refiners.save_refiner(tmp_path, network, **TRAINED_FOR)
    assert {key: config[key] for key in ("size", "layout", "channels", "layers")} == {
        "size": 9, "layout": "rgb", "channels": 8, "layers": 3}
    refiner = refiners.load_refiner(tmp_path)
    assert refiner.config == json.loads((tmp_path / "config.json").read_text()) == config
    assert refiner.sha256 == refiners.checksum(network.state_dict())
    volume = random_volume((9, 9, 9))
    assert np.array_equal(refiner.refine(volume), refiners.refine_volume(network, volume))


@pytest.mark.parametrize("change, message", [
    ({"format": "x"}, "config.json: not of a refiner; name a folder that train_refiner.py wrote"),
    ({"version": 2}, "format version 2, this code reads 1; train it again"),
    ({"channels": 10 ** 9}, "config.json: damaged"),
    ({"channels": True}, "config.json: damaged"),
    ({"layers": 1}, "config.json: damaged"),
    ({"layout": "cmyk"}, "config.json: damaged"),
    ({"size": "9"}, "config.json: damaged"),
    ({"vae_sha256": None}, "config.json: damaged"),
    ({"ckpt_sha256": 5}, "config.json: damaged"),
    ({"channels": 8}, "refiner.safetensors: missing, damaged, or of another network"),
    ({"sha256": "b" * 64}, "refiner.safetensors: damaged \\(its checksum differs"),
])
def test_damaged_configs_are_refused(tmp_path, change, message):
    config = refiners.save_refiner(tmp_path, trained(), **TRAINED_FOR)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=f"^--refiner .*{message}"):
        refiners.load_refiner(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no config.json; name a folder that train_refiner"):
        refiners.load_refiner(tmp_path)
    network = trained()
    network.convolutions[0].weight[0, 0, 0, 0, 0] = float("nan")
    refiners.save_refiner(tmp_path, network, **TRAINED_FOR)
    with pytest.raises(UserError, match="numbers that are not finite"):
        refiners.load_refiner(tmp_path)
    path = tmp_path / "refiner.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "0" not in name}, path)
    with pytest.raises(UserError, match="missing, damaged, or of another network"):
        refiners.load_refiner(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="missing, damaged, or of another network"):
        refiners.load_refiner(tmp_path)


def test_another_size_or_layout_is_refused_by_name():
    refiner = refiners.Refiner(None, TRAINED_FOR, "r")
    refiner.check_shape(9, "rgb", "x")
    for size, layout in ((8, "rgb"), (9, "gray")):
        with pytest.raises(UserError) as e:
            refiner.check_shape(size, layout, "data/adni")
        assert str(e.value) == (
            "--refiner r: was trained for rgb mosaics of 9^3, but data/adni has "
            f"{layout} mosaics of {size}^3; train one with train_refiner.py")


def test_another_vae_or_checkpoint_is_named():
    config = {**TRAINED_FOR, "ckpt_sha256": "c" * 64}
    refiner = refiners.Refiner(None, config, "r")
    assert refiner.doubts(SHA, "c" * 64, "s") == []
    assert refiner.doubts("b" * 64, "d" * 64, "s") == [
        f"--refiner r was trained for another VAE ({SHA[:12]}) than that of s ({'b' * 12})",
        f"--refiner r was trained for another checkpoint ({'c' * 12}) than that of s ({'d' * 12})"]
    assert refiner.doubts(None, "c" * 64, "s") == [
        f"s does not say which VAE it is from; --refiner r was trained for {SHA[:12]}"]
    assert refiners.Refiner(None, TRAINED_FOR, "r").doubts(SHA, "d" * 64, "s") == []
