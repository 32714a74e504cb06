"""train.py --tokens and --augment, and samples of its checkpoints, as a user runs them."""
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import error_line, finetune_flags, script
from safetensors.torch import load_file
from test_cluster import together

import train_refiner
from diffusion import samplers
from diffusion import vae as vae_module
from mri import manifest, mosaic_files
from training import pretrained
from utils.seeding import seeded_generator

FOREGROUND = ("--tokens", "foreground")


@pytest.fixture(scope="module")
def command(data, vae_folder, pretrained):
    return ("--data-path", data, "--vae", vae_folder, *finetune_flags(pretrained))


@pytest.fixture(scope="module")
def train(command):
    def run(results, *args, **kwargs):
        done = script("train.py", *command, "--results-dir", results, *args, **kwargs)
        return done, results / "000-DiT-T-4"
    return run


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("foreground"), *FOREGROUND, "--max-steps", 4)[1]


def tensors(run, name):
    return load_file(run / "checkpoints" / f"{name}.safetensors")


def test_a_checkpoint_holds_the_tokens_and_their_background(run, data, vae_folder):
    """Of 3 x 3 tiles of one token each, 16 slices fill the first six."""
    assert "6 of 9 tokens" in (run / "log.txt").read_text()
    content = tensors(run, "0000004")
    assert content["foreground.kept"].tolist() == [0, 1, 2, 3, 4, 5]
    header, entries = manifest.read_manifest(data)
    training = manifest.select_split(entries, "train", data)
    vae = vae_module.load_vae(vae_folder)
    moments = vae_module.encode_moments(vae, mosaic_files.read_mosaics(data, header, training))
    mean = moments.chunk(2, 1)[0].mean(0) * vae.config.scaling_factor
    assert torch.allclose(content["foreground.background"], mean, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(run, train, tmp_path):
    train(tmp_path / "r", *FOREGROUND, "--max-steps", 2)
    _, resumed = train(tmp_path / "r", *FOREGROUND, "--max-steps", 4)
    whole, parts = tensors(run, "0000004.state"), tensors(resumed, "0000004.state")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_samples_are_filled_with_the_background_before_they_are_decoded(
        run, vae_folder, tmp_path):
    script("sample.py", "--ckpt", run, "--output", tmp_path / "s", "--num-samples", 1, "--sampler",
           "dpm++", "--num-sampling-steps", 3, "--device", "cpu", "--precision", "fp32")
    ckpt = run / "checkpoints" / "0000004.safetensors"
    model, metadata = pretrained.restore_model(ckpt)
    assert model.kept_tokens.tolist() == [0, 1, 2, 3, 4, 5]
    vae = vae_module.load_vae(vae_folder)
    latents = samplers.sample(model, (5, 12, 12), torch.zeros(1, dtype=torch.long), 2,
                              [seeded_generator(0, 0)], "dpm++", 3)
    unfilled = vae_module.decode(vae, latents)[0]
    latents[:, :, 8:] = pretrained.read_foreground(ckpt, metadata["config"]).background[:, 8:]
    found = mosaic_files.read_mosaic(mosaic_files.mosaic_path(tmp_path / "s", "000000"),
                                     metadata["header"])
    assert np.array_equal(found, vae_module.decode(vae, latents)[0])
    assert not np.array_equal(found, unfilled)


def test_the_refiner_is_trained_on_volumes_with_the_background(run, data, monkeypatch):
    args = SimpleNamespace(
        data_path=data, ckpt=run, base=None, vae=None, device="cpu", precision="fp32",
        timesteps=(40, 220), num_sampling_steps=10)
    read = train_refiner.read_data(data, 2, seed=0)
    vae, denoiser = train_refiner.load_models(args, read)
    decoded, decode = [], vae_module.decode
    monkeypatch.setattr(vae_module, "decode",
                        lambda vae, latents: decoded.append(latents) or decode(vae, latents))
    train_refiner.make_pairs(args, read, read.train, vae, denoiser, 2, seed=0)
    resampled = torch.cat(decoded[len(read.train):])
    background = denoiser.foreground.background
    assert len(resampled) == 2 and (resampled[:, :, 8:] == background[:, 8:]).all()


def test_a_margin_adds_tokens_and_makes_another_run(run, train):
    done, _ = train(run.parent, *FOREGROUND, "--token-margin", 1, "--max-steps", 2)
    assert "differs from" in done.stdout and "--token-margin (1, there 0)" in done.stdout
    kept = tensors(run.parent / "001-DiT-T-4", "0000002").get("foreground.kept")
    assert kept is None
    assert "the training volumes touch all 9 tokens, so all are computed" in done.stdout


def test_a_run_of_all_tokens_has_no_foreground(train, tmp_path):
    done, run = train(tmp_path / "r", "--tokens", "all", "--max-steps", 2)
    assert "9 tokens" in done.stdout and " of 9 tokens" not in done.stdout
    assert not any(key.startswith("foreground") for key in tensors(run, "0000002"))
    ckpt = run / "checkpoints" / "0000002.safetensors"
    assert pretrained.restore_model(ckpt)[0].kept_tokens is None


def test_a_run_begun_before_the_flag_existed_resumes(train, tmp_path):
    _, run = train(tmp_path / "r", "--tokens", "all", "--max-steps", 2)
    args = json.loads((run / "args.json").read_text())
    del args["tokens"], args["token_margin"]
    (run / "args.json").write_text(json.dumps(args))
    done, _ = train(tmp_path / "r", "--tokens", "all", "--max-steps", 3)
    assert "resumes at step 2" in done.stdout


def test_dry_run_counts_the_tokens(train, tmp_path):
    done, _ = train(tmp_path / "r", *FOREGROUND, "--dry-run")
    assert "6 of 9 tokens" in done.stdout and not (tmp_path / "r").exists()
    assert "variants" not in done.stdout
    done, _ = train(tmp_path / "r", *FOREGROUND, "--augment", 2, "--augment-shift", 9, "--dry-run")
    assert "variants that are mirrored or moved touch more" in done.stdout


@pytest.mark.parametrize("way", ["--token-drop", "--token-route"])
def test_a_run_that_drops_tokens_resumes_across_its_full_steps(train, tmp_path, way):
    flags = (*FOREGROUND, way, 0.5, "--full-steps", 1, "--max-steps", 6)
    done, whole = train(tmp_path / "r", *flags)
    assert "steps 1 to 5 compute 3 of 6 tokens" in done.stdout
    expected = tensors(whole, "0000006.state")
    for name in ("0000006", "0000006.state"):
        (whole / "checkpoints" / f"{name}.safetensors").unlink()
    done, resumed = train(tmp_path / "r", *flags)
    assert "resumes at step 4" in done.stdout
    found = tensors(resumed, "0000006.state")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("way", ["--token-drop", "--token-route"])
def test_two_processes_leave_out_the_same_tokens(server, command, train, tmp_path, way):
    """Each computes its half of the global batch in two parts; the last step is a full one."""
    flags = (*FOREGROUND, way, 0.5, "--full-steps", 1, "--max-steps", 4)
    together(server, 2, "train", *command, *flags, "--accum", 2, "--results-dir", tmp_path / "two",
             output=tmp_path / "out")
    _, one = train(tmp_path / "one", *flags)
    two = tmp_path / "two" / one.name
    logs = [[json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
            for run in (one, two)]
    assert logs[1] == pytest.approx(logs[0], rel=1e-5) and len(logs[0]) == 2
    ours, theirs = tensors(two, "0000004"), tensors(one, "0000004")
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.pop("foreground.kept"), theirs.pop("foreground.kept"))
    # AdamW divides a tiny gradient by its own size, so rounding may turn a step around
    assert [k for k in ours if (ours[k] - theirs[k]).norm() > 1e-2 * theirs[k].norm() + 1e-3] == []


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")),
                    reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("way", ["--token-drop", "--token-route"])
def test_compiled_runs_leave_out_the_same_tokens(train, tmp_path, way):
    """With every kind of block and every shape that a run may have."""
    flags = (*FOREGROUND, way, 0.5, "--full-steps", 1, "--max-steps", 3, "--log-every", 1,
             "--gamma-blocks", 2, "--grad-checkpoint", 2, "--val-every", 2, "--sample-every", 2)
    _, plain = train(tmp_path / "plain", *flags)
    done, compiled = train(tmp_path / "compiled", *flags, "--compile")
    assert "blocks are compiled" in done.stdout and "recompile_limit" not in done.stderr
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            for run in (plain, compiled)]
    losses = [[entry[key] for entry in log for key in ("loss", "held_out_loss") if key in entry]
              for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 5


def test_previews_are_filled_too(train, tmp_path):
    _, run = train(tmp_path / "r", *FOREGROUND, "--max-steps", 2, "--sample-every", 2)
    assert (run / "samples" / "0000002.png").is_file()



def test_variants_are_trained_on_and_resume(train, tmp_path):
    ranges = ("--augment", 3, "--augment-flip", 0.5, "--augment-rotate", 5, "--augment-scale", 0.05,
              "--augment-shift", 1, "--augment-gamma", 0.1)
    _, whole = train(tmp_path / "a", *ranges, "--max-steps", 4)
    train(tmp_path / "b", *ranges, "--max-steps", 2)
    _, resumed = train(tmp_path / "b", *ranges, "--max-steps", 4)
    a, b = tensors(whole, "0000004.state"), tensors(resumed, "0000004.state")
    assert all(torch.equal(a[key], b[key]) for key in a)
    _, plain = train(tmp_path / "c", "--max-steps", 4)
    c = tensors(plain, "0000004.state")
    assert not all(torch.equal(a[key], c[key]) for key in c)


@pytest.mark.parametrize("flags, words", [
    (("--augment", 2), "--augment 2: variants need a range"),
    (("--augment-flip", 0.5), "--augment 1: variants need a range"),
    (("--augment", 0), "--augment must be at least 1"),
    (("--augment", 2, "--augment-flip", 2), "--augment-flip at most 1")])
def test_ranges_and_their_number_go_together(train, tmp_path, flags, words):
    done, _ = train(tmp_path / "r", *flags, expect=2)
    assert words in error_line(done)
