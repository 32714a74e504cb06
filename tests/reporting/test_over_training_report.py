import pytest
from PIL import Image

from reporting import over_training

COLUMNS = {"step": "training step", "samples": "volumes", "mmd": "MMD", "coverage": "coverage",
           "copies": "copies", "copied_share": "share", "ratio": "ratio",
           "ratio_of_held_out": "of held-out", "held_out_loss": "held-out loss"}


def row(step, mmd, copies, held_out_loss):
    return {"step": step, "samples": 8, "mmd": mmd, "coverage": 0.5, "copies": copies,
            "copied_share": copies / 8, "ratio": 0.9 - copies / 10, "ratio_of_held_out": 0.9,
            "held_out_loss": held_out_loss}


@pytest.mark.parametrize("losses", [(0.4, 0.3, 0.35), (None, None, None)])
def test_report(tmp_path, losses):
    rows = [row(100, 0.2, 0, losses[0]), row(200, 0.1, 1, losses[1]), row(300, 0.15, 4, losses[2])]
    over_training.write(tmp_path, rows, COLUMNS, "results/001-DiT")
    lines = (tmp_path / "over-training.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(COLUMNS) and len(lines) == 4
    assert lines[2].split("\t") == ["200", "8", "0.1", "0.5", "1", "0.125", "0.8", "0.9",
                                    str(losses[1]) if losses[1] else "n/a"]
    text = (tmp_path / "report.md").read_text()
    assert "Lowest MMD: step 200" in text and "first at step 200, at 2 of 3 checkpoints" in text
    assert ("Lowest held-out loss: step 200" in text) == (losses[0] is not None)
    assert ("holds no held-out loss" in text) == (losses[0] is None)
    with Image.open(tmp_path / "figures" / "over-training.png") as image:
        assert image.height > 500


@pytest.mark.parametrize("names, words", [
    (("age",), "the covariate `age` of"), (("age", "sex"), "the covariates `age` and `sex` of"),
    (("age", "sex", "x*y"), "the covariates `age`, `sex` and `x*y` of")])
def test_what_samples_were_asked_to_have(names, words):
    rows = [row(1, 0.1, 0, None)]
    first = over_training.report_blocks(rows, COLUMNS, "run", names)[1].text
    assert first.endswith(f"8 samples each. Each sample was asked to have {words} a random "
                          "training volume of its class.")
    assert over_training.report_blocks(rows, COLUMNS, "run")[1].text.endswith("8 samples each.")


def test_a_run_that_does_not_copy():
    assert "No sample of any checkpoint is flagged as a copy" in over_training.findings(
        [row(1, None, 0, None)])
