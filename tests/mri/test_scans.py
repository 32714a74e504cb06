"""Which scans are found in a folder, by a glob and in a TSV."""
import pytest

from mri import scan_formats, scans
from utils.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_find_scans_in_a_bids_tree(tmp_path):
    touch(*(tmp_path / path for path in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii",
        "derivatives/x/sub-01_desc-a_T1w.nii.gz",
        "sub-02/func/sub-02_bold.nii.gz")))
    found = scans.find_scans(tmp_path)
    assert [(s.id, s.subject) for s in found] == [
        ("sub-01_T1w", "sub-01"), ("sub-02_ses-1_T1w", "sub-02")]


def test_find_scans_in_a_folder_by_glob_and_by_tsv(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "a.nii.gz", tmp_path / "x" / "c.nii.gz",
          tmp_path / "notes.txt", tmp_path / "._a.nii.gz")
    found = scans.find_scans(tmp_path)
    assert [(s.id, s.subject) for s in found] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert [s.id for s in scans.find_scans(tmp_path / "*.nii*")] == ["a", "b"]
    assert [s.id for s in scans.find_scans(tmp_path / "a.nii.gz")] == ["a"]
    (tmp_path / "list.tsv").write_text(
        "path\tid\tparticipant_id\na.nii.gz\tone\tp1\nx/c.nii.gz\ttwo\tp1\n")
    found = scans.find_scans(tmp_path / "list.tsv")
    assert [(s.id, s.subject, s.path) for s in found] == [
        ("one", "p1", tmp_path / "a.nii.gz"), ("two", "p1", tmp_path / "x" / "c.nii.gz")]


def test_a_folder_gives_the_files_of_every_format(tmp_path):
    touch(*(tmp_path / f"s{i}{suffix}" for i, suffix in enumerate(scan_formats.SCAN_SUFFIXES)))
    touch(tmp_path / "s2.img", tmp_path / "s9.npz", tmp_path / "s9.png")
    found = scans.find_scans(tmp_path)
    assert [s.id for s in found] == [f"s{i}" for i in range(len(scan_formats.SCAN_SUFFIXES))]


def test_find_scans_errors(tmp_path):
    with pytest.raises(UserError, match=r"no \.nii or \.nii\.gz \(or .*\.npy\) files; name a"):
        scans.find_scans(tmp_path)
    with pytest.raises(UserError, match="no .nii or .nii.gz"):
        scans.find_scans(tmp_path / "none*")
    touch(tmp_path / "p" / "scan.nii", tmp_path / "q" / "scan.nii")
    with pytest.raises(UserError, match="has the id 'scan' of .*TSV"):
        scans.find_scans(tmp_path)
    (tmp_path / "l.tsv").write_text("file\nx\n")
    with pytest.raises(UserError, match="no column `path`"):
        scans.find_scans(tmp_path / "l.tsv")
    (tmp_path / "l.tsv").write_text("path\tid\na.nii\t../../evil\n")
    with pytest.raises(UserError, match="cannot name a file"):
        scans.find_scans(tmp_path / "l.tsv")
    with pytest.raises(UserError, match="no such file"):
        scans.find_scans(tmp_path / "none.tsv")
