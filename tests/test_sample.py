"""sample.py and postprocess.py as a user runs them."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import error_line, random_vae, script
from PIL import Image

from diffusion import samplers
from diffusion import vae as vae_module
from mri import manifest, mosaic
from training import pretrained
from utils import seeding

SAMPLER = ("--sampler", "ddim", "--num-sampling-steps", 3, "--precision", "fp32", "--device", "cpu")


@pytest.fixture(scope="session")
def ckpt(finetuned):
    return finetuned / "checkpoints" / "0000004.safetensors"


@pytest.fixture(scope="session")
def samples(ckpt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "s"
    script(
        "sample.py",
        "--ckpt",
        ckpt,
        "--num-samples",
        3,
        "--batch-size",
        2,
        "--output",
        folder,
        "--cfg-scale",
        8,
        *SAMPLER,
    )
    return folder


def test_samples_folder(samples, ckpt, data, vae_folder):
    header, _ = manifest.read_manifest(samples)
    assert header == manifest.read_manifest(data)[0]
    content = json.loads((samples / "samples.json").read_text())
    assert content["format"] == "mosaicdit-samples" and content["recipe"][
        "ckpt_sha256"
    ] == pretrained.sha256_of_weights(ckpt)
    assert content["samples"] == [{"id": f"{i:06d}", "index": i, "class": 0} for i in range(3)]
    for i in range(3):
        sheet = np.array(Image.open(samples / "mosaics" / f"{i:06d}.png"))
        image = nib.load(samples / "nifti" / f"{i:06d}.nii.gz")
        assert np.array_equal(
            np.asarray(image.dataobj.get_unscaled()), mosaic.untile(sheet, 16, "rgb")
        )
        assert np.allclose(image.affine, header["affine"], atol=1e-5)
    model, meta = pretrained.restore_model(ckpt)
    z = samplers.sample(
        model,
        (5, 12, 12),
        torch.zeros(1, dtype=torch.long),
        2,
        [seeding.seeded_generator(0, 2)],
        "ddim",
        3,
        8,
    )
    direct = vae_module.decode(vae_module.load_vae(vae_folder), z)[0]
    assert (
        np.abs(direct.astype(int) - sheet).max() <= 1
    )  # sheet of sample 2, which was alone in its batch


def test_samples_do_not_depend_on_the_batch_and_go_on(samples, ckpt, tmp_path):
    args = ("--ckpt", ckpt, "--output", tmp_path / "s", "--cfg-scale", 8, *SAMPLER)
    script("sample.py", *args, "--num-samples", 1, "--batch-size", 1)
    before = (tmp_path / "s" / "mosaics" / "000000.png").stat().st_mtime_ns
    script("sample.py", *args, "--num-samples", 3, "--batch-size", 8)
    assert (tmp_path / "s" / "mosaics" / "000000.png").stat().st_mtime_ns == before
    for i in range(3):
        a, b = (
            np.array(Image.open(f / "mosaics" / f"{i:06d}.png")).astype(int)
            for f in (samples, tmp_path / "s")
        )
        assert np.abs(a - b).max() <= 1
    assert "already" in script("sample.py", *args, "--num-samples", 3).stdout
    assert "holds samples of seed 0, not 1" in error_line(
        script("sample.py", *args, "--seed", 1, expect=2)
    )


def test_what_the_writer_cannot_write_ends_sampling(ckpt, tmp_path):
    args = ("--ckpt", ckpt, "--output", tmp_path / "s", *SAMPLER)
    script("sample.py", *args, "--num-samples", 1)
    (tmp_path / "s" / "mosaics" / "000002.png").mkdir()
    assert "000002.png" in error_line(
        script("sample.py", *args, "--num-samples", 4, "--batch-size", 1, expect=2)
    )
    assert (tmp_path / "s" / "nifti" / "000001.nii.gz").is_file() and not (
        tmp_path / "s" / "nifti" / "000002.nii.gz"
    ).exists()


def test_flags_change_the_samples(samples, ckpt, tmp_path):
    first = np.array(Image.open(samples / "mosaics" / "000000.png"))
    plain = ("--num-sampling-steps", 3, "--precision", "fp32", "--device", "cpu")
    guided = (*SAMPLER, "--cfg-scale", 8)
    for i, flags in enumerate(
        [
            SAMPLER,
            (*guided, "--cfg-channels", 3),
            (*guided, "--weights", "raw"),
            (*guided, "--seed", 1),
            (*guided, "--class-label", 1),
            (*plain, "--cfg-scale", 8, "--sampler", "ddpm"),
        ]
    ):
        script(
            "sample.py", "--ckpt", ckpt, "--num-samples", 1, "--output", tmp_path / str(i), *flags
        )
        other = np.array(Image.open(tmp_path / str(i) / "mosaics" / "000000.png"))
        assert not np.array_equal(first, other), flags


def test_sample_refusals(ckpt, vae_folder, pretrained, data, tmp_path):
    def refused(*args, ckpt=ckpt):
        return error_line(
            script("sample.py", "--ckpt", ckpt, "--output", tmp_path / "o", *args, expect=2)
        )

    assert "no such file" in refused(ckpt=tmp_path / "none.safetensors")
    assert "not a complete safetensors file" in refused(ckpt=data / "manifest.json")
    assert "trained on 0 (AD), 1 (CN)" in refused("--class-label", 2)
    assert "the latents have 5" in refused("--cfg-channels", 6)
    assert "at least 1" in refused("--num-samples", 0)
    assert "ddpm takes 2 to 1000" in refused("--num-sampling-steps", 1)
    assert "dpm++ takes 2 to 999" in refused("--sampler", "dpm++", "--num-sampling-steps", 1000)
    other = random_vae(tmp_path / "v", channels=3)
    assert "with 3 channels" in refused("--vae", other)
    assert "SHA-256 differs" in refused("--base", ckpt)
    whole = pretrained / "checkpoints" / "0000002.safetensors"
    assert "holds the whole model" in refused("--base", ckpt, ckpt=whole)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "x").write_text("")
    assert "exists already" in refused()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o", "v"]


def test_postprocess_of_samples_is_what_sample_wrote(samples, tmp_path):
    script("postprocess.py", "--input", samples, "--output", tmp_path / "n")
    for path in (tmp_path / "n").iterdir():
        assert path.read_bytes() == (samples / "nifti" / path.name).read_bytes()
    script("postprocess.py", "--input", samples, "--output", tmp_path / "r", "--restore-shape")
    assert nib.load(tmp_path / "r" / "000000.nii.gz").shape == (20, 26, 22)
