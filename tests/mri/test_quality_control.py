"""The bad scan is found in the table, and the contact sheets are upright."""
import csv
import pickle

import numpy as np
from example_scans import ball, head
from helpers import AFFINE, brain, save_nifti, script
from PIL import Image

from mri import contact_sheet, quality_control


def table(folder):
    with open(folder / "qc" / "qc.tsv", newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f, delimiter="\t")}


def test_the_bad_scan_is_found_in_the_table(tmp_path):
    shape = (20, 26, 22)
    array = np.where(brain() > 20, brain(), 0)   # skull-stripped: 0 all around
    array[:, 14:, :10] = 0                       # as a face is not at the back of a head
    for i in range(26):                          # two pages
        save_nifti(tmp_path / "in" / f"good{i:02d}.nii.gz", array * (1 + 0.01 * i), AFFINE,
                   np.float32)

    def add(name, a, affine=AFFINE):
        save_nifti(tmp_path / "in" / f"z_{name}.nii.gz", a, affine, np.float32)

    noise = np.abs(np.random.default_rng(0).normal(0, 5, shape))
    add("empty", np.where(ball(shape, (10, 13, 11), (2, 2, 2)), array, 0))
    add("functional", array, AFFINE @ np.diag([2.4, 2.4, 2.4, 1]))
    add("thick", array, AFFINE @ np.diag([1, 1, 3, 1]))
    add("noisy", array + 60 + noise)
    add("dark", array ** 3)
    add("gray", np.where(array > 0, array - 600, 0))
    add("upside_down", array, np.diag([1.5, 1.25, -2.0, 1]))
    add("constant", np.ones(shape))
    done = script("preprocess.py", "--input", tmp_path / "in", "--size", 16,
                  "--output", tmp_path / "d", "--workers", 2, expect=1)
    rows = table(tmp_path / "d")
    good = [r["warnings"] for i, r in rows.items() if i.startswith("good")]
    assert len(rows) == 34 and good == [""] * 26
    check_a_good_row(rows["good00"], array)
    for name, words in {
            "empty": "nearly empty",
            "functional": "looks like a 4D mean",
            "thick": "thick slices: voxels of 1.5 x 1.25 x 6 mm",
            "noisy": "not masked, most are",
            "dark": "outlier against the cohort in mean",
            "gray": "background is not dark",
            "upside_down": "looks turned",
            "constant": "skipped: "}.items():
        assert words in rows[f"z_{name}"]["warnings"], (name, rows[f"z_{name}"])
        assert name == "constant" or f"warning: z_{name}: " in done.stderr
    assert "outlier against the cohort in histogram" in rows["z_dark"]["warnings"]
    assert "read as RAI" in rows["z_upside_down"]["warnings"]
    assert rows["z_upside_down"]["orientation"] == "RAI" and rows["z_constant"]["shape"] == ""
    pages = sorted(p.name for p in (tmp_path / "d" / "qc").glob("*.png"))
    assert pages == ["page-001.png", "page-002.png"]
    assert {r["page"] for r in rows.values()} == {"1", "2", ""}
    first, second = (np.array(Image.open(tmp_path / "d" / "qc" / p)) for p in pages)
    red = [255, 70, 50]
    # the frames are on the odd scans' page
    assert not (first == red).all(-1).any() and (second == red).all(-1).any()


def check_a_good_row(row, array):
    assert row == {"id": "good00", "page": "1", "shape": "20x26x22", "spacing_mm": "1.5x1.25x2",
                   "orientation": "RAS", "window": row["window"], "background": row["background"],
                   "mean": row["mean"], "masked": "yes", "warnings": ""}
    lo, hi = map(float, row["window"].split(".."))
    assert np.allclose([lo, hi], np.percentile(array, [0, 99.9]), rtol=1e-4)
    assert abs(float(row["background"]) - (array < 0.05 * hi).mean()) < 0.05


def test_pictures_are_upright_and_left_is_left():
    cube = np.zeros((16, 16, 16), np.uint8)
    cube[:8, 8:, 8:] = 200                       # left, anterior, superior
    axial, coronal, sagittal = contact_sheet.views(cube, (1, 1, 1))
    half = contact_sheet.VIEW_PIXELS // 2

    def bright(view):
        quarters = [view[:half, :half], view[:half, half:], view[half:, :half], view[half:, half:]]
        return [bool(q.mean() > 100) for q in quarters]

    assert bright(axial) == bright(coronal) == [True, False, False, False]    # up and left
    assert bright(sagittal) == [False] * 4
    mirrored = contact_sheet.views(cube[::-1], (1, 1, 1))[2]
    assert bright(mirrored) == [False, True, False, False]
    wide = contact_sheet.views(cube, (1, 2, 1))
    # true to the voxels' proportions
    assert [v.shape for v in wide] == [(112, 56), (56, 56), (56, 112)]
    summary = quality_control.summarize(cube, True)
    assert summary.background == 7 / 8 and summary.mean == 200 and summary.level == 0
    assert summary.small[2, 9, 9] == 200 and summary.small[9, 2, 2] == 0


def test_a_summary_is_small():
    """All summaries of a cohort are in memory: 10,000 of them take 30 MB."""
    summary = quality_control.summarize(np.zeros((64, 64, 64), np.uint8), True, "0" * 64)
    assert len(pickle.dumps(summary)) < 3000


def test_already_masked_before_a_mask_beside_the_scan(tmp_path):
    array, mask = head()
    save_nifti(tmp_path / "in" / "a.nii.gz", np.where(mask, array, 0), AFFINE, np.float32)
    save_nifti(tmp_path / "in" / "a_mask.nii.gz", mask, AFFINE, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--mask", "{dir}/{name}_mask.nii.gz",
           "--size", 16, "--output", tmp_path / "d")
    rows = table(tmp_path / "d")
    assert len(rows) == 1                        # the mask is not taken for a scan
    assert rows["a"]["warnings"] == "already masked, before --mask"


def test_a_cohort_of_large_voxels_is_named_once(tmp_path):
    for i in range(6):
        save_nifti(tmp_path / "in" / f"s{i}.nii.gz", brain((14, 16, 14), seed=0),
                   np.diag([3.0, 3, 3, 1]))
    done = script("preprocess.py", "--input", tmp_path / "in", "--size", 16,
                  "--output", tmp_path / "d", "--workers", 1)
    assert "warning: most scans have voxels of 2.4 mm or more" in done.stderr
    assert not any("4D mean" in r["warnings"] for r in table(tmp_path / "d").values())
