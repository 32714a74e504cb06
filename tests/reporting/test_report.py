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

    synthetic = found("samples/<x>", None, 32)
    synthetic["made_by"] = {"provenance": {"step": 4},
                            "recipe": {"seed": 3, "ckpt_sha256": "1234567890123"}}
    return {
        "mosaicdit_version": "1.2.3", "git_commit": "abc123",
        "date": "2026-01-02T03:04:05+00:00", "size": 128, "sets": {
            "real": found("data/a|b", "test", 16), "synthetic": synthetic},
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
    assert "| MMD, linear | **47.7** [26, 60] | low | 58.5 (35.6 … 95.8) | – | 13 |" in text
    assert "| gradient energy, right-left | **−0.5** | 1 | – | – | – |" in text
    assert "| gradient energy, anterior-posterior | **–** | 1 | – | – | – |" in text
    assert "| **this evaluation**, 16 real | 32 | 91 | 0.1907 | 120 | – | – |" in text
    assert "HA-GAN | 500 | 36.8 | 226 | 477 | 1090 | 554" in text and "not comparable" in text
    assert "paper's real volumes: 78.5%. Of the real volumes here: 88%." in text
    assert page.count("<table>") == 3 and "<code>data/a|b</code>" in page
    assert "samples/&#60;x&#62;" in page and "samples/&#60;x&#62;" in text
    assert "<x>" not in page + text


def test_words(written):
    text, page = written
    assert "**Warning:** the sets are the same." in text
    assert "**KID**: not computed, no weights." in text
    assert "95%, from 500 bootstrap replicates" in text and "rgb 27.95 dB" in text
    assert "*Floor*" in text and "*Ceiling*" in text and "<i>Ceiling</i>" in page
    # numbers that are computed alike share a line
    assert ("- **gradient energy, right-left; gradient energy, anterior-posterior**: energy."
            in text)
    assert "- MosaicDiT 1.2.3, commit abc123, torch 2.9" in text
    assert "- 2026-01-02T03:04:05+00:00, seed 7, device cpu" in text
    assert "- synthetic set: step 4, seed 3, ckpt sha256 123456789012" in text
    assert f"`w.pth`, SHA-256 {'0' * 64}" in text


def test_pictures(written):
    text, page = written
    caption = "One of 16 real and one of 32 synthetic volumes, three views at three depths."
    assert f"![{caption}](figures/montage.png)" in text and text.count("](figures/") == 1
    assert page.count("data:image/png;base64,") == 1 and caption in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "https://" not in page


def test_by_class(content, tmp_path):
    (tmp_path / "figures").mkdir()
    own = {"mmd_linear": {**ENTRIES["mmd_linear"], "value": 3.0}}
    content["by_class"] = {
        "AD": {"n": {"real": 6, "synthetic": 20}, "metrics": own,
               "skipped": {"KID": "no weights", "utility": "one class", "intervals": "few subjects",
                           "p": "few subjects"}},
        "CN": {"n": {"real": 10, "synthetic": 1}, "metrics": {},
               "skipped": {"everything": "few", "utility": "one class"}}}
    report.write_report(tmp_path, content)
    text = (tmp_path / "report.md").read_text()
    assert "| metric | overall | AD (6 real, 20 synthetic) | CN (10 real, 1 synthetic) |" in text
    assert "| MMD, linear | 47.7 [26, 60] | 3 [26, 60] | – |" in text
    assert "**CN: everything**: not computed, few." in text
    assert "**AD, CN: utility**: not computed, one class." in text   # alike, so said once
    assert "**AD: intervals, p**: not computed, few subjects." in text
    assert text.count("one class") == 1
    assert text.count("no weights") == 1    # as it is said of the whole sets already


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


def test_p_has_columns_and_is_explained(content, tmp_path):
    (tmp_path / "figures").mkdir()
    tested = {**ENTRIES["mmd_linear"], "p": 0.001, "p_adjusted": 0.0042, "interval": None}
    content["metrics"] = {"ms_ssim": ENTRIES["ms_ssim"], "mmd_linear": tested}
    report.write_report(tmp_path, content)
    text = (tmp_path / "report.md").read_text()
    assert "| target | p | p, adjusted | floor: two halves of real |" in text
    assert "| MMD, linear | **47.66** | low | 0.001 | 0.0042 | 58.5" in text
    assert "[0.87, 0.9] | – | – | 0.885" in text
    assert "*p, adjusted*: for 1 numbers (Holm)" in text
    assert "p 0.001, adjusted 0.0042" in report.terminal_lines(content)[1]


def notes(content, entries, bootstrap=500):
    content["settings"]["bootstrap"] = bootstrap
    content["metrics"] = entries
    return " ".join(report._notes(content, []))


def test_the_note_on_intervals_is_of_those_that_there_are(content):
    of_splits = {"utility_real": {"name": "utility", "aim": "1", "how": "AUC", "value": 0.8,
                                  "interval": [0.7, 0.9], "splits": [0.8]}}
    text = notes(content, ENTRIES)
    assert "500 bootstrap replicates over subjects" in text and "splits of the sub" not in text
    text = notes(content, {**ENTRIES, **of_splits})
    assert "500 bootstrap" in text and "; of usefulness, corrected resampled t over splits" in text
    text = notes(content, of_splits, bootstrap=0)
    assert "*Interval*: 95%, corrected resampled t over splits" in text and "bootstrap" not in text
    assert "*Interval*" not in notes(content, {"fid_a": ENTRIES["fid_a"]})


def test_copies_are_named_beside_their_sources(content, tmp_path):
    (tmp_path / "figures").mkdir()
    content["sets"]["train"] = content["sets"]["real"]
    copies = {"name": "copies", "aim": "0", "how": "search", "value": 1 / 32, "threshold": 0.6,
              "planted": 8, "planted_found": 7, "flagged": [
                  {"volume": "s01", "source": "t04", "ratio": 0.0312, "distance": 0.001,
                   "mirrored": "left-right", "shift": [0, -2, 3]}]}
    content["metrics"] = {"copies": copies}
    report.write_report(tmp_path, content)
    text = (tmp_path / "report.md").read_text()
    assert "**Warning: 1 of 32 synthetic volumes look like copies of one of 16 training" in text
    assert "| `s01` | `t04` | 0.031 | left-right | +0, -2, +3 |" in text
    assert "found 7 of 8 copies" in text
    assert ("warning: s01 looks like a copy of the training volume t04"
            in report.terminal_lines(content))
    copies["flagged"] = []
    report.write_report(tmp_path, content)
    text = (tmp_path / "report.md").read_text()
    assert "**No copies found**: none of 32" in text and "found 7 of 8 copies" in text


def test_marks_in_text_become_tags():
    paragraph = blocks.Paragraph("**bold**, *italic*, `a * b * c`, 1 < 2 & 3")
    assert paragraph.html(None) == ("<p><b>bold</b>, <i>italic</i>, <code>a * b * c</code>, "
                                    "1 &lt; 2 &amp; 3</p>")
    assert paragraph.markdown() == paragraph.text
    assert blocks.Heading(2, "x").markdown() == "## x"
    assert blocks.Bullets(["a", "b"]).html(None) == "<ul><li>a</li><li>b</li></ul>"
