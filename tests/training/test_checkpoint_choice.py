"""Which file --ckpt means."""
import os

import pytest

from training import checkpoint_choice
from training.checkpoint_choice import choose_checkpoint
from utils.errors import UserError
from utils.version import __version__


def add(results, run, *names, age=0):
    """Empty files in a run's checkpoints/, written `age` seconds ago."""
    folder = results / run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.safetensors"
        path.write_bytes(b"")
        os.utime(path, (10 ** 9 - age,) * 2)
    return results / run


def test_a_file_and_a_run_folder(tmp_path):
    run = add(tmp_path, "000-DiT-T-4", "0000002", "0000004", "0000004.state", "0000006.state")
    newest = run / "checkpoints" / "0000004.safetensors"
    file = run / "checkpoints" / "0000002.safetensors"
    assert choose_checkpoint(file) == checkpoint_choice.ChosenCheckpoint(file)
    assert choose_checkpoint(run) == checkpoint_choice.ChosenCheckpoint(newest)
    assert choose_checkpoint(tmp_path) == checkpoint_choice.ChosenCheckpoint(newest)
    add(tmp_path, "001-DiT-T-4", "0000002")
    (note,) = choose_checkpoint(run).notes
    assert note == "000-DiT-T-4 is not the newest run: 001-DiT-T-4 has 0000002.safetensors"


def test_a_results_folder(tmp_path):
    add(tmp_path, "000-DiT-T-4", "0000009")
    add(tmp_path, "001-DiT-T-4", "0000002", age=60)
    add(tmp_path, "002-DiT-T-4")
    chosen = choose_checkpoint(tmp_path)
    assert chosen.path == tmp_path / "001-DiT-T-4" / "checkpoints" / "0000002.safetensors"
    assert chosen.notes == (
        "001-DiT-T-4 is not the run that was trained last: 000-DiT-T-4 has 0000009.safetensors, "
        "which is newer",
        "001-DiT-T-4 is not the newest run: 002-DiT-T-4 has no checkpoint yet")


def test_an_interrupted_run_has_a_state(tmp_path):
    run = add(tmp_path, "000-DiT-T-4", "0000003.state", "0000005.state")
    chosen = choose_checkpoint(run)
    assert chosen.path.name == "0000005.state.safetensors"
    assert "no checkpoint yet: sampling from its last state" in chosen.notes[0]
    with pytest.raises(UserError, match="holds no checkpoints/STEP.safetensors and no state"):
        choose_checkpoint(add(tmp_path, "001-DiT-T-4"))


def test_what_samples_record(tmp_path):
    path = add(tmp_path, "000-DiT-T-4", "0000002") / "checkpoints" / "0000002.safetensors"
    recorded = checkpoint_choice.provenance(path, {"step": 2})
    date = recorded.pop("date")
    assert recorded == {"checkpoint": str(path), "run": "000-DiT-T-4", "step": 2,
                        "mosaicdit_version": __version__}
    assert len(date) == 10
    assert checkpoint_choice.run_of(tmp_path / "0000002.safetensors") is None
    text = checkpoint_choice.nifti_description({"step": 66000}, "1a2b3c4d5e")
    assert text == f"MosaicDiT {__version__} ckpt 1a2b3c4d step 66000"


def test_an_average_that_is_behind_is_named():
    metadata = {"step": 300, "average": {"initial_share": 0.97}}
    note = checkpoint_choice.warn_of_average(metadata, "ema")
    assert "97% of the EMA of step 300 is still the weights" in note
    assert checkpoint_choice.warn_of_average(metadata, "raw") is None
    assert checkpoint_choice.warn_of_average({"step": 1}, "ema") is None
