"""report.md, report.html and the terminal's lines, from the content of a metrics.json."""
import re

import pytest
from PIL import Image

from reporting import blocks, report

ENTRIES = {
    "ms_ssim": {"name": "MS-SSIM within the set", "aim": "real", "how": "`kwon2019`, all pairs",
                "value": 0.91, "interval": [0.9, 0.92], "vae": {"rgb": 0.89},
                "target": {"value": 0.88, "interval": [0.87, 0.9]},
                "floor": {"mean": 0.885, "low": 0.87, "high": 0.9}},
    "mmd_linear": {"name": "MMD, linear", "aim": "low", "how": "‖mean x − mean y‖²",
                   "value": 47.6647, "interval": [26.1, 60.5], "vae": {"rgb": 13.0},
                   "floor": {"mean": 58.5, "low": 35.6, "high": 95.8}},
    "gradient_right": {"name": "gradient energy, right-left", "aim": "1", "how": "energy",
                       "value": -0.5},
    "gradient_anterior": {"name": "gradient energy, anterior-posterior", "aim": "1",
                          "how": "energy", "value": None},
    "fid_a": {"name": "FID-A", "aim": "low", "how": "FID", "value": 120.0,
              "weights": {"file": "w.pth", "sha256": "0" * 64}},
}


@pytest.fixture
def content():
    def found(path, split, n):
        return {"path": path, "split": split, "n": n, "subjects": n - 1, "ids": ["a"] * n,
                "voxel_mm": [1.0, 1.25, 2.0]}

    return {
        "mosaicdit_version": "1.2.3", "size": 128, "sets": {
            "real": found("data/a|b", "test", 16), "synthetic": found("samples/<x>", None, 32)},
        "settings": {"bootstrap": 500, "vae": "mse", "seed": 7, "device": "cpu"},
        "vae_psnr_db": {"rgb": 27.951}, "warnings": ["the sets are the same"],
        "skipped": {"KID": "no weights"}, "metrics": ENTRIES, "versions": {"torch": "2.9"}}


@pytest.fixture
def written(content, tmp_path):
    (tmp_path / "figures").mkdir()
    Image.new("L", (4, 4), 9).save(tmp_path / "figures" / "montage.png")
    report.write_report(tmp_path, content)
    return (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()


def test_tables(written):
    text, page = written
    assert "| real | `data/a\\|b` | test | 16 | 15 | 128³ | 1 × 1.25 × 2 |" in text
    assert ("| MS-SSIM within the set | **0.91** [0.9, 0.92] | real: 0.88 [0.87, 0.9] | "
            "0.885 (0.87 … 0.9) | – | 0.89 |") in text
    assert "| MMD, linear | **47.66** [26.1, 60.5] | low | 58.5 (35.6 … 95.8) | – | 13 |" in text
    assert "| gradient energy, right-left | **−0.5** | 1 | – | – | – |" in text
    assert "| gradient energy, anterior-posterior | **–** | 1 | – | – | – |" in text
    assert "| **this evaluation**, 16 real | 32 | 91 | 47.66 | 120 | – | – |" in text
    assert "HA-GAN | 500 | 36.8 | 226 | 477 | 1090 | 554" in text and "not comparable" in text
    assert "paper's real volumes: 78.5%. Of the real volumes here: 88%." in text
    assert page.count("<table>") == 3 and "<code>data/a|b</code>" in page
    assert "<code>samples/&lt;x&gt;</code>" in page and "<x>" not in page


def test_words(written):
    text, page = written
    assert "**Warning:** the sets are the same." in text
    assert "**KID** was not computed: no weights." in text
    assert "95%, from 500 bootstrap replicates" in text and "rgb 27.95 dB" in text
    assert "*Floor*" in text and "*Ceiling*" in text and "<i>Ceiling</i>" in page
    # numbers that are computed alike share a line
    assert ("- **gradient energy, right-left; gradient energy, anterior-posterior**: energy."
            in text)
    assert "- MosaicDiT 1.2.3, torch 2.9" in text and "- seed 7, device cpu" in text
    assert f"`w.pth`, SHA-256 {'0' * 64}" in text


def test_pictures(written):
    text, page = written
    caption = report.CAPTIONS["montage.png"]
    assert f"![{caption}](figures/montage.png)" in text and text.count("](figures/") == 1
    assert page.count("data:image/png;base64,") == 1 and caption in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_without_numbers(content, tmp_path):
    content["metrics"] = {}
    (tmp_path / "figures").mkdir()
    report.write_report(tmp_path, content)
    text = (tmp_path / "report.md").read_text()
    assert "What each number is" not in text and "**this evaluation**, 16 real | 32 | –" in text
    assert report.terminal_lines(content) == ["KID: not computed, no weights"]


def test_terminal_lines(content):
    lines = report.terminal_lines(content)
    assert lines[0].split() == ["MS-SSIM", "within", "the", "set", "0.91", "[0.9,", "0.92]",
                                "real", "0.88", "[0.87,", "0.9]"]
    assert len({line.index(" ", 36) for line in lines[:2]}) == 1 and len(lines) == 6


@pytest.mark.parametrize("value, expected", [
    (None, "–"), (float("nan"), "–"), (0.0, "0"), (-1.23456, "−1.235"), (1e-7, "1e−07")])
def test_number(value, expected):
    assert report.number(value) == expected


def test_marks_in_text_become_tags():
    paragraph = blocks.Paragraph("**bold**, *italic*, `a * b * c`, 1 < 2 & 3")
    assert paragraph.html(None) == ("<p><b>bold</b>, <i>italic</i>, <code>a * b * c</code>, "
                                    "1 &lt; 2 &amp; 3</p>")
    assert paragraph.markdown() == paragraph.text
    assert blocks.Heading(2, "x").markdown() == "## x"
    assert blocks.Bullets(["a", "b"]).html(None) == "<ul><li>a</li><li>b</li></ul>"
