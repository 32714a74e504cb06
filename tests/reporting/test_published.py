import pytest

from reporting import published
from reporting.blocks import Table

SETS = {"real": {"n": 16}, "synthetic": {"n": 32}}


def own_row(entries):
    blocks = published.published_blocks({"metrics": entries, "sets": SETS})
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert table.head[3] == "MMD, 10³"
    return table.rows[-1], " ".join(block.text for block in blocks if hasattr(block, "text"))


@pytest.mark.parametrize("entry, expected", [
    ({"value": 3050.0, "range": [-1, 1]}, "3.05"),     # as 3dbraingen computes it
    ({"value": 762.5, "range": [0, 1]}, "3.05"),       # half the range, a quarter of the square
    ({"value": 762.5}, "3.05"),                        # before --mmd-range: [0, 1]
    ({"value": 762.5 * 255 ** 2, "range": [0, 255]}, "3.05"),
    ({"value": None, "range": [0, 1]}, "–")])
def test_mmd_is_in_the_unit_and_range_of_the_published_table(entry, expected):
    row, text = own_row({"mmd_linear": entry})
    assert row[3] == expected and "4 times that of voxels in [0, 1]" in text


def test_mean_pair_distance_is_the_other_reading():
    _, text = own_row({"mean_pair_distance": {"value": 5000.0, "range": [0, 1]}})
    assert "‖x − y‖²" in text and "here 20 · 10³" in text
    assert "‖x − y‖²" not in own_row({})[1]


def test_ms_ssim_has_the_standard_deviation_of_its_pairs():
    entry = {"value": 0.7861, "std_of_pairs": {"synthetic": 0.04567},
             "target": {"value": 0.785}}
    row, text = own_row({"ms_ssim": entry})
    assert row[2] == "78.61 ± 4.57" and "real volumes here: 78.5%" in text
    row, _ = own_row({"ms_ssim": {**entry, "std_of_pairs": {"synthetic": None}}})
    assert row[2] == "78.61"


def test_the_papers_row_has_the_bounds_of_its_text():
    row = published.PUBLISHED[-1]
    mmd = sorted(float(other[3]) for other in published.PUBLISHED[:-1])
    fid = sorted(float(other[4]) for other in published.PUBLISHED[:-1])
    # better than four of the seven: between the third and the fourth
    assert mmd[2:4] == [5.15, 13.2] and fid[2:4] == [121, 141]
    assert row[1:] == ("32", "> 78.5", "5.15 … 13.2", "121 … 141", "279", "239")
