"""train_vae.py as a user runs it: a tiny VAE learns, then its decoder alone is adapted."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import error_line, script

import train_vae
from diffusion import vae
from metrics.psnr import psnr, slice_psnr
from mri import manifest, mosaic, mosaic_files

FLAGS = ("--max-steps", 30, "--batch-size", 2, "--crop", 48, "--device", "cpu", "--log-every", 5)


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory):
    """A folder of a tiny VAE, trained on the data folder."""
    folder = tmp_path_factory.mktemp("tiny") / "v"
    script("train_vae.py", "--data-path", data, *FLAGS, "--init", "tiny", "--tune", "all",
           "--lr", 3e-3, "--output", folder)
    return folder


def read_report(folder):
    return json.loads((folder / "psnr.json").read_text())


def test_a_tiny_vae_learns(tiny):
    autoencoder = vae.load_vae(tiny)
    assert vae.downsampling_factor(autoencoder) == 4
    assert autoencoder.config.latent_channels == 8
    steps = read_report(tiny)["steps"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert (tiny / "reconstruction.png").stat().st_size > 5000


def test_the_report_is_of_held_out_volumes(tiny, data):
    header, entries = manifest.read_manifest(data)
    held_out = [entry for entry in entries if entry["split"] == "test"]
    report = read_report(tiny)
    assert [row["id"] for row in report["volumes"]] == [entry["id"] for entry in held_out]
    sheet = mosaic_files.read_mosaics(data, header, held_out[:1])
    autoencoder = vae.load_vae(tiny)
    with torch.no_grad():
        mean = autoencoder.encode(vae.to_pixels(sheet)).latent_dist.mean
        back = vae.from_pixels(autoencoder.decode(mean).sample)
    real, fake = (mosaic.untile(m[0], 16, "rgb").astype(float) for m in (sheet, back))
    expected = 10 * np.log10(255 ** 2 / np.mean((real - fake) ** 2))
    assert np.isclose(report["volumes"][0]["volume"], expected, atol=0.01)


def test_the_scaling_factor_is_of_all_data_folders(monkeypatch):
    """Of 80 mosaics whose latents are 0 and then 20 whose latents are 2, not of the first 64."""
    encoded, config = [], {}

    def encode_moments(_, mosaics):
        encoded.extend(mosaics)
        mean = torch.tensor([0.0 if i < 80 else 2.0 for i in mosaics])[:, None]
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    monkeypatch.setattr(train_vae, "encode_moments", encode_moments)
    train_vae.set_scaling_factor(SimpleNamespace(register_to_config=config.update), range(100))
    assert len(set(encoded)) == 64
    latents = [0.0 if i < 80 else 2.0 for i in encoded]
    assert config["scaling_factor"] == pytest.approx(1 / np.std(latents, ddof=1), rel=1e-6)
    assert np.std(latents) == pytest.approx(0.8, abs=0.03)      # 0.8 of all 100


def test_the_scaling_factor_gives_latents_of_unit_variance(tiny, data):
    header, entries = manifest.read_manifest(data)
    trained_on = [entry for entry in entries if entry["split"] == "train"]
    autoencoder = vae.load_vae(tiny)
    mosaics = mosaic_files.read_mosaics(data, header, trained_on)
    mean, std = vae.encode_moments(autoencoder, mosaics).chunk(2, 1)
    latents = mean + std * torch.randn(mean.shape)
    expected = float(latents.std()) ** -1
    assert np.isclose(autoencoder.config.scaling_factor, expected, rtol=0.02)


def test_the_decoder_alone_is_adapted(tiny, data, tmp_path):
    script("train_vae.py", "--data-path", data, *FLAGS, "--init", tiny, "--tune", "decoder",
           "--lr", 1e-3, "--output", tmp_path / "w")
    before = vae.load_vae(tiny)
    after = vae.load_vae(tmp_path / "w")
    old = before.state_dict()
    new = after.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    assert after.config.scaling_factor == before.config.scaling_factor
    better = read_report(tmp_path / "w")["mean"]["volume"]
    assert better > read_report(tiny)["mean"]["volume"]


def test_refusals(tiny, data, tmp_path):
    flags = ("--data-path", data, *FLAGS, "--init", "tiny")
    done = script("train_vae.py", *flags, "--output", tmp_path / "x", expect=2)
    assert "add --tune all" in error_line(done)
    assert not (tmp_path / "x").exists()
    done = script("train_vae.py", *flags, "--tune", "all", "--output", tiny, expect=2)
    assert "exists already" in error_line(done)
    done = script("train_vae.py", *flags, "--tune", "all", "--kl-weight", "nan", "--output",
                  tmp_path / "x", expect=2)
    assert "--kl-weight: 'nan': must be a finite number, 0 or more" in error_line(done)


def test_psnr_by_hand():
    a = np.zeros((2, 2, 2), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 51
    assert psnr(a, a) == float("inf")
    assert np.isclose(psnr(a, b), 10 * np.log10(255 ** 2 / (51 ** 2 / 8)))
    a[0] = 1  # the only slice across axis 0 that shows anything
    b = a.copy()
    b[0, 0, 0] = 11
    expected = 10 * np.log10(255 ** 2 / (100 / 4))
    assert np.isclose(slice_psnr(a, b, 0), expected)
    assert np.isclose(slice_psnr(a, b, 1), expected)  # the other slice is reproduced without error
