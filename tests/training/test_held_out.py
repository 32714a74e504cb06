"""The held-out loss: what is measured, and that training does not notice."""
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import error_line, finetune_flags, randomize, script, small_dit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import vae as vae_module
from diffusion.gaussian_diffusion import training_losses
from mri import manifest, mosaic_files
from training import bookkeeping, held_out
from training.pretrained import restore_model
from training.run_folder import Run
from training.state import TrainingState
from utils.seeding import seeded_generator

STEPS = 4
VAL = ("--val-every", 2)


@pytest.fixture(scope="module")
def train(data, vae_folder, pretrained):
    def run(results, *args, **kwargs):
        done = script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                      results, *finetune_flags(pretrained), "--gamma-blocks", 2, *args, **kwargs)
        return done, results / "000-DiT-T-4"
    return run


@pytest.fixture(scope="module")
def measured(train, tmp_path_factory):
    """A run like `finetuned`, but with a held-out loss."""
    return train(tmp_path_factory.mktemp("measured"), *VAL, "--max-steps", STEPS)[1]


def log_of(run, name=None):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if name is None or name in entry]


# ------------------------------------------------------------------------------------- the draws

def test_timesteps_cover_the_range():
    """Of 10 volumes: one in each of 40 parts of 25 timesteps, one per volume in each quarter."""
    t = held_out.stratified_timesteps(10)
    assert sorted((t.flatten() // 25).tolist()) == list(range(40))
    assert ((t // 250).sort(1).values == torch.arange(4)).all()
    assert torch.equal(t, held_out.stratified_timesteps(10))
    assert 990 < held_out.stratified_timesteps(1000).max() < 1000


def test_some_training_volumes_are_the_unaugmented_ones():
    chosen = held_out.some_training_volumes(None, torch.arange(10, 19), torch.zeros(9, 0),
                                            variants=3, count=3)
    assert chosen.rows.tolist() == [0, 9, 18] and chosen.labels.tolist() == [10, 13, 16]
    assert len(held_out.some_training_volumes(None, torch.arange(2), torch.zeros(2, 0), 1, 5)) == 2


@pytest.mark.parametrize("kept", [None, torch.tensor([0, 3, 7, 9])])
def test_the_mean_loss_is_the_training_loss_at_these_draws(kept):
    model = randomize(small_dit()).keep_tokens(kept)
    g = torch.Generator().manual_seed(0)
    moments, labels = torch.rand(3, 8, 8, 8, generator=g), torch.tensor([4, 1, 9])
    volumes = held_out.Volumes(moments, labels[:2], torch.tensor([2, 0]), torch.zeros(2, 0))
    found = held_out.mean_loss(model, volumes, {"scaling_factor": 0.5}, precision="fp32",
                               device="cpu")
    losses = []
    for i, row in enumerate((2, 0)):
        g = seeded_generator(held_out.SEED, 1 + i)
        vae_noise, noise = (torch.randn(4, 4, 8, 8, generator=g) for _ in range(2))
        for k, t in enumerate(held_out.stratified_timesteps(2)[i]):
            x0 = (moments[row, :4] + moments[row, 4:] * vae_noise[k]) * 0.5
            with torch.no_grad():
                loss = training_losses(model, x0[None], t[None], labels[i:i + 1], noise[k:k + 1],
                                       model.kept_latents)["loss"]
            losses.append(float(loss))
    assert np.isclose(found, np.mean(losses), rtol=1e-5)


def test_averaged_weights_are_taken_back_even_after_an_error():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    state = TrainingState({"p": p}, lr=0.1)
    state.ema["p"].copy_(torch.tensor([5.0, 6.0]))
    with pytest.raises(KeyError), state.averaged_weights():
        assert p.tolist() == [5, 6]
        raise KeyError
    assert p.tolist() == [1, 2]


# ------------------------------------------------------------------------------------------ a run

def test_training_does_not_notice(measured, finetuned):
    """Checkpoints and states are bitwise the same, and so are the lines of the training loss."""
    names = sorted(path.name for path in (finetuned / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (measured / "checkpoints").iterdir())
    for name in names:
        ours, theirs = (run / "checkpoints" / name for run in (measured, finetuned))
        assert ours.read_bytes() == theirs.read_bytes()
    assert log_of(measured, "loss") == log_of(finetuned)


def test_the_loss_is_of_the_ema_weights_on_the_test_split(measured, data, vae_folder):
    """Once more from the checkpoint, whose mosaics are encoded here."""
    header, entries = manifest.read_manifest(data)
    entries = manifest.select_split(entries, "test", data)
    vae = vae_module.load_vae(vae_folder)
    moments = vae_module.encode_moments(vae, mosaic_files.read_mosaics(data, header, entries))
    volumes = held_out.Volumes(moments, torch.tensor([entry["class"] for entry in entries]),
                               torch.arange(len(entries)), torch.zeros(len(entries), 0))
    model, _ = restore_model(measured / "checkpoints" / f"{STEPS:07d}.safetensors", "ema")
    found = held_out.mean_loss(model, volumes, {"scaling_factor": 0.7}, precision="fp32",
                               device="cpu")
    assert np.isclose(log_of(measured, "held_out_loss")[-1]["held_out_loss"], found, rtol=1e-5)


def test_logs_name_the_best_step(measured, data):
    entries = log_of(measured, "held_out_loss")
    assert [entry["step"] for entry in entries] == [2, 4]
    best = min(entries, key=lambda entry: entry["held_out_loss"])
    text = (measured / "log.txt").read_text()
    n = sum(entry["split"] == "test" for entry in manifest.read_manifest(data)[1])
    assert f"{n} volumes of the split 'test' and {n} of the training volumes, 4 timesteps" in text
    kept = measured / "checkpoints" / f"{best['step']:07d}.safetensors"
    lowest = f"lowest held-out loss {best['held_out_loss']:.5f} at step {best['step']}"
    assert f"{lowest}: {kept}" in text
    board = EventAccumulator(str(measured)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("held_out/held_out_loss")] == [
        (e["step"], np.float32(e["held_out_loss"])) for e in entries]
    assert (measured / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_best_step_without_a_checkpoint_is_named(measured, tmp_path):
    """The lowest loss of three lines is at step 3, of which no checkpoint was written."""
    run = tmp_path / "run"
    shutil.copytree(measured, run)
    key = log_of(run, "held_out_loss")[0]["key"]
    lines = [{"step": step, "held_out_loss": loss, "key": key} for step, loss in
             ((1, 0.5), (2, None), (3, 0.2), (4, 0.3))]
    lines.append({"step": 4, "held_out_loss": 0.1, "key": "of other volumes"})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    locked = Run(run)
    locked.open_logs(4)
    probe = SimpleNamespace(key=key, is_due=lambda step, is_last: is_last or step % 2 == 0)
    bookkeeping.say_best_step(locked, probe)
    said = (run / "log.txt").read_text().splitlines()[-1]
    assert "0.20000 at step 3: its checkpoint was not kept, the nearest is of step 2" in said
    for step, is_last, lacking in ((4, False, False), (4, True, False), (5, False, False),
                                   (5, True, True), (6, False, True)):
        assert bookkeeping.lacks_held_out(locked, probe, step, is_last) == lacking


def test_a_resumed_run_equals_an_uninterrupted_one(train, measured, tmp_path):
    """Stopped as if killed between the state of step 2 and its held-out loss."""
    _, run = train(tmp_path / "r", *VAL, "--max-steps", STEPS)
    for path in run.glob("checkpoints/0000004*"):
        path.unlink()
    lines = [line for line in (run / "log.jsonl").read_text().splitlines(True)
             if "held_out" not in line]
    (run / "log.jsonl").write_text("".join(lines))
    done, _ = train(tmp_path / "r", *VAL, "--max-steps", STEPS)
    assert "resumes at step 2" in done.stdout
    assert (run / "log.jsonl").read_bytes() == (measured / "log.jsonl").read_bytes()
    best = re.findall(r"lowest held-out loss \S+ at step \d+", done.stdout)[-1]
    assert best in (measured / "log.txt").read_text()
    # the flags are no part of what a run is: it resumes without them
    done, _ = train(tmp_path / "r", "--max-steps", STEPS + 1)
    assert "resumes at step 4" in done.stdout and "held-out" not in done.stdout


def test_a_job_killed_in_the_last_evaluation_measures_when_it_starts_again(
        train, measured, tmp_path):
    """Stopped as if killed between the state of the last step and its held-out loss."""
    run = shutil.copytree(measured, tmp_path / measured.name)
    (run / "loss.png").unlink()
    lines = (run / "log.jsonl").read_text().splitlines(True)
    assert "held_out_loss" in lines[-1]
    (run / "log.jsonl").write_text("".join(lines[:-1]))
    command = (tmp_path, *VAL, "--max-steps", STEPS)
    done, _ = train(*command)
    assert "lowest held-out loss" in done.stdout and "done: " in done.stdout
    assert (run / "log.jsonl").read_bytes() == (measured / "log.jsonl").read_bytes()
    assert (run / "loss.png").is_file()
    done, _ = train(*command)
    assert "has its 4 steps already" in done.stdout


def test_latents_are_cached_apart_from_those_of_training(train, data, vae_folder, tmp_path):
    copy = tmp_path / "d"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("latents-*"))
    flags = ("--data-path", copy, "--max-steps", 1)
    train(tmp_path / "r", *flags)
    before = {path: path.read_bytes() for path in copy.glob("latents-*")}
    done, _ = train(tmp_path / "r", *flags, "--max-steps", 2, *VAL)
    after = {path: path.read_bytes() for path in copy.glob("latents-*")}
    assert len(before) == 1 and len(after) == 2 and before.items() <= after.items()
    assert "resumes at step 1" in done.stdout       # the data is still the same


def test_foreground_tokens_are_respected(train, tmp_path):
    _, run = train(tmp_path, *VAL, "--max-steps", 2, "--tokens", "foreground")
    assert "6 of 9 tokens" in (run / "log.txt").read_text()
    assert 0 < log_of(run, "held_out_loss")[-1]["held_out_loss"] < 5


def test_refusals(train, data, tmp_path):
    done, _ = train(tmp_path / "r", *VAL, "--val-split", "val", "--max-steps", 2, expect=2)
    assert "has no volumes in the split 'val'" in error_line(done)
    copy = tmp_path / "d"
    shutil.copytree(data, copy)
    content = json.loads((copy / "manifest.json").read_text())
    content["classes"].append("rare")
    next(v for v in content["volumes"] if v["split"] == "test")["class"] = 2
    (copy / "manifest.json").write_text(json.dumps(content))
    done, _ = train(tmp_path / "r", *VAL, "--data-path", copy, "--max-steps", 2, expect=2)
    assert "--num-classes 2: the split 'test'" in error_line(done)
    assert not (tmp_path / "r").exists()
