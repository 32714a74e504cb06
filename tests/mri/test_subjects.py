"""Whose scan a file is, as its name and folders tell."""
from pathlib import Path

import pytest

from mri import scans, subjects


@pytest.mark.parametrize("path, subject", [
    ("sub-01_ses-1_T1w", "sub-01"),
    ("sub-NDAR-INV01_ses-1_T1w", "sub-NDAR-INV01"),
    ("sub-NDARINV01-ses-1_T1w", "sub-NDARINV01"),
    ("bids/sub-01/anat/T1", "sub-01"),
    ("sub-01", "sub-01"),
    ("ADNI_003_S_0907_MR_MPRAGE__GradWarp__N3_Br_20070801_S31000_I62000", "003_S_0907"),
    ("ADNI/003_S_0907/MPRAGE/2007-08-01_10_12_13.0/I62000/file", "003_S_0907"),
    ("ADNI/127_S_10001/x/file", "127_S_10001"),
    ("OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc", "OAS1_0001"),
    ("disc1/OAS1_0002_MR2/RAW/mpr-1_anon", "OAS1_0002"),
    ("OAS30001_MR_d0129/anat1/scan", "OAS30001"),
    ("IXI002-Guys-0828-T1", "IXI002"),
    ("BraTS2021_00000/BraTS2021_00000_t1", "BraTS2021_00000"),
    ("BraTS20_Training_001_flair", "BraTS20_Training_001"),
    ("Brats18_2013_0_1_t1", None),
    ("BraTS-GLI-00000-001-t1n", "BraTS-GLI-00000"),
    ("subjects/bert/mri/T1", "bert"),
    ("subjects/sub-02_ses-1/mri/orig/001", "sub-02"),
    ("scan12", None),
    ("1234_S_56789012", None),
])
def test_subjects_of_known_names(path, subject):
    assert subjects.subject_of(Path(path).parts) == subject


@pytest.mark.parametrize("path, key, entity", [
    ("sub-01_ses-1_T1w", "ses", "ses-1"),
    ("sub-01/ses-M000/anat/T1", "ses", "ses-M000"),
    ("sub-01_run-02_T1w", "run", "run-02"),
    ("sub-01_T1w", "ses", None),
    ("sub-01_space-MNI152NLin2009cAsym_T1w", "space", "space-MNI152NLin2009cAsym"),
])
def test_entities(path, key, entity):
    assert subjects.entity_of(Path(path).parts, key) == entity


def note(*names, subject=None):
    return subjects.shared_prefix_note(
        [scans.Scan(name, subject or name, Path(f"{name}.nii")) for name in names])


def test_names_that_share_a_beginning_are_a_warning():
    found = note("P01_v1", "P01_v2", "P02_v1")
    assert "each of 3 files counts as its own subject" in found
    assert "P01: 2 files, such as P01_v1.nii and P01_v2.nii" in found
    assert "--subject-pattern" in found
    assert "A7: 2 files" in note("study_A7_a", "study_A7_b", "study_B8_a")
    assert note("P01_v1", "P02_v1", "P03_v1") is None
    assert note("scan_1", "scan_2", "scan_3") is None      # all begin alike
    assert note("a", "b", "c") is None
    assert note("P01_v1", "P01_v2", "P02_v1", subject="x") is None
