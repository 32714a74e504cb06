"""The paper's sizes on this machine: 20 GB and about ten minutes; part of `make test-full`."""
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import SHARED, script

import models
from mri import manifest, mosaic, mosaic_files


def write_weights(folder):
    """Random weights in the formats of the public files: Stable Diffusion's VAE, DiT-XL/2."""
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        norm_num_groups=32, sample_size=256, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4)
    vae.save_pretrained(folder / "vae")
    model = models.DiT_models["DiT-XL/2"](input_size=64).initialize_weights()
    torch.save(model.state_dict(), folder / "DiT-XL-2-512x512.pt")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cohort").is_dir(),
                    reason="needs the cohort of real-size brains in ../shared/cohort")
def test_the_whole_pipeline_at_real_size(tmp_path):
    write_weights(tmp_path)
    data, vae = tmp_path / "data", tmp_path / "vae"
    script("preprocess.py", "--input", SHARED / "cohort", "--output", data,
           "--split", "1:13")  # one mosaic to encode, as each takes 30 s here
    script("train.py", "--data-path", data, "--vae", vae,
           "--ckpt", tmp_path / "DiT-XL-2-512x512.pt", "--results-dir", tmp_path / "r",
           "--max-steps", 2, "--global-batch-size", 1, "--log-every", 1, "--device", "cpu",
           "--image-size", 896)
    run = tmp_path / "r" / "000-DiT-XL-2"
    ckpt = run / "checkpoints" / "0000002.safetensors"
    assert ckpt.stat().st_size < 20e6
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    assert all(0.9 < entry["mse"] < 1.1 for entry in log)  # a zero output against unit noise

    script("sample.py", "--ckpt", ckpt, "--num-samples", 1, "--num-sampling-steps", 2,
           "--output", tmp_path / "s", "--device", "cpu")
    header, _ = manifest.read_manifest(data)
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(tmp_path / "s", "000000"), header)
    image = nib.load(tmp_path / "s" / "nifti" / "000000.nii.gz")
    assert image.shape == (128, 128, 128) and nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.header.get_zooms(), [1.125, 1.375, 1.125])
    assert np.allclose(image.affine, header["affine"], atol=1e-4)
    volume = np.asarray(image.dataobj.get_unscaled())
    assert np.array_equal(volume, mosaic.untile(pixels, 128, "rgb"))
