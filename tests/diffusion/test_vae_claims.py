"""A VAE's config asks for no more than its weights files hold, before anything is allocated."""
import json
import resource
import shutil
import time

import pytest

from diffusion import vae as vae_module
from diffusion import vae_claims
from utils.errors import UserError


@pytest.fixture
def altered(vae_folder, tmp_path):
    """A function that changes keys of the config of a copy of a small VAE."""
    folder = shutil.copytree(vae_folder, tmp_path / "v")

    def change(**values):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder
    return change


def check_refused(folder, words):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=words) as e:
        vae_module.load_vae(str(folder))
    assert "cannot be loaded as an AutoencoderKL" in str(e.value) and "\n" not in str(e.value)
    assert time.monotonic() - start < 10
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before    # KiB
    assert grown < 2 ** 19, grown


def test_a_right_one(vae_folder, altered):
    vae_claims.check_folder(vae_folder)
    assert vae_module.load_vae(str(altered(sample_size=512))).config.sample_size == 512


@pytest.mark.parametrize("values, words", [
    (dict(block_out_channels=[16384] * 3), "bad `block_out_channels`"),
    (dict(block_out_channels=[4096] * 3), "asks for [0-9,]{13} weights, its safetensors"),
    (dict(block_out_channels=[16] * 9), "bad `block_out_channels`"),
    (dict(block_out_channels="16"), "bad `block_out_channels`"),
    (dict(layers_per_block=10 ** 6), "bad `layers_per_block`"),
    (dict(latent_channels=10 ** 9), "bad `latent_channels`"),
    (dict(latent_channels=True), "bad `latent_channels`"),
    (dict(norm_num_groups=0), "bad `norm_num_groups`"),
    (dict(scaling_factor=0), "bad `scaling_factor`"),
    (dict(scaling_factor=float("nan")), "bad `scaling_factor`"),
    (dict(shift_factor="x"), "bad `shift_factor`"),
    (dict(down_block_types=["DownEncoderBlock2D"] * 99), "bad `down_block_types`"),
    (dict(down_block_types=["NoSuchBlock"] * 3), "not the config of an AutoencoderKL"),
], ids=str)
def test_claims(altered, values, words):
    check_refused(altered(**values), words)


def test_a_config_that_never_ends(altered):
    folder = altered()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    with pytest.raises(UserError):
        vae_module.load_vae(str(folder))


def test_weights_that_never_end(altered):
    folder = altered()
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    check_refused(folder, "not a regular file")
