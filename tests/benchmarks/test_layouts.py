"""bench.py layouts: what it counts, what it measures, and the whole study on a small cohort."""
import json

import numpy as np
import pytest
from helpers import error_line, related, script

from benchmarks import layouts
from metrics import psnr, refinement


def test_tokens_and_operations():
    """DiT-XL/2 at 128 cubed, in latents of factor 8: 896 and 1536 pixels."""
    assert layouts.tokens_of(896, 8, "DiT-XL/2") == 56 ** 2
    assert layouts.tokens_of(1536, 8, "DiT-XL/2") == 96 ** 2
    linear, attention = 24 * 3136 * 1152 ** 2 * 28, 4 * 3136 ** 2 * 1152 * 28
    assert layouts.operations_of(3136, "DiT-XL/2") == 2 * linear + 3.5 * attention


def test_measure_by_place_in_the_tile():
    real = (200 * related(2, 16)).astype(np.uint8)
    changed = real.copy()
    changed[..., 1::3] += 10
    found = layouts.measure(changed, real)
    assert found["place_0"] == found["place_2"] == float("inf")
    assert found["place_1"] == pytest.approx(20 * np.log10(25.5))
    assert found["axial"] == pytest.approx(20 * np.log10(25.5))     # exact slices are left out
    assert found["sagittal"] == pytest.approx(np.mean(
        [psnr.slice_psnr(*pair, 0) for pair in zip(real, changed)]))
    assert found["psnr_db"] == refinement.numbers(changed, real)["psnr_db"]
    assert 0.5 < found["ms_ssim"] < 1


def test_the_study_is_continued(data, vae_folder, tmp_path, monkeypatch, capsys):
    ran = []

    def run_script(name, *flags):
        ran.append(name)
        script(name, *flags)

    monkeypatch.setattr(layouts, "_run_script", run_script)
    study = layouts.LayoutStudy(
        data_path=data, vae=str(vae_folder), output=tmp_path / "s", model="DiT-T/4",
        decoder_steps=1, refiner_steps=1, device="cpu", precision="fp32")
    table = layouts.run(study)
    rows = json.loads((tmp_path / "s" / "layouts.json").read_text())
    assert [(row["layout"], row["decoder"], row["refined"]) for row in rows] == [
        (layout, decoder, refined) for layout in ("rgb", "gray")
        for decoder in ("published", "adapted") for refined in (False, True)]
    assert [row["tokens"] for row in rows] == [9] * 4 + [16] * 4   # 48 and 64 pixels, 4 x 4 each
    assert (tmp_path / "s" / "layouts.png").stat().st_size > 5000
    assert (tmp_path / "s" / "layouts.md").read_text().splitlines() == table
    assert len(table) == 2 + 8 and table[2].startswith("| rgb, published | 9 |")
    assert sorted(ran) == ["train_refiner.py"] * 4 + ["train_vae.py"] * 2
    assert layouts.run(study) == table and len(ran) == 6
    command = ("bench.py", "layouts", "--data-path", data, "--vae", vae_folder, "--device", "cpu")
    line = error_line(script(*command, "--output", study.output, expect=2))
    assert "was started with other settings (settings.json); name a new folder" in line
    line = error_line(script(*command, "--output", tmp_path, expect=2))
    assert "exists already and was not begun by bench.py; name a new folder" in line
    line = error_line(script(*command, "--output", study.output, "--refiner-steps", 0, expect=2))
    assert "--refiner-steps 0: must be at least 1" in line
