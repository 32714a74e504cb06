"""Adding to a data folder: what a run on everything writes; and sides, classes and twins."""
import os
import shutil

import numpy as np
import pytest
from helpers import AFFINE, brain, error_line, save_nifti, script

from mri import data_folder, manifest, scans

FLAGS = ("--size", 16, "--workers", 1, "--split", "1:1")


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def cohort(tmp_path):
    """Scans of six subjects, one of them masked, and a file that is no scan."""
    for i in range(6):
        array = brain(seed=i)
        save_nifti(tmp_path / "in" / f"sub-{i}_T1w.nii.gz", array + (3 if i else 0), AFFINE)
    (tmp_path / "in" / "sub-9_T1w.nii").write_bytes(b"no scan")
    return tmp_path / "in"


def preprocess(source, output, *flags, expect=0):
    return script("preprocess.py", "--input", source, "--output", output, *FLAGS, *flags,
                  expect=expect)


def splits(folder):
    return {v["subject"]: v["split"] for v in manifest.read_manifest(folder)[1]}


def test_adding_writes_what_one_run_writes(cohort, tmp_path):
    preprocess(cohort, tmp_path / "all", expect=1)
    few = tmp_path / "few"
    few.mkdir()
    sides = splits(tmp_path / "all")
    for side in ("train", "test"):
        subject = next(subject for subject in sides if sides[subject] == side)
        shutil.copy2(cohort / f"{subject}_T1w.nii.gz", few)
    preprocess(few, tmp_path / "d")
    before = splits(tmp_path / "d")
    (tmp_path / "d" / "latents-x.safetensors").write_bytes(b"mine")
    done = preprocess(cohort, tmp_path / "d", expect=1)
    assert ("exists already: its 2 volumes are kept as they are, 0 of them not in --input; 5 scans "
            "are new") in done.stdout
    assert "2 volumes were made from files at other paths" in done.stdout
    assert all(splits(tmp_path / "d")[subject] == side for subject, side in before.items())
    added = tree(tmp_path / "d")
    assert added.pop("latents-x.safetensors") == b"mine"
    for name, content in tree(tmp_path / "all").items():
        if name != "manifest.json":                     # which names the sources
            assert added.pop(name) == content, name
    assert list(added) == ["manifest.json"]
    header, entries = manifest.read_manifest(tmp_path / "d")
    expected_header, expected = manifest.read_manifest(tmp_path / "all")
    assert header == expected_header
    assert [{**v, "source": 0} for v in entries] == [{**v, "source": 0} for v in expected]


def test_nothing_new_and_a_fixed_scan(cohort, tmp_path):
    preprocess(cohort, tmp_path / "d", expect=1)
    once = tree(tmp_path / "d")
    done = preprocess(cohort, tmp_path / "d", expect=1)
    assert "its 6 volumes are kept as they are" in done.stdout and "1 scans are new" in done.stdout
    assert tree(tmp_path / "d") == once
    before = splits(tmp_path / "d")
    (cohort / "sub-9_T1w.nii").unlink()
    save_nifti(cohort / "sub-9_T1w.nii", brain(seed=9), AFFINE)
    preprocess(cohort, tmp_path / "d")
    after = splits(tmp_path / "d")
    assert len(after) == 7 and all(after[subject] == side for subject, side in before.items())
    os.utime(cohort / "sub-0_T1w.nii.gz", (2e9, 2e9))
    done = preprocess(cohort, tmp_path / "d")
    assert "1 scans changed after their volumes were made" in done.stdout
    assert "sub-0_T1w" in done.stdout


def test_other_settings_are_refused(cohort, tmp_path):
    preprocess(cohort, tmp_path / "d", expect=1)
    once = tree(tmp_path / "d")
    for flags, words in (
            (("--fit", "pad"), "(fit stretch, now pad)"),
            (("--nan", "zero"), "(nan None, now zero)"),
            (("--crop", "brain"), "(crop None, now brain)")):
        done = preprocess(cohort, tmp_path / "d", *flags, expect=2)
        assert "exists already, a data folder made with other settings" in error_line(done)
        assert words in error_line(done)
    table = tmp_path / "t.csv"
    table.write_text("participant_id,group\n" + "".join(f"sub-{i},AD\n" for i in range(10)))
    save_nifti(cohort / "sub-8_T1w.nii", brain(seed=8), AFFINE)
    done = preprocess(cohort, tmp_path / "d", "--labels", table, "--label-column", "group",
                      expect=2)
    assert "the data folder has the classes all, the new scans AD" in error_line(done)
    assert tree(tmp_path / "d") == once


def test_classes_keep_their_numbers_and_skipped_scans_have_none(cohort, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("participant_id,group\nsub-1,CN\nsub-2,MCI\nsub-9,rare\nsub-3,AD\n")
    labels = ("--labels", table, "--label-column", "group")
    few = tmp_path / "few"
    few.mkdir()
    for name in ("sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz", "sub-9_T1w.nii"):
        shutil.copy2(cohort / name, few)
    preprocess(few, tmp_path / "d", *labels, expect=1)
    header, _ = manifest.read_manifest(tmp_path / "d")
    assert header["classes"] == ["CN", "MCI"]              # the scan of class "rare" was skipped
    done = preprocess(cohort / "sub-3_T1w.nii.gz", tmp_path / "d", *labels)
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["classes"] == ["CN", "MCI", "AD"]
    assert {v["subject"]: v["class"] for v in entries} == {"sub-1": 0, "sub-2": 1, "sub-3": 2}
    assert "new classes, numbered after those that were there: AD" in done.stdout
    assert "2 of them not in --input" in done.stdout


def test_one_image_twice_is_named_and_on_one_side(tmp_path):
    for i in range(8):
        save_nifti(tmp_path / "in" / f"p{i}.nii.gz", brain(seed=i), AFFINE)
    free = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "a", *FLAGS)
    assert "the same image" not in free.stderr
    side = splits(tmp_path / "a")
    one = next(s for s in side if side[s] == "train")
    other = next(s for s in side if side[s] == "test")
    array = brain(seed=int(one[1]))[::-1]                  # the same image in other axes
    mirrored = AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    save_nifti(tmp_path / "in" / f"{other}.nii.gz", array, mirrored)
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "b", *FLAGS)
    first, second = sorted((one, other))
    assert f"warning: the same image under 2 names: {first}, {second}; all are kept" in done.stderr
    found = splits(tmp_path / "b")
    assert found[one] == found[other]
    assert all(found[s] == side[s] for s in side if s not in (one, other))
    (tmp_path / "s.csv").write_text(f"subject,split\n{one},train\n{other},test\n")
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "c", *FLAGS,
                  "--split-from", tmp_path / "s.csv", expect=2)
    assert "have the same image, but are on different sides" in error_line(done)
    assert not (tmp_path / "c").exists()


def test_a_given_split_a_stratified_one_and_a_class_that_one_side_lacks(cohort, tmp_path):
    (cohort / "sub-9_T1w.nii").unlink()
    table = tmp_path / "t.csv"
    table.write_text("participant_id,group,split\n" + "".join(
        f"{i},{'AD' if i < 2 else 'CN'},{('train', 'train', 'val', 'val', 'test', 'test')[i]}\n"
        for i in range(6)))
    labels = ("--labels", table, "--label-column", "group")
    done = preprocess(cohort, tmp_path / "d", *labels, "--split-from", table)
    assert splits(tmp_path / "d") == {
        "sub-0": "train", "sub-1": "train", "sub-2": "val", "sub-3": "val", "sub-4": "test",
        "sub-5": "test"}
    assert "2 train, 2 val, 2 test" in done.stdout and "6 sides were given" in done.stdout
    assert "warning: class 'AD' has no volume in the val and the test split" in done.stderr
    preprocess(cohort, tmp_path / "e", "--split-from", tmp_path / "d")
    assert splits(tmp_path / "e") == splits(tmp_path / "d")
    preprocess(cohort, tmp_path / "f", *labels, "--stratify")
    _, entries = manifest.read_manifest(tmp_path / "f")
    assert sorted((v["class"], v["split"]) for v in entries) == [
        (0, "test"), (0, "train"), (1, "test"), (1, "test"), (1, "train"), (1, "train")]


def test_known_scans_are_not_new(data):
    _, entries = manifest.read_manifest(data)
    existing = data_folder.Existing({}, entries, [], data)
    known = scans.Scan(entries[0]["id"], "x", data / "none.nii")
    new = scans.Scan("new", "x", data / "new.nii")
    assert data_folder.new_scans([known, new], existing, data)[0] == [new]
    assert data_folder.new_scans([known, new], None, data) == ([known, new], [])
