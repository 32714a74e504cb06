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


def test_the_study_is_continued(data, vae_folder, tmp_path):
    command = ("bench.py", "layouts", "--data-path", data, "--vae", vae_folder, "--output",
               tmp_path / "s", "--refiner-steps", 1, "--decoder-steps", 1, "--device", "cpu",
               "--precision", "fp32", "--model", "DiT-T/4")
    done = script(*command)
    rows = json.loads((tmp_path / "s" / "layouts.json").read_text())
    assert [(row["layout"], row["decoder"], row["refined"]) for row in rows] == [
        (layout, decoder, refined) for layout in ("rgb", "gray")
        for decoder in ("published", "adapted") for refined in (False, True)]
    assert [row["tokens"] for row in rows] == [9] * 4 + [16] * 4   # 48 and 64 pixels, 4 x 4 each
    assert (tmp_path / "s" / "layouts.png").stat().st_size > 5000
    table = (tmp_path / "s" / "layouts.md").read_text().splitlines()
    assert len(table) == 2 + 8 and table[2].startswith("| rgb, published | 9 |")
    assert done.stdout.count("$ python train_refiner.py") == 4
    again = script(*command)
    assert "$ python" not in again.stdout and again.stdout.count("| rgb, ") == 4
    line = error_line(script(*command, "--decoder-steps", 2, expect=2))
    assert "was begun with other settings (settings.json); name a new folder" in line
