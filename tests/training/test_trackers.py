"""TensorBoard's pictures, and the mirror on Weights & Biases."""
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import finetune_flags, script
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mri import manifest, mosaic, mosaic_files
from mri.view_images import view_images
from training import trackers
from utils.errors import UserError

PREVIEWS = ("mosaic", "axial", "coronal", "sagittal")


class FakeRun:
    """Records what it is sent; fails on the loss 13."""

    def __init__(self):
        self.logged, self.metrics, self.is_finished = [], [], False

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        if values.get("loss") == 13:
            raise ConnectionError("the server is\ngone")
        self.logged.append(values)

    def finish(self):
        self.is_finished = True


@pytest.fixture
def fake(monkeypatch):
    """Stands in for the module wandb; `init` says how it was called."""
    fake = SimpleNamespace(run=FakeRun(), calls=[], Settings=dict, Image=lambda image: image.shape)

    def init(**kwargs):
        fake.calls.append(kwargs)
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_the_mirror_gets_numbers_and_images(fake, tmp_path):
    mirror = trackers.WeightsAndBiases("brains", tmp_path, {"lr": 0.1})
    mirror.scalars(7, {"loss": 0.5})
    mirror.images(7, {"samples/axial": np.zeros((4, 5), np.uint8)})
    mirror.close()
    assert fake.run.logged == [{"loss": 0.5, "step": 7}, {"samples/axial": (4, 5), "step": 7}]
    assert fake.run.metrics == [("*", "step")] and fake.run.is_finished
    (call,) = fake.calls
    assert (call["project"], call["config"], call["resume"]) == ("brains", {"lr": 0.1}, "allow")


def test_a_resumed_training_continues_the_same_run(fake, tmp_path):
    for _ in range(2):
        trackers.WeightsAndBiases("brains", tmp_path, {})
    first, second = (call["id"] for call in fake.calls)
    assert first == second == json.loads((tmp_path / "wandb-id.json").read_text())["id"]
    (tmp_path / "other").mkdir()
    trackers.WeightsAndBiases("brains", tmp_path / "other", {})
    assert fake.calls[2]["id"] != first


def test_a_failure_is_one_warning_and_the_end_of_the_mirror(fake, tmp_path, capsys):
    mirror = trackers.WeightsAndBiases("brains", tmp_path, {})
    for loss in (1, 13, 2):
        mirror.scalars(1, {"loss": loss})
    mirror.images(1, {})
    mirror.close()
    assert [values["loss"] for values in fake.run.logged] == [1] and not fake.run.is_finished
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "failed (" in err and "continues without it" in err


def test_a_failure_at_the_start_does_not_stop_training(fake, tmp_path, capsys):
    fake.init = None
    mirror = trackers.WeightsAndBiases("brains", tmp_path, {})
    mirror.scalars(1, {"loss": 1})
    assert capsys.readouterr().err.count("warning: --wandb") == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    trackers.check_wandb(None)
    with pytest.raises(UserError, match="--wandb brains: wandb is not installed; pip install"):
        trackers.check_wandb("brains")


# ------------------------------------------------------------------------------------- a training

@pytest.fixture
def train(data, vae_folder, pretrained, tmp_path):
    def run(*flags, **kwargs):
        return script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                      tmp_path, *finetune_flags(pretrained), "--sample-every", 2, *flags, **kwargs)
    return run


def test_previews_are_in_tensorboard_in_three_views(train, data, tmp_path):
    train("--max-steps", 4)
    run = tmp_path / "000-DiT-T-4"
    header, _ = manifest.read_manifest(data)
    board = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert set(board.Tags()["images"]) == {f"samples/{name}" for name in PREVIEWS}
    pixels = mosaic_files.read_mosaic(run / "samples" / "0000004.png", header)
    volume = mosaic.untile(pixels, header["size"], header["layout"])
    expected = {"mosaic": pixels, **view_images(volume, header["affine"])}
    for name in PREVIEWS:
        events = board.Images(f"samples/{name}")
        assert [event.step for event in events] == [2, 4]
        shown = Image.open(io.BytesIO(events[1].encoded_image_string))
        assert np.array_equal(shown, Image.fromarray(expected[name]).convert("RGB"))


@pytest.mark.slow
def test_an_offline_run_and_its_resumption(train, tmp_path):
    """The package itself writes two parts of one run, each with its images."""
    pytest.importorskip("wandb")
    for steps in (2, 4):
        # a process of its own: W&B removes a temporary folder when a process that imported it ends
        done = train("--wandb", "brains", "--max-steps", steps, env={"WANDB_MODE": "offline"},
                     fresh=True)
        assert "--wandb" not in done.stderr     # no warning
    assert "resumes at step 2" in done.stdout
    run = tmp_path / "000-DiT-T-4"
    run_id = json.loads((run / "wandb-id.json").read_text())["id"]
    parts = sorted((run / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(run_id) for part in parts)
    for part in parts:
        assert (part / f"run-{run_id}.wandb").stat().st_size > 1000
        names = [path.name.split("_")[0] for path in part.glob("files/media/images/samples/*.png")]
        assert sorted(names) == sorted(PREVIEWS)
    # the flag is no part of what a run is
    assert "has its 4 steps already" in train("--max-steps", 4).stdout
