"""Which scans are found in a folder, by a glob and in a TSV, and their ids and subjects."""
import os

import pytest

from mri import scan_formats, scan_search, scans
from utils.errors import UserError
from utils.escaping import printable


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_search_in_a_bids_tree(tmp_path):
    touch(*(tmp_path / path for path in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii",
        "derivatives/x/sub-01_desc-a_T1w.nii.gz",
        "sub-02/func/sub-02_bold.nii.gz")))
    found = scans.search(tmp_path).scans
    assert [(s.id, s.subject) for s in found] == [
        ("sub-01_T1w", "sub-01"), ("sub-02_ses-1_T1w", "sub-02")]


def test_search_in_a_folder_by_glob_and_by_tsv(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "a.nii.gz", tmp_path / "x" / "c.nii.gz",
          tmp_path / "notes.txt", tmp_path / "._a.nii.gz")
    found = scans.search(tmp_path).scans
    assert [(s.id, s.subject) for s in found] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert [s.id for s in scans.search(tmp_path / "*.nii*").scans] == ["a", "b"]
    assert [s.id for s in scans.search(tmp_path / "a.nii.gz").scans] == ["a"]
    (tmp_path / "list.tsv").write_text(
        "path\tid\tparticipant_id\na.nii.gz\tone\tp1\nx/c.nii.gz\ttwo\tp1\n")
    found = scans.search(tmp_path / "list.tsv").scans
    assert [(s.id, s.subject, s.path) for s in found] == [
        ("one", "p1", tmp_path / "a.nii.gz"), ("two", "p1", tmp_path / "x" / "c.nii.gz")]


def test_a_folder_gives_the_files_of_every_format(tmp_path):
    touch(*(tmp_path / f"s{i}{suffix}" for i, suffix in enumerate(scan_formats.SCAN_SUFFIXES)))
    touch(tmp_path / "s2.img", tmp_path / "s9.npz", tmp_path / "s9.png")
    ids = [f"s{i}" for i in range(len(scan_formats.SCAN_SUFFIXES))]
    found = scans.search(tmp_path, scan_search.Choice(has_affine=True))
    assert [s.id for s in found.scans] == ids
    assert found.left_out == {"not a scan (.npz)": 1, "not a scan (.png)": 1}
    found = scans.search(tmp_path)
    assert [s.id for s in found.scans] == ids[:-1]
    assert found.left_out["without an affine (.npy; --affine says where they lie)"] == 1


def test_search_errors(tmp_path):
    with pytest.raises(UserError, match=r"no \.nii or \.nii\.gz \(or .*\.npy\) files; name a"):
        scans.search(tmp_path)
    with pytest.raises(UserError, match="no .nii or .nii.gz"):
        scans.search(tmp_path / "none*")
    touch(tmp_path / "p" / "scan.nii", tmp_path / "q" / "scan.nii")
    assert [s.id for s in scans.search(tmp_path).scans] == ["p_scan", "q_scan"]
    touch(tmp_path / "p" / "scan.nii.gz")
    with pytest.raises(UserError, match="has the id 'p_scan' of .*TSV"):
        scans.search(tmp_path)
    (tmp_path / "l.tsv").write_text("file\nx\n")
    with pytest.raises(UserError, match="no column `path`"):
        scans.search(tmp_path / "l.tsv")
    (tmp_path / "l.tsv").write_text("path\tid\na.nii\t../../evil\n")
    with pytest.raises(UserError, match="cannot name a file"):
        scans.search(tmp_path / "l.tsv")
    with pytest.raises(UserError, match="no such file"):
        scans.search(tmp_path / "none.tsv")


# ----------------------------------------------------------------------------- ids and subjects

def test_files_of_one_name_take_their_folders_names(tmp_path):
    adni = "ADNI/003_S_0907/MPRAGE"
    touch(*(tmp_path / path for path in (
        f"{adni}/2007-08-01/I1/file.nii", f"{adni}/2008-08-01/I2/file.nii",
        "ADNI/005_S_0001/MPRAGE/2007-08-01/I3/file.nii", "other.nii")))
    found = scans.search(tmp_path).scans
    assert [(s.id, s.subject) for s in found] == [
        ("I1_file", "003_S_0907"), ("I2_file", "003_S_0907"), ("I3_file", "005_S_0001"),
        ("other", "other")]
    touch(tmp_path / "k" / "p1" / "t1" / "s.nii", tmp_path / "k" / "p2" / "t1" / "s.nii")
    assert [s.id for s in scans.search(tmp_path / "k").scans] == ["p1_s", "p2_s"]


def test_patterns_find_subject_and_id(tmp_path):
    touch(*(tmp_path / "in" / path for path in ("c1/P01/v1.nii", "c1/P01/v2.nii", "c2/P01/v1.nii")))
    found = scans.search(tmp_path / "in", subject_pattern=r"/(c\d)/(P\d+)/",
                         id_pattern=r"(c\d)/(P\d+)/(v\d)").scans
    assert [(s.id, s.subject) for s in found] == [
        ("c1_P01_v1", "c1_P01"), ("c1_P01_v2", "c1_P01"), ("c2_P01_v1", "c2_P01")]
    found = scans.search(tmp_path / "in", subject_pattern=r"P\d+").scans
    assert {s.subject for s in found} == {"P01"}
    with pytest.raises(UserError, match="--subject-pattern Q: finds nothing in .*v1.nii"):
        scans.search(tmp_path / "in", subject_pattern="Q")
    with pytest.raises(UserError, match=r"--id-pattern \(: not a regular expression"):
        scans.search(tmp_path / "in", id_pattern="(")


def test_names_that_cannot_be_ids_are_made_safe(tmp_path):
    touch(tmp_path / "scan (1).nii", tmp_path / "-x.nii.gz", tmp_path / "Zoë.nii",
          tmp_path / "ok.nii")
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii")
    with open(bad, "wb"):
        pass
    found = scans.search(tmp_path)
    assert [(s.id, s.name) for s in found.scans] == [
        ("Zoë", None), ("_-x", "-x"), ("caf_", "caf\\udce9"), ("ok", None),
        ("scan_1_", "scan (1)")]
    assert [s.subject for s in found.scans] == [s.id for s in found.scans]
    assert "3 ids are not the files' names" in found.warnings[0]
    assert "scan (1) -> scan_1_" in found.warnings[0]
    assert printable(bad).endswith("caf\\udce9.nii")


def test_columns_of_a_list(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "m" / "a.nii")
    (tmp_path / "l.tsv").write_text(
        "path\tsub\tsession_id\tsplit\tmask\tclass\tage\na.nii\tp1\tses-1\ttrain\tm/a.nii\tAD\t70\n"
        "b.nii\tp2\tn/a\t\t\tCN\t71\n")
    found = scans.search(tmp_path / "l.tsv")
    assert found.scans == [
        scans.Scan("a", "p1", tmp_path / "a.nii", "ses-1", None, tmp_path / "m/a.nii", "AD",
                   "train"),
        scans.Scan("b", "p2", tmp_path / "b.nii", None, None, None, "CN", None)]
    assert found.notes[0].endswith("columns that are not used: age")
    assert "1 of 2 scans have no mask" in found.warnings[0]
    (tmp_path / "l.csv").write_text("path;subject_id\na.nii;p1\n")
    assert [s.subject for s in scans.search(tmp_path / "l.csv").scans] == ["p1"]
    with pytest.raises(UserError, match="a spreadsheet"):
        scans.search(tmp_path / "l.xlsx")


def test_masks_of_the_scans_own_names_are_left_out(tmp_path):
    touch(*(tmp_path / kind / f"s{i}.nii" for kind in ("t1", "masks") for i in range(2)))

    def masks_of(found):
        return {(scan.path.parent.parent / "masks" / scan.path.name).resolve() for scan in found}

    found = scans.search(tmp_path, masks_of=masks_of)
    assert [s.id for s in found.scans] == ["s0", "s1"]
    assert found.left_out == {"masks of other scans": 2}
