"""train_refiner.py as a user runs it, and the scripts that apply what it wrote."""
import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import error_line, random_vae, related, script

import train_refiner
from diffusion import refiner as refiners
from diffusion import vae as vae_module
from metrics import refinement
from mri import manifest, mosaic, mosaic_files
from training import pretrained, refiner_record
from training.refiner_pairs import Pairs

FLAGS = ("--max-steps", 6, "--batch-size", 2, "--crop", 12, "--log-every", 3, "--pairs", 4,
         "--precision", "fp32", "--device", "cpu")
SAMPLER = ("--sampler", "ddim", "--num-sampling-steps", 2, "--precision", "fp32", "--device", "cpu",
           "--num-samples", 2)


@pytest.fixture(scope="module")
def ckpt(finetuned, tmp_path_factory):
    """A checkpoint in a run folder of its own, as a note will lie beside it."""
    folder = shutil.copytree(finetuned, tmp_path_factory.mktemp("own") / "000-DiT-T-4")
    return folder / "checkpoints" / "0000004.safetensors"


def train(data, output, *more, **options):
    return script("train_refiner.py", "--data-path", data, "--output", output, *FLAGS, *more,
                  **options)


@pytest.fixture(scope="module")
def refiner(data, ckpt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refiner") / "r"
    train(data, folder, "--ckpt", ckpt)
    return folder


@pytest.fixture(scope="module")
def samples(ckpt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "s"
    script("sample.py", "--ckpt", ckpt, *SAMPLER, "--output", folder)
    return folder


def volumes_of(folder):
    header, _ = manifest.read_manifest(folder)
    return {path.stem: mosaic.untile(mosaic_files.read_mosaic(path, header), header["size"],
                                     header["layout"])
            for path in sorted((folder / "mosaics").glob("*.png"))}


# ---------------------------------------------------------------------------------------- training

def test_what_it_writes(refiner, ckpt, vae_folder):
    assert sorted(path.name for path in refiner.iterdir()) == [
        "config.json", "refinement.png", "refiner.json", "refiner.safetensors"]
    config = json.loads((refiner / "config.json").read_text())
    assert (config["size"], config["layout"]) == (16, "rgb")
    assert config["ckpt_sha256"] == pretrained.sha256_of_weights(ckpt)
    assert config["vae_sha256"] == vae_module.fingerprint(vae_module.load_vae(vae_folder))
    report = json.loads((refiner / "refiner.json").read_text())
    assert [row["step"] for row in report["steps"]] == [3, 6]
    assert list(report["held_out"]) == ["round trips, before", "round trips, after",
                                        "resampled, before", "resampled, after"]
    assert (report["split"], report["args"]["seed"]) == ("test", 0)


def test_the_numbers_are_of_held_out_volumes(refiner, data, vae_folder):
    header, entries = manifest.read_manifest(data)
    held_out = [entry for entry in entries if entry["split"] == "test"]
    mosaics = mosaic_files.read_mosaics(data, header, held_out)
    vae = vae_module.load_vae(vae_folder)
    real, decoded = ([mosaic.untile(one, 16, "rgb") for one in some]
                     for some in (mosaics, vae_module.reconstruct(vae, mosaics)))
    refined = [refiners.load_refiner(refiner).refine(one) for one in decoded]
    found = json.loads((refiner / "refiner.json").read_text())["held_out"]
    for when, volumes in (("before", decoded), ("after", refined)):
        expected = refinement.numbers(np.stack(volumes), np.stack(real))
        assert found[f"round trips, {when}"] == pytest.approx(expected, rel=1e-3)


def test_a_seed_gives_the_same_refiner_again(refiner, data, ckpt, tmp_path):
    train(data, tmp_path / "again", "--ckpt", ckpt)
    train(data, tmp_path / "other", "--ckpt", ckpt, "--seed", 1)
    first, again, other = (refiners.load_refiner(folder).sha256
                           for folder in (refiner, tmp_path / "again", tmp_path / "other"))
    assert first == again != other


def test_without_a_checkpoint_only_round_trips(data, vae_folder, tmp_path):
    train(data, tmp_path / "r", "--vae", vae_folder, "--gradient-weight", 0)
    assert json.loads((tmp_path / "r" / "config.json").read_text())["ckpt_sha256"] is None
    report = json.loads((tmp_path / "r" / "refiner.json").read_text())
    assert list(report["held_out"]) == ["round trips, before", "round trips, after"]


def test_bad_flags_are_one_line(data, ckpt, vae_folder, tmp_path):
    for flags, message in (
            ((), "--vae: name the VAE that decodes, or a --ckpt that records it"),
            (("--vae", vae_folder, "--crop", 3), "--crop 3: must be a positive multiple of 2"),
            (("--vae", vae_folder, "--pairs", 0), "--pairs, --max-steps, --batch-size and"),
            (("--ckpt", ckpt, "--timesteps", 5, 4), "--timesteps 5 4: must be a range within"),
            (("--ckpt", ckpt, "--timesteps", 1, 3), "--timesteps 1 3: must be a range within"),
            (("--ckpt", ckpt, "--num-sampling-steps", 1), "--num-sampling-steps 1: must be 2 to"),
            (("--vae", vae_folder, "--lr", 1e12), "--lr: training diverged, as a refined"),
            (("--vae", vae_folder, "--lr", 1e35), "--lr 1e+35: the loss is ")):
        line = error_line(train(data, tmp_path / "x", *flags, expect=2))
        assert message in line, line
        assert not (tmp_path / "x").exists()


def test_data_of_another_size_is_refused(ckpt, scans, tmp_path):
    script("preprocess.py", "--input", scans, "--output", tmp_path / "d", "--size", 32,
           "--split", "3:2", "--workers", 1)
    line = error_line(train(tmp_path / "d", tmp_path / "r", "--ckpt", ckpt, expect=2))
    assert "was trained on rgb mosaics of 16^3" in line and "rgb mosaics of 32^3" in line


def test_training_takes_stripes_away():
    """Slices of unequal brightness by their place in the tile, on volumes it was not trained on."""
    torch.set_num_threads(1)
    real = (255 * related(6, 18)).astype(np.uint8)
    stripes = np.array([12, -12, 0])[np.arange(18) % 3]
    striped = (np.clip(real.astype(int), 15, 240) + stripes).astype(np.uint8)
    pairs = Pairs(striped[:4], real[:4], np.arange(4), np.zeros(4, int))
    torch.manual_seed(0)
    network = refiners.RefinerNet(3)
    args = SimpleNamespace(
        max_steps=60, batch_size=4, crop=12, lr=5e-3, log_every=60, seed=0, device="cpu",
        precision="fp32", gradient_weight=0.003, halving_timestep=100.0)
    train_refiner.train(network, pairs, args)
    refined = np.stack([refiners.refine_volume(network, one) for one in striped[4:]])
    before, after = (refinement.numbers(one, real[4:]) for one in (striped[4:], refined))
    assert before["through_plane"] > 2 and abs(after["through_plane"] - 1) < 0.1
    assert after["psnr_db"] > before["psnr_db"] + 10


# ---------------------------------------------------------------------------------------- applying

def test_samples_are_refined(refiner, samples, ckpt, tmp_path):
    done = script("sample.py", "--ckpt", ckpt, *SAMPLER, "--refiner", refiner, "--output",
                  tmp_path / "s")
    assert "note: " not in done.stderr
    loaded = refiners.load_refiner(refiner)
    content = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert content["recipe"]["refiner_sha256"] == loaded.sha256
    assert content["provenance"]["refiner"] == str(refiner)
    assert content["description"].endswith(f" refiner {loaded.sha256[:8]}")
    refined, plain = volumes_of(tmp_path / "s"), volumes_of(samples)
    for name, volume in plain.items():
        assert np.array_equal(refined[name], loaded.refine(volume))
        image = nib.load(tmp_path / "s" / "nifti" / f"{name}.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj.get_unscaled()), refined[name])
    line = error_line(script("sample.py", "--ckpt", ckpt, *SAMPLER, "--output", tmp_path / "s",
                             expect=2))
    assert "holds samples of refiner_sha256" in line


def test_sampling_names_the_refiner_of_a_checkpoint(refiner, samples, ckpt, tmp_path):
    refiner_record.record_refiner(ckpt, refiner, "a" * 64)
    done = script("sample.py", "--ckpt", ckpt, *SAMPLER, "--output", samples)
    assert f"note: a refiner was trained for this checkpoint: --refiner {refiner} (" in done.stderr
    assert json.loads((samples / "samples.json").read_text())["recipe"]["refiner_sha256"] is None


def test_mosaics_are_refined_by_postprocess(refiner, samples, tmp_path):
    done = script("postprocess.py", "--input", samples, "--refiner", refiner, "--output",
                  tmp_path / "n", "--device", "cpu")
    assert "warning" not in done.stderr and "2 NIfTI volumes, refined" in done.stdout
    loaded = refiners.load_refiner(refiner)
    for name, volume in volumes_of(samples).items():
        image = nib.load(tmp_path / "n" / f"{name}.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj.get_unscaled()), loaded.refine(volume))
    assert image.header["descrip"].item().decode().endswith(f"refiner {loaded.sha256[:8]}")
    made_by = json.loads((tmp_path / "n" / "source.json").read_text())["made_by"]
    assert made_by["refined_by"] == {"refiner": str(refiner), "refiner_sha256": loaded.sha256}
    elsewhere = shutil.copytree(samples / "mosaics", tmp_path / "pngs")
    script("postprocess.py", "--input", elsewhere, "--manifest", samples, "--refiner", refiner,
           "--output", tmp_path / "m", "--device", "cpu")
    assert (tmp_path / "m" / "000001.nii.gz").read_bytes() == (
        tmp_path / "n" / "000001.nii.gz").read_bytes()


def test_refining_twice_is_refused(refiner, samples, tmp_path):
    folder = shutil.copytree(samples, tmp_path / "s")
    content = json.loads((folder / "samples.json").read_text())
    content["recipe"]["refiner_sha256"] = "a" * 64
    (folder / "samples.json").write_text(json.dumps(content))
    line = error_line(script("postprocess.py", "--input", folder, "--refiner", refiner, "--output",
                             tmp_path / "n", "--device", "cpu", expect=2))
    assert "were refined when they were sampled; leave the flag out" in line


def test_a_refiner_of_something_else_is_named(refiner, samples, ckpt, tmp_path):
    other = shutil.copytree(refiner, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vae_sha256": "b" * 64}))
    done = script("postprocess.py", "--input", samples, "--refiner", other, "--output",
                  tmp_path / "n", "--device", "cpu")
    assert f"was trained for another VAE ({'b' * 12})" in done.stderr
    done = script("sample.py", "--ckpt", ckpt, *SAMPLER, "--refiner", other, "--output",
                  tmp_path / "s")
    assert f"was trained for another VAE ({'b' * 12})" in done.stderr
    (other / "config.json").write_text(json.dumps({**config, "size": 20}))
    for command in (("sample.py", "--ckpt", ckpt, *SAMPLER),
                    ("postprocess.py", "--input", samples)):
        line = error_line(script(*command, "--refiner", other, "--output", tmp_path / "x",
                                 expect=2))
        assert "was trained for rgb mosaics of 20^3" in line and not (tmp_path / "x").exists()


def test_the_ceiling_with_and_without_it(refiner, data, vae_folder, tmp_path):
    flags = ("--real", data, "--synthetic", data, "--metrics", "smoothness", "--device", "cpu",
             "--bootstrap", 0, "--permutations", 0)
    script("evaluate.py", *flags, "--vae", vae_folder, "--refiner", refiner, "--output",
           tmp_path / "e")
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    found = json.loads((refiner / "refiner.json").read_text())["held_out"]
    ceilings = content["metrics"]["through_plane"]["vae"]
    assert list(ceilings) == ["rgb", "gray", "rgb, refined"]
    for name, row in (("rgb", "round trips, before"), ("rgb, refined", "round trips, after")):
        assert ceilings[name] == pytest.approx(found[row]["through_plane"])
        assert content["vae_psnr_db"][name] == pytest.approx(found[row]["psnr_db"])
    assert "ceiling: real after VAE, rgb, refined" in (tmp_path / "e" / "report.md").read_text()
    for more, message in (
            (("--refiner", refiner), "--refiner has no effect without --vae"),
            (("--vae", vae_folder, "--refiner", refiner, "--vae-layouts", "gray"),
             "is for rgb mosaics; name rgb among --vae-layouts"),
            (("--vae", vae_folder, "--refiner", tmp_path), "holds no config.json")):
        line = error_line(script("evaluate.py", *flags, *more, "--output", tmp_path / "x",
                                 expect=2))
        assert message in line


def test_another_vae_than_it_was_trained_for_is_named_by_evaluate(refiner, data, tmp_path):
    other = random_vae(tmp_path / "v", seed=3)
    done = script("evaluate.py", "--real", data, "--synthetic", data, "--metrics", "smoothness",
                  "--device", "cpu", "--bootstrap", 0, "--permutations", 0, "--vae", other,
                  "--refiner", refiner, "--output", tmp_path / "e")
    assert "was trained for another VAE" in done.stdout and f"--vae {other}" in done.stdout
