"""sample.py and postprocess.py as a user runs them."""

import json
import os
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import error_line, random_vae, script
from PIL import Image

from diffusion import samplers
from diffusion import vae as vae_module
from mri import manifest, mosaic
from training import class_choice, pretrained
from utils import leftovers, seeding
from utils.version import __version__

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
    sha256 = content["recipe"]["ckpt_sha256"]
    assert content["description"] == f"MosaicDiT {__version__} ckpt {sha256[:8]} step 4"
    recorded = content["provenance"]
    assert recorded["checkpoint"] == str(ckpt) and recorded["run"] == "000-DiT-T-4"
    assert (recorded["step"], recorded["mosaicdit_version"]) == (4, __version__)
    assert content["samples"] == [{"id": f"{i:06d}", "index": i, "class": 0} for i in range(3)]
    for i in range(3):
        sheet = np.array(Image.open(samples / "mosaics" / f"{i:06d}.png"))
        image = nib.load(samples / "nifti" / f"{i:06d}.nii.gz")
        assert np.array_equal(
            np.asarray(image.dataobj.get_unscaled()), mosaic.untile(sheet, 16, "rgb")
        )
        assert np.allclose(image.affine, header["affine"], atol=1e-5)
        assert bytes(image.header["descrip"]).rstrip(b"\0").decode() == content["description"]
        assert (image.header["sform_code"], image.header["qform_code"]) == (2, 2)  # aligned
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
    killed = subprocess.Popen(["true"])
    killed.wait()
    beginning = leftovers.prefix_of("000001.png").replace(f"-{os.getpid()}-", f"-{killed.pid}-")
    left = tmp_path / "s" / "mosaics" / f"{beginning}abc.png"
    left.write_bytes(b"half")
    script("sample.py", *args, "--num-samples", 3, "--batch-size", 8)
    assert (tmp_path / "s" / "mosaics" / "000000.png").stat().st_mtime_ns == before
    assert not left.exists()
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
            (*guided, "--cfg-interval", 0, 600),
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


def test_guidance_in_an_interval_is_recorded(ckpt, samples, tmp_path):
    """Folders of earlier versions, which did not record it, were guided everywhere."""
    args = ("--ckpt", ckpt, "--num-samples", 1, "--cfg-scale", 8, *SAMPLER)
    part = ("--output", tmp_path / "s", "--cfg-interval", 0, 600)
    done = script("sample.py", *args, *part)
    assert "--cfg-interval 0 600: 2 of 3 steps are guided" in done.stderr
    recipe = json.loads((tmp_path / "s" / "samples.json").read_text())["recipe"]
    assert recipe["cfg_interval"] == [0, 600]
    other = script("sample.py", *args, "--output", tmp_path / "s", expect=2)
    assert "holds samples of cfg_interval [0, 600], not [0, 1000]" in error_line(other)
    older = tmp_path / "older"
    shutil.copytree(samples, older)
    content = json.loads((older / "samples.json").read_text())
    assert content["recipe"].pop("cfg_interval") == [0, 1000]
    (older / "samples.json").write_text(json.dumps(content))
    assert "already has" in script("sample.py", *args, "--output", older).stdout


def test_sample_refusals(ckpt, vae_folder, pretrained, data, tmp_path):
    def refused(*args, ckpt=ckpt):
        return error_line(
            script("sample.py", "--ckpt", ckpt, "--output", tmp_path / "o", *args, expect=2)
        )

    assert "no such file" in refused(ckpt=tmp_path / "none.safetensors")
    assert "not a complete safetensors file" in refused(ckpt=data / "manifest.json")
    assert "trained on 0 (AD), 1 (CN)" in refused("--class-label", 2)
    assert "the latents have 5" in refused("--cfg-channels", 6)
    assert "the lower first" in refused("--cfg-scale", 2, "--cfg-interval", 600, 300)
    assert "of 0 to 1000" in refused("--cfg-scale", 2, "--cfg-interval", 0, 1001)
    assert "--cfg-scale 1 guides nowhere" in refused("--cfg-interval", 0, 600)
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
    for path in (tmp_path / "n").glob("*.nii.gz"):
        assert path.read_bytes() == (samples / "nifti" / path.name).read_bytes()
    script("postprocess.py", "--input", samples, "--output", tmp_path / "r", "--restore-shape")
    assert nib.load(tmp_path / "r" / "000000.nii.gz").shape == (20, 26, 22)


def sampled(ckpt, output, *args):
    """Samples in 2 steps; returns the process and samples.json."""
    done = script("sample.py", "--ckpt", ckpt, "--output", output, "--sampler", "dpm++",
                  "--num-sampling-steps", 2, "--precision", "fp32", "--device", "cpu", *args)
    return done, json.loads((output / "samples.json").read_text())


def test_which_run_and_step_is_printed(finetuned, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(finetuned, results / "000-DiT-T-4")
    shutil.copytree(finetuned, results / "001-DiT-T-4",
                    ignore=shutil.ignore_patterns("*[0-9].safetensors"))
    done, content = sampled(results, tmp_path / "a", "--num-samples", 1)
    assert "run 001-DiT-T-4, step 4, class 0 (AD)" in done.stdout
    assert "001-DiT-T-4 has no checkpoint yet: sampling from its last state" in done.stderr
    assert content["provenance"]["checkpoint"].endswith("0000004.state.safetensors")
    done, content = sampled(results / "000-DiT-T-4", tmp_path / "b", "--num-samples", 1)
    assert "run 000-DiT-T-4, step 4" in done.stdout
    assert "000-DiT-T-4 is not the newest run: 001-DiT-T-4 has" in done.stderr
    pixels = [np.array(Image.open(tmp_path / name / "mosaics" / "000000.png")) for name in "ab"]
    assert np.array_equal(*pixels)  # the state holds the same average


def test_classes_by_name_and_as_in_training(ckpt, data, tmp_path):
    _, content = sampled(ckpt, tmp_path / "a", "--num-samples", 1, "--class-label", "CN")
    assert content["recipe"]["class_label"] == 1 and content["samples"][0]["class"] == 1
    done, content = sampled(ckpt, tmp_path / "b", "--num-samples", 6, "--class-label", "cohort")
    assert content["recipe"]["class_label"] == "cohort"
    entries = [v for v in manifest.read_manifest(data)[1] if v["split"] == "train"]
    counts = tuple(sum(v["class"] == label for v in entries) for label in (0, 1))
    choice = class_choice.ClassChoice("cohort", counts)
    assert [s["class"] for s in content["samples"]] == [choice.of_sample(0, i) for i in range(6)]
    assert f"{counts[0] / sum(counts):.1%} AD" in done.stdout
    one = {s["index"]: s["class"] for s in content["samples"]}
    first = next((i for i in one if one[i] == 1), 0)
    _, _ = sampled(ckpt, tmp_path / "c", "--num-samples", 6, "--class-label", one[first])
    pixels = [np.array(Image.open(tmp_path / name / "mosaics" / f"{first:06d}.png"))
              for name in "bc"]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1


def test_a_sampler_alone_takes_its_own_number_of_steps(ckpt, tmp_path):
    args = ("--ckpt", ckpt, "--num-samples", 1, "--device", "cpu", "--sampler", "dpm++",
            "--precision", "fp32")
    script("sample.py", *args, "--output", tmp_path / "a")
    recipe = json.loads((tmp_path / "a" / "samples.json").read_text())["recipe"]
    assert recipe["num_sampling_steps"] == 25
    again = (*args, "--output", tmp_path / "a", "--num-sampling-steps")
    assert "already has" in script("sample.py", *again, 25).stdout
    refused = script("sample.py", *again, 24, expect=2)
    assert "holds samples of num_sampling_steps 25, not 24" in error_line(refused)


def test_a_folder_begun_by_another_version_keeps_what_it_recorded(ckpt, tmp_path):
    _, content = sampled(ckpt, tmp_path / "a", "--num-samples", 1)
    content["provenance"]["date"] = "2020-01-01"
    (tmp_path / "a" / "samples.json").write_text(json.dumps(content))
    _, content = sampled(ckpt, tmp_path / "a", "--num-samples", 2)
    assert content["provenance"]["date"] == "2020-01-01" and len(content["samples"]) == 2


def test_leftover_variables_of_torchrun_do_not_halve_the_samples(ckpt, tmp_path):
    done = script("sample.py", "--ckpt", ckpt, "--output", tmp_path / "a", "--sampler", "dpm++",
                  "--num-sampling-steps", 2, "--num-samples", 2, "--batch-size", 1, "--device",
                  "cpu", env={"RANK": "0", "WORLD_SIZE": "2"})
    assert len(list((tmp_path / "a" / "nifti").iterdir())) == 2
    assert done.stderr.count("not started by torchrun, so this is a single process") == 1


def test_fp16_needs_a_gpu(ckpt, tmp_path):
    done = script("sample.py", "--ckpt", ckpt, "--output", tmp_path / "a", "--precision", "fp16",
                  "--device", "cpu", expect=2)
    assert "--precision fp16: needs a CUDA GPU" in error_line(done)
