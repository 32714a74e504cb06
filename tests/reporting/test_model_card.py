import json

import pytest

from reporting import model_card
from utils.errors import UserError

METADATA = dict(
    model="DiT-XL/2", tune="lora", step=66000, image_size=896, mosaicdit_version="0.6.0",
    header=dict(size=128, layout="rgb", classes=["CN", "A|D <b>"]), class_counts=[40, 23],
    begun_from=dict(path="/home/a/w.pt", name="w.pt", sha256="ab" * 32),
    lora=dict(rank=8, alpha=16),
    vae=dict(name="/home/a/ema", sha256="cd" * 32))
METRICS = {
    "format": "mosaicdit-evaluation", "date": "2026-01-02",
    "sets": {"real": {"n": 30}, "synthetic": {"n": 32, "made_by": {"recipe": {
        "ckpt_sha256": "ef" * 32, "refiner_sha256": "01"}}}},
    "metrics": {
        "a": {"name": "MMD", "value": 30.579, "aim": "low"},
        "b": {"name": "MS-SSIM", "value": 0.93553, "interval": [0.9301, 0.9421], "aim": "real",
              "target": {"value": 0.92447, "interval": [0.9104, 0.9365]}}}}


def card(metrics=None, notes=(), **changes):
    return model_card.model_card(
        METADATA | changes, sha256="ef" * 32, weights="ema", files={"a.pt": "all weights"},
        usage="Load it.", notes=notes, metrics=metrics)


def test_facts():
    text = card(notes=["it differs"])
    assert text.startswith("---\nlicense: cc-by-nc-4.0\ntags:\n")
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines()
                if line.startswith("| ") and line != "| | |")
    assert rows["training volumes"] == "63"
    assert rows["classes"] == "0: CN (40), 1: A&#124;D &#60;b&#62; (23)"
    assert rows["base weights"] == f"`w.pt`, SHA-256 `{'ab' * 32}`"
    assert rows["tuning method"] == "`lora`, rank 8, alpha 16"
    assert rows["steps"] == "66,000" and rows["mosaics"].startswith("896 × 896 pixels")
    assert "/home/a" not in text            # paths of a machine are nobody's business
    assert "- it differs" in text and "- `a.pt`: all weights" in text
    assert "facebookresearch/DiT" in text and "## Evaluation" not in text


def test_covariates_have_a_row():
    assert "| covariates |" not in card()
    text = model_card.model_card(
        METADATA, sha256="ef" * 32, weights="ema", files={}, usage="", notes=(),
        covariates="age 60 to 80 years; sex F, M|X")
    assert "| covariates | age 60 to 80 years; sex F, M&#124;X |" in text.splitlines()


def test_random_weights_have_no_license():
    text = card(begun_from=None)
    assert "license: other\n" in text and "CC-BY-NC" not in text
    assert "none, trained from random weights" in text


def test_metrics():
    single = {"name": "thalamus, volume, ml, d", "value": 0.1, "aim": "0", "family": "volume"}
    text = card(METRICS | {"metrics": METRICS["metrics"] | {"c": single}})
    assert text == card(METRICS)        # structures have a table of their own in the report
    lines = text.splitlines()
    assert "32 samples, refined, against 30 real volumes (`evaluate.py`, 2026-01-02):" in lines
    assert "| MMD | 30.58 | low |" in lines
    assert "| MS-SSIM | 0.9355 [0.93, 0.942] | 0.9245, as of the real volumes |" in lines


def test_metrics_are_those_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.json"

    def read(content, sha256="ef" * 32):
        path.write_text(json.dumps(content))
        return model_card.read_metrics(path, "a.safetensors", sha256)

    assert read(METRICS) == METRICS
    with pytest.raises(UserError, match="of another checkpoint; evaluate samples of a.safetensors"):
        read(METRICS, "00" * 32)
    with pytest.raises(UserError, match="not recorded of which checkpoint"):
        read(METRICS | {"sets": {"synthetic": {"n": 3}}})
    for wrong in ([], {}, {"format": "mosaicdit-evaluation"}, METRICS | {"metrics": []}):
        with pytest.raises(UserError, match="not written by evaluate.py"):
            read(wrong)
