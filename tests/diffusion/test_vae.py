
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import error_line, random_vae, script

from diffusion import vae as vae_module
from utils.errors import UserError


def test_pixels_round_trip():
    mosaics = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mosaics[0, 0, 0] = 0, 255, 128
    x = vae_module.to_pixels(mosaics)
    assert x.shape == (2, 3, 8, 8) and np.allclose(
        x[0, :, 0, 0], [-1, 1, 128 / 127.5 - 1], atol=1e-6
    )
    assert np.array_equal(vae_module.from_pixels(x), mosaics)
    clipped = vae_module.from_pixels(torch.tensor([-3.0, 0.0, 9.0]).view(1, 3, 1, 1))
    assert clipped[0, 0, 0].tolist() == [0, 128, 255]  # 127.5 to even


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_diffusers_own(tmp_path, shift):
    folder = random_vae(tmp_path / "v", scaling_factor=0.31, shift_factor=shift)
    vae = vae_module.load_vae(folder)
    theirs = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    mosaics = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    moments = vae_module.encode_moments(vae, mosaics)
    assert vae_module.downsampling_factor(vae) == 4 and moments.shape == (2, 10, 6, 6)
    x = torch.from_numpy(mosaics).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        noise = torch.randn(2, 5, 6, 6)
        z = (posterior.mean + posterior.std * noise - (shift or 0)) * 0.31
        assert torch.allclose(vae_module.draw_latents(vae.config, moments, noise), z, atol=1e-5)
        pixels = theirs.decode(z / 0.31 + (shift or 0)).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(vae_module.decode(vae, z).astype(int) - expected).max() <= 1
    with torch.no_grad():
        pixels = theirs.decode(theirs.encode(x).latent_dist.mean).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    reconstructed = vae_module.reconstruct(vae, mosaics)
    assert reconstructed.dtype == np.uint8 and reconstructed.shape == mosaics.shape
    assert np.abs(reconstructed.astype(int) - expected).max() <= 1


def test_vae_errors(tmp_path, data):
    with pytest.raises(UserError, match="no such folder"):
        vae_module.load_vae(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded as an AutoencoderKL"):
        vae_module.load_vae(str(tmp_path / "empty"))
    folder = random_vae(tmp_path / "v")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be loaded"):
        vae_module.load_vae(str(folder))
    weights.unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")  # a pickle is never opened
    with pytest.raises(UserError, match="safetensors"):
        vae_module.load_vae(str(folder))


def test_missing_public_vae_names_the_fix(data, tmp_path):
    done = script(
        "train.py",
        "--data-path",
        data,
        "--vae",
        "mse",
        "--ckpt",
        "none",
        "--tune",
        "full",
        "--results-dir",
        tmp_path,
        "--model",
        "DiT-T/4",
        cwd=tmp_path,
        expect=2,
        fresh=True,
        env={"HF_HOME": str(tmp_path / "hf")},
    )
    assert "download.py sd-vae-ft-mse" in error_line(done)
