"""Which files are scans, and what was left out, and why."""
import os

import pytest

from mri import scan_search, scans
from mri.scan_search import Choice
from utils.errors import UserError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def search(source, **choice):
    return scan_search.find_files(str(source), Choice(**choice), "--input")


def names(found, folder):
    return [str(path.relative_to(folder)) for path in found.paths]


def refused(source, words, **choice):
    with pytest.raises(UserError, match=words):
        search(source, **choice)


def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    touch(tmp_path, "in/a.nii", "elsewhere/b.nii", "elsewhere/deep/c.nii")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to("self")
    found = search(tmp_path / "in")
    assert names(found, tmp_path / "in") == ["a.nii", "link/b.nii", "link/deep/c.nii"]
    assert found.left_out == {"folders linked a second time": 2, "not a scan (without a suffix)": 1}


def test_hidden_files_and_folders_named_like_scans(tmp_path):
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".git/annex/objects/x/b.nii.gz", ".Trash-1000/c.nii",
          "sub/.snapshot/d.nii", "e.nii/e.nii", "e.nii/note.txt")
    found = search(tmp_path)
    assert names(found, tmp_path) == ["a.nii.gz", "e.nii/e.nii"]
    assert found.left_out == {"hidden (.name)": 4, "not a scan (.txt)": 1}
    assert names(search(tmp_path / "*.nii*"), tmp_path) == ["a.nii.gz"]


def test_capitals_do_not_matter(tmp_path):
    touch(tmp_path, "a.NII.GZ", "b.Nii", "c.MGZ", "d.HDR", "d.IMG", "e.img")
    found = search(tmp_path)
    assert names(found, tmp_path) == ["a.NII.GZ", "b.Nii", "c.MGZ", "d.HDR"]
    assert found.left_out == {"not a scan (.img)": 1}
    assert [s.id for s in scans.search(tmp_path).scans] == ["a", "b", "c", "d"]
    touch(tmp_path, "t/sub-1/sub-1_T1w.nii", "t/sub-2/sub-2_t1w.nii.gz")
    assert len(search(tmp_path / "t").paths) == 2


def test_a_bids_tree_gives_one_suffix_and_says_what_else_there_is(tmp_path):
    touch(tmp_path, "dataset_description.json", "participants.tsv",
          "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.json",
          "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz",
          "sub-02/fmap/sub-02_epi.nii.gz", "derivatives/m/sub-01/anat/sub-01_T1w.nii.gz",
          "derivatives/m/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    found = search(tmp_path)
    assert names(found, tmp_path) == [
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"]
    assert found.left_out == {
        "*_FLAIR": 1, "*_epi": 1, "in derivatives/, sourcedata/": 2, "not a scan (.json)": 2,
        "not a scan (.tsv)": 1}
    assert "it also has FLAIR (1), epi (1) (--suffix)" in found.notes[0]
    assert names(search(tmp_path, suffix="flair"), tmp_path) == ["sub-01/anat/sub-01_FLAIR.nii.gz"]


def test_a_bids_tree_without_t1w_asks(tmp_path):
    touch(tmp_path, "sub-01/sub-01_FLAIR.nii", "sub-02/sub-02_FLAIR.nii", "sub-02/sub-02_T2w.nii")
    refused(tmp_path, r"a BIDS tree without T1w files; it has FLAIR \(2\), T2w \(1\): .*--suffix")
    assert len(search(tmp_path, suffix="FLAIR").paths) == 2


def test_sessions_runs_and_spaces(tmp_path):
    touch(tmp_path, "sub-01/ses-1/sub-01_ses-1_run-1_T1w.nii",
          "sub-01/ses-1/sub-01_ses-1_run-02_T1w.nii", "sub-01/ses-02/sub-01_ses-02_T1w.nii")
    assert len(search(tmp_path).paths) == 3
    assert len(search(tmp_path, session="1").paths) == 2
    found = search(tmp_path, session="ses-2")
    assert names(found, tmp_path) == ["sub-01/ses-02/sub-01_ses-02_T1w.nii"]
    assert found.left_out == {"of another ses (ses-1)": 2}
    assert len(search(tmp_path, run="2").paths) == 1
    refused(tmp_path, r"no scan of ses-9; there are ses-1 \(2\), ses-02 \(1\)", session="9")


def test_several_spaces_of_one_scan_ask(tmp_path):
    mni = "space-MNI152NLin2009cAsym"
    touch(tmp_path, "dataset_description.json",
          "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
          f"sub-01/anat/sub-01_{mni}_desc-preproc_T1w.nii.gz",
          f"sub-01/anat/sub-01_{mni}_desc-brain_mask.nii.gz")
    refused(tmp_path, r"in several spaces, MNI152NLin2009cAsym \(1\), native \(1\); .* --space")
    assert names(search(tmp_path, space="native"), tmp_path) == [
        "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    assert names(search(tmp_path, space="mni152nlin2009casym"), tmp_path) == [
        f"sub-01/anat/sub-01_{mni}_desc-preproc_T1w.nii.gz"]
    refused(tmp_path, "no scan in the space T1w; there are", space="T1w")


def test_freesurfers_subjects_dir(tmp_path):
    for subject in ("bert", "ernie"):
        touch(tmp_path, *(f"{subject}/mri/{name}.mgz" for name in ("T1", "aseg", "norm", "orig")),
              f"{subject}/surf/lh.white", f"{subject}/mri/orig/001.mgz")
    found = scans.search(tmp_path)
    assert [(s.id, s.subject) for s in found.scans] == [("bert_T1", "bert"), ("ernie_T1", "ernie")]
    assert found.left_out["aseg"] == 2 and found.left_out["not a scan (.white)"] == 2
    assert "T1 files are taken; it also has aseg (2), norm (2)" in found.notes[0]
    assert [s.id for s in scans.search(tmp_path, Choice(suffix="norm")).scans] == [
        "bert_norm", "ernie_norm"]


def test_one_scan_in_several_contrasts(tmp_path):
    for i in range(2):
        touch(tmp_path, *(f"BraTS2021_0000{i}/BraTS2021_0000{i}_{kind}.nii.gz"
                          for kind in ("t1", "t2", "flair")))
    found = scans.search(tmp_path)
    assert {s.subject for s in found.scans} == {"BraTS2021_00000", "BraTS2021_00001"}
    assert "differ in its end" in found.warnings[0] and "--suffix" in found.warnings[0]
    found = scans.search(tmp_path, Choice(suffix="t1"))
    assert [s.id for s in found.scans] == ["BraTS2021_00000_t1", "BraTS2021_00001_t1"]
    assert found.warnings == [] and found.left_out == {"*_t2": 2, "*_flair": 2}


def test_no_scan_says_what_there_is(tmp_path):
    refused(tmp_path, r"no \.nii or \.nii\.gz .* files; name a folder")
    touch(tmp_path, "x/a.png", "x/b.png", "x/c.txt")
    refused(tmp_path, r"it has \.png \(2\), \.txt \(1\)")
    touch(tmp_path, "dicom/IM0001")
    (tmp_path / "dicom" / "IM0001").write_bytes(bytes(128) + b"DICM")
    refused(tmp_path / "dicom", "it has DICOM files, which --dicom converts")
    touch(tmp_path, "d/1.dcm", "d/a.nii")
    assert search(tmp_path / "d").left_out == {"DICOM, which --dicom converts (.dcm)": 1}


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.nii", "secret/b.nii")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = search(tmp_path)
    assert names(found, tmp_path) == ["a.nii"]
    assert found.warnings == [
        f"{tmp_path / 'secret'}: cannot be searched (Permission denied); its scans are left out"]
