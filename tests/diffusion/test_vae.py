import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import error_line, random_vae, script
from safetensors import safe_open

from diffusion import vae as latents
from mri import manifest, mosaic, mosaic_files
from training import latent_cache
from utils.errors import UserError


def test_pixels_there_and_back():
    mosaics = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mosaics[0, 0, 0] = 0, 255, 128
    x = latents.to_pixels(mosaics)
    assert x.shape == (2, 3, 8, 8) and np.allclose(x[0, :, 0, 0], [-1, 1, 128 / 127.5 - 1], atol=1e-6)
    assert np.array_equal(latents.from_pixels(x), mosaics)
    assert latents.from_pixels(torch.tensor([-3.0, 0.0, 9.0]).view(1, 3, 1, 1))[0, 0, 0].tolist() == [0, 128, 255]  # 127.5 to even


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_diffusers_own(tmp_path, shift):
    folder = random_vae(tmp_path / "v", scaling_factor=0.31, shift_factor=shift)
    vae = latents.load_vae(folder)
    theirs = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    mosaics = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    moments = latents.encode_moments(vae, mosaics)
    assert latents.downsampling_factor(vae) == 4 and moments.shape == (2, 10, 6, 6)
    x = torch.from_numpy(mosaics).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        noise = torch.randn(2, 5, 6, 6)
        z = (posterior.mean + posterior.std * noise - (shift or 0)) * 0.31
        assert torch.allclose(latents.draw_latents(vae.config, moments, noise), z, atol=1e-5)
        pixels = theirs.decode(z / 0.31 + (shift or 0)).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(latents.decode(vae, z).astype(int) - expected).max() <= 1


def test_cache_is_used_and_never_stale(data, vae_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns("latents-*"))
    header, entries = manifest.read_manifest(folder)
    vae = latents.load_vae(vae_folder)
    encoded = []
    encode = latents.encode_moments
    monkeypatch.setattr(latents, "encode_moments", lambda v, m: encoded.append(len(m)) or encode(v, m))

    def moments(vae=vae, entries=entries):
        encoded.clear()
        return latent_cache.cached_moments(folder, header, entries, vae, "small"), len(encoded)

    first, n = moments()
    assert n == 6 and torch.equal(first, encode(vae, mosaic_files.read_mosaics(folder, header, entries)))
    again, n = moments()
    assert n == 0 and torch.equal(first, again)
    _, n = moments(entries=entries[:2])                                     # other volumes
    assert n == 2
    other, n = moments(vae=latents.load_vae(random_vae(tmp_path / "v2", seed=9)))  # another VAE of one name
    assert n == 6 and not torch.allclose(first, other)
    moments()
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, entries[0]["id"]), header)
    mosaic_files.write_mosaic(mosaic_files.mosaic_path(folder, entries[0]["id"]), 255 - pixels)    # a mosaic changed
    changed, n = moments()
    assert n == 6 and not torch.allclose(first[0], changed[0]) and torch.equal(first[1:], changed[1:])
    path = folder / "latents-small.safetensors"
    path.write_bytes(path.read_bytes()[:-10])                               # cut short
    recovered, n = moments()
    assert n == 6 and torch.equal(recovered, changed)
    with safe_open(path, "pt") as f:
        assert f.get_tensor("moments").dtype == torch.float32


def test_vae_errors(tmp_path, data):
    with pytest.raises(UserError, match="no such folder"):
        latents.load_vae(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded as an AutoencoderKL"):
        latents.load_vae(str(tmp_path / "empty"))
    folder = random_vae(tmp_path / "v")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be loaded"):
        latents.load_vae(str(folder))
    weights.unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")  # a pickle is never opened
    with pytest.raises(UserError, match="safetensors"):
        latents.load_vae(str(folder))


def test_missing_public_vae_names_the_mend(data, tmp_path):
    done = script("train.py", "--data-path", data, "--vae", "mse", "--ckpt", "none", "--tune", "full", "--results-dir", tmp_path,
                  "--model", "DiT-T/4", cwd=tmp_path, expect=2, fresh=True, env={"HF_HOME": str(tmp_path / "hf")})
    assert "download.py sd-vae-ft-mse" in error_line(done)


def test_train_vae(data, tmp_path):
    """A tiny VAE learns, says what it loses, and then has its decoder alone adapted."""
    args = ("--data-path", data, "--max-steps", 30, "--batch-size", 2, "--crop", 48, "--device", "cpu", "--log-every", 5)
    script("train_vae.py", *args, "--init", "tiny", "--tune", "all", "--lr", 3e-3, "--output", tmp_path / "v")
    vae = latents.load_vae(tmp_path / "v")
    assert (latents.downsampling_factor(vae), vae.config.latent_channels) == (4, 8)
    header, entries = manifest.read_manifest(data)
    report = json.loads((tmp_path / "v" / "psnr.json").read_text())
    assert report["steps"][-1]["loss"] < report["steps"][0]["loss"]
    assert [r["id"] for r in report["volumes"]] == [v["id"] for v in entries if v["split"] == "test"]
    sheet = mosaic_files.read_mosaics(data, header, [v for v in entries if v["split"] == "test"][:1])
    with torch.no_grad():
        out = latents.from_pixels(vae.decode(vae.encode(latents.to_pixels(sheet)).latent_dist.mean).sample)
    cubes = [mosaic.untile(m[0], 16, "rgb").astype(float) for m in (sheet, out)]
    assert np.isclose(report["volumes"][0]["volume"], 10 * np.log10(255 ** 2 / np.mean((cubes[0] - cubes[1]) ** 2)), atol=0.01)
    mean, std = latents.encode_moments(vae, mosaic_files.read_mosaics(data, header, [v for v in entries if v["split"] == "train"])).chunk(2, 1)
    assert np.isclose(vae.config.scaling_factor, float((mean + std * torch.randn(mean.shape)).std()) ** -1, rtol=0.02)
    assert (tmp_path / "v" / "reconstruction.png").stat().st_size > 5000

    script("train_vae.py", *args, "--init", tmp_path / "v", "--tune", "decoder", "--lr", 1e-3, "--output", tmp_path / "w")
    before, after = vae.state_dict(), latents.load_vae(tmp_path / "w").state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all(k.startswith(("decoder.", "post_quant_conv.")) for k in moved)
    assert latents.load_vae(tmp_path / "w").config.scaling_factor == vae.config.scaling_factor
    assert json.loads((tmp_path / "w" / "psnr.json").read_text())["mean"]["volume"] > report["mean"]["volume"]

    assert "add --tune all" in error_line(script("train_vae.py", *args, "--init", "tiny", "--output", tmp_path / "x", expect=2))
    done = script("train_vae.py", *args, "--init", "tiny", "--tune", "all", "--output", tmp_path / "v", expect=2)
    assert "exists already" in error_line(done)
    assert not (tmp_path / "x").exists()


def test_psnr_by_hand():
    from train_vae import psnr, slice_psnr
    a = np.zeros((2, 2, 2), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 51
    assert psnr(a, a) == float("inf")
    assert np.isclose(psnr(a, b), 10 * np.log10(255 ** 2 / (51 ** 2 / 8)))
    a[0] = 1  # the only slice across axis 0 that shows anything
    b = a.copy()
    b[0, 0, 0] = 11
    assert np.isclose(slice_psnr(a, b, 0), 10 * np.log10(255 ** 2 / (100 / 4)))
    assert np.isclose(slice_psnr(a, b, 1), 10 * np.log10(255 ** 2 / (100 / 4)))  # the other slice is reproduced without error
