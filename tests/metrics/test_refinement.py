"""Numbers of volumes beside their real counterparts, against values computed by hand."""
import numpy as np
import pytest

from metrics import refinement


def test_numbers_of_a_striped_volume():
    """Stripes of +-10 gray levels across slices on a ramp of 2 gray levels along every axis."""
    ramp = np.add.outer(np.add.outer(2 * np.arange(8), 2 * np.arange(8)), 2 * np.arange(8)) + 50
    stripes = 10 * (-1) ** np.arange(8)
    real, striped = (one.astype(np.uint8)[None] for one in (ramp, ramp + stripes))
    found = refinement.numbers(striped, real)
    # steps across slices: 2 -+ 20, four of -18 and three of 22
    superior = (4 * 18 ** 2 + 3 * 22 ** 2) / 7 / 4
    assert found == pytest.approx({
        "psnr_db": 10 * np.log10(255 ** 2 / 100), "gradient_right": 1, "gradient_anterior": 1,
        "gradient_superior": superior, "through_plane": superior})
    assert refinement.numbers(real, real)["through_plane"] == 1


def test_the_table_has_a_line_for_each_row():
    row = {"psnr_db": 27.5, "gradient_right": 0.8, "gradient_anterior": 0.75,
           "gradient_superior": 1.2, "through_plane": 1.549}
    heading, line = refinement.table("4 test volumes", {"round trips, before": row})
    assert heading.startswith("4 test volumes ") and "PSNR, dB" in heading
    assert line.split() == ["round", "trips,", "before", "27.50", "0.800,", "0.750,", "1.200",
                            "1.549"]
