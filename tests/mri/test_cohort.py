"""What --input names: scans, classes, given sides, and what is said about them."""
import pytest
from helpers import AFFINE, brain, save_nifti

from mri import cohort, manifest
from mri.scans import ALL_SCANS
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Three scans of two subjects, and a mask of one of them."""
    for name in ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1"):
        save_nifti(tmp_path / f"{name}_T1w.nii.gz", brain(), AFFINE)
    save_nifti(tmp_path / "sub-2_ses-1_T1w_mask.nii.gz", brain() > 0, AFFINE)
    return tmp_path


def test_masks_are_left_out_and_counted(folder):
    found = cohort.find_cohort(f"{folder}/*.nii.gz", ALL_SCANS, mask="{dir}/{name}_mask.nii.gz",
                               orientation="LAS")
    assert found.count == 3 and len(found.usable) == 3
    assert {scan.subject for scan in found.usable} == {"sub-1", "sub-2"}
    assert found.notes[-1].endswith("3 scans of 2 subjects; left out: 1 masks of other scans")
    assert found.warnings == ["--orientation LAS: not used, as every scan has its own affine"]
    assert not found.given.side_of


def test_classes_and_sides_of_a_list(folder):
    table = folder / "scans.tsv"
    table.write_text("path\tclass\tsplit\n" + "".join(
        f"{name}_T1w.nii.gz\t{label}\t{side}\n" for name, label, side in (
            ("sub-1_ses-1", "AD", "train"), ("sub-1_ses-2", "", "train"),
            ("sub-2_ses-1", "CN", "test"))))
    found = cohort.find_cohort(table, ALL_SCANS)
    assert found.count == 3
    assert [scan.id for scan in found.usable] == ["sub-1_ses-1_T1w", "sub-2_ses-1_T1w"]
    assert found.labels.label_of == {"sub-1_ses-1_T1w": "AD", "sub-2_ses-1_T1w": "CN"}
    assert found.given.side_of == {"sub-1": "train", "sub-2": "test"}


def test_a_list_with_masks_is_said_to_be_stripped_in_part(folder):
    table = folder / "scans.tsv"
    table.write_text("path\tmask\nsub-1_ses-1_T1w.nii.gz\t\n"
                     "sub-2_ses-1_T1w.nii.gz\tsub-2_ses-1_T1w_mask.nii.gz\n")
    found = cohort.find_cohort(table, ALL_SCANS, skull_strip=True)
    assert found.notes[-1] == (f"--skull-strip: 1 of 2 scans have a mask in {table}, which is "
                               "used; take its column `mask` out to strip them, too")
    assert cohort.find_cohort(table, ALL_SCANS).notes[-1] != found.notes[-1]


def test_more_scans_than_a_manifest_holds_are_refused(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_VOLUMES", 2)
    with pytest.raises(UserError, match="--input .*: 4 scans, more than the 2"):
        cohort.find_cohort(f"{folder}/*.nii.gz", ALL_SCANS)
