import shutil
import socket
import threading
import time

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import error_line, random_vae, script
from safetensors.torch import load_file, save_file

from diffusion import vae as vae_module
from utils import files
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


def state(folder):
    return vae_module.load_vae(str(folder)).state_dict()


def test_a_pipeline_folder_and_an_fp16_variant(tmp_path):
    plain = state(random_vae(tmp_path / "pipeline" / "vae"))
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    pipeline = state(tmp_path / "pipeline")
    assert all(torch.equal(plain[key], pipeline[key]) for key in plain)
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    half = {key: value.half() for key, value in load_file(weights).items()}
    save_file(half, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    weights.unlink()
    variant = state(tmp_path / "pipeline")
    assert all(value.dtype == torch.float32 for value in variant.values())
    assert all(torch.equal(plain[key].half().float(), variant[key]) for key in plain)


def test_public_weights_are_found_beside_the_scripts_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "SCRIPTS_DIR", tmp_path / "toolkit")
    beside = random_vae(tmp_path / "toolkit" / "weights" / "sd-vae-ft-ema", seed=1)
    first = state("ema")
    assert torch.equal(first["quant_conv.bias"], state(beside)["quant_conv.bias"])
    here = random_vae(tmp_path / "weights" / "sd-vae-ft-ema", seed=2)
    assert torch.equal(state("ema")["quant_conv.bias"], state(here)["quant_conv.bias"])
    assert files.weights_path("x.pt") == files.WEIGHTS_DIR / "x.pt"


def test_a_vae_that_moved_with_the_checkpoint(tmp_path):
    random_vae(tmp_path / "new" / "vae")
    recorded = {"name": "vae", "path": "/old/vae"}
    checkpoint = tmp_path / "new" / "results" / "000" / "checkpoints" / "1.safetensors"
    found = vae_module._recorded_place(recorded, checkpoint)
    assert found == tmp_path / "new" / "vae"
    shutil.rmtree(found)
    assert vae_module._recorded_place(recorded, checkpoint) == "/old/vae"
    assert files.find_moved("/" + "a/" * 1000, checkpoint) == []


def test_without_internet_nothing_waits(tmp_path, monkeypatch):
    """No answer, not even from the name server, for ten seconds: the error comes after two."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    release = threading.Event()

    def hang(*_):
        release.wait(10)
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", hang)
    began = time.monotonic()
    with pytest.raises(UserError, match="download.py sd-vae-ft-mse"):
        vae_module._load_public("mse", tmp_path / "weights", "--vae")
    assert time.monotonic() - began < vae_module.CONNECT_SECONDS + 3
    release.set()


def test_what_counts_as_internet(monkeypatch):
    asked = []

    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        asked.append(address)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    for name in ("HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy",
                 "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert vae_module._is_hub_reachable()
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:8000")
    assert vae_module._is_hub_reachable()
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert vae_module._is_hub_reachable()
    assert asked == [("huggingface.co", 443), ("localhost", 8000), ("proxy.example", 3128)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not vae_module._is_hub_reachable() and len(asked) == 3
