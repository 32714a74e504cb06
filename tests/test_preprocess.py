"""preprocess.py and postprocess.py, run as a user runs them: the second undoes the first."""
import os
import resource
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from example_scans import bad_files
from helpers import AFFINE, SHARED, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine
from PIL import Image

from mri import geometry, intensity, manifest, mosaic, mosaic_files


def test_data_folder(scans, data):
    header, entries = manifest.read_manifest(data)
    expected = {"size": 16, "layout": "rgb", "grid": 3, "fit": "stretch",
                "window_percentiles": [0.0, 99.9], "classes": ["AD", "CN"]}
    assert {key: header[key] for key in expected} == expected
    assert [v["id"] for v in entries] == [
        "sub-00_ses-1_T1w", "sub-00_ses-2_T1w", *(f"sub-{i:02d}_ses-1_T1w" for i in range(1, 5))]
    cohort_affine = geometry.cube_affine((20, 26, 22), AFFINE, 16, "stretch")
    assert np.allclose(header["affine"], cohort_affine)
    assert header["source_shape"] == [20, 26, 22] and np.allclose(header["source_affine"], AFFINE)
    for v in entries:
        path = next(scans.rglob(v["id"] + ".nii.gz"))
        assert v["source"] == str(path.resolve()) and v["shape"] == [20, 26, 22]
        assert np.allclose(v["affine"], nib.load(path).affine)
        ras = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
        assert np.allclose(v["window"], np.percentile(ras, [0, 99.9]))
        cube = intensity.to_uint8(geometry.to_cube(ras, AFFINE, 16, "stretch"), v["window"])
        pixels = np.array(Image.open(data / "mosaics" / f"{v['id']}.png"))
        assert np.array_equal(pixels, mosaic.tile(cube, "rgb"))


def test_split_is_by_subject(data):
    _, entries = manifest.read_manifest(data)
    splits = {}
    for v in entries:
        splits.setdefault(v["subject"], set()).add(v["split"])
    assert all(len(s) == 1 for s in splits.values())
    assert sorted(next(iter(s)) for s in splits.values()) == ["test"] * 2 + ["train"] * 3


def test_workers_and_runs_write_the_same_bytes(scans, data, tmp_path):
    script("preprocess.py", "--input", scans, "--output", tmp_path / "d", "--size", 16,
           "--split", "3:2", "--workers", 2, "--labels", scans / "participants.tsv",
           "--label-column", "group")
    written = [p.relative_to(data) for p in data.rglob("*") if p.suffix in (".png", ".json")]
    for path in sorted(written):
        assert (tmp_path / "d" / path).read_bytes() == (data / path).read_bytes()


def test_classes(scans, tmp_path):
    script("preprocess.py", "--input", scans, "--output", tmp_path / "d", "--size", 16,
           "--labels", scans / "participants.tsv", "--label-column", "group", "--workers", 1)
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["classes"] == ["AD", "CN"]
    assert {v["subject"]: v["class"] for v in entries} == {
        f"sub-{i:02d}": 0 if i % 2 else 1 for i in range(5)}
    (tmp_path / "part.tsv").write_text("participant_id\tgroup\nsub-00\tx\nsub-01\tn/a\n")
    done = script("preprocess.py", "--input", scans, "--output", tmp_path / "e", "--size", 16,
                  "--labels", tmp_path / "part.tsv", "--label-column", "group", "--workers", 1,
                  expect=1)
    assert done.stderr.count("skipped: ") == 4 and "4 of 6 scans skipped" in done.stderr
    assert len(manifest.read_manifest(tmp_path / "e")[1]) == 2


def test_postprocess_is_the_inverse(data, tmp_path):
    script("postprocess.py", "--input", data, "--output", tmp_path / "n")
    header, entries = manifest.read_manifest(data)
    for v in entries:
        image = nib.load(tmp_path / "n" / f"{v['id']}.nii.gz")
        pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(data, v["id"]), header)
        cube = mosaic.untile(pixels, 16, "rgb")
        assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), cube)
        # all scans here cover one field of view
        assert np.allclose(image.affine, header["affine"], atol=1e-5)


@pytest.mark.parametrize("fit, size, layout", [("stretch", 32, "rgb"), ("pad", 32, "gray")])
def test_restored_volumes_are_on_the_sources_own_grid(scans, tmp_path, fit, size, layout):
    script("preprocess.py", "--input", scans, "--output", tmp_path / "d", "--size", size,
           "--fit", fit, "--layout", layout, "--workers", 1)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n",
           "--restore-shape")
    for path in scans.rglob("*.nii.gz"):
        source, back = nib.load(path), nib.load(tmp_path / "n" / path.name)
        assert back.shape == source.shape and np.allclose(back.affine, source.affine, atol=1e-5)
        a, b = source.get_fdata(), back.get_fdata()
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
        assert abs(b.max() - np.percentile(a, 99.9)) < 0.05 * a.max()  # the scan's own intensities


def test_pngs_from_elsewhere_take_the_cohorts_geometry(data, tmp_path):
    header, entries = manifest.read_manifest(data)
    pngs = tmp_path / "pngs"
    pngs.mkdir()
    shutil.copy(mosaic_files.mosaic_path(data, entries[0]["id"]), pngs / "other.png")
    done = script("postprocess.py", "--input", pngs, "--output", tmp_path / "n", expect=2)
    assert "holds no manifest.json" in error_line(done)
    script("postprocess.py", "--input", pngs, "--output", tmp_path / "n", "--manifest", data)
    image = nib.load(tmp_path / "n" / "other.nii.gz")
    assert image.shape == (16, 16, 16) and np.allclose(image.affine, header["affine"], atol=1e-5)
    script("postprocess.py", "--input", pngs, "--output", tmp_path / "r", "--manifest", data,
           "--restore-shape")
    image = nib.load(tmp_path / "r" / "other.nii.gz")
    assert image.shape == (20, 26, 22)
    assert np.allclose(image.affine, header["source_affine"], atol=1e-5)


def test_bad_scans_are_skipped_and_named_and_the_others_converted(tmp_path):
    (tmp_path / "in").mkdir()
    bad = bad_files(tmp_path / "in")
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                  "--size", 16, expect=1)
    for name, words in bad.items():
        line = [x for x in done.stderr.splitlines()
                if x.startswith("skipped: ") and f"/{name}:" in x]
        assert len(line) == 1 and words in line[0]
    assert f"{len(bad)} of {len(bad) + 1} scans skipped" in done.stderr
    assert [p.name for p in (tmp_path / "d" / "mosaics").iterdir()] == ["good.png"]
    assert [v["id"] for v in manifest.read_manifest(tmp_path / "d")[1]] == ["good"]


def test_refusals_leave_nothing_behind(scans, data, tmp_path):
    def refused(*args, name="preprocess.py"):
        return error_line(script(name, *args, "--output", tmp_path / "o", expect=2))

    assert "no .nii or .nii.gz" in refused("--input", tmp_path)
    for p in ("a.nii", "a.nii.gz"):
        save_nifti(tmp_path / "two" / p, brain(), AFFINE)
    assert "has the id 'a' of" in refused("--input", tmp_path / "two")
    assert "near it work 28, 32, 36, 40, 44, 48" in refused("--input", scans, "--size", 42)
    assert "0 <= LO < HI <= 100" in refused("--input", scans, "--window", 50, 50)
    assert "TRAIN:TEST" in refused("--input", scans, "--split", "most")
    assert "goes together" in refused("--input", scans, "--label-column", "group")
    assert "'sex'" in refused("--input", scans, "--labels", scans / "participants.tsv",
                              "--label-column", "sex")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.nii").write_bytes(b"x")
    assert "none of 1 scans" in refused("--input", tmp_path / "bad")
    assert "no PNG" in refused("--input", tmp_path, "--manifest", data, name="postprocess.py")
    Image.new("RGB", (47, 48)).save(tmp_path / "bad" / "a.png")
    assert "47 x 48 RGB, but the manifest says 48 x 48" in refused(
        "--input", tmp_path / "bad", "--manifest", data, name="postprocess.py")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "two"]
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("keep")
    assert "exists already" in refused("--input", scans)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["mine.txt"]


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(scans, tmp_path):
    def small_files():  # stands in for a full disk: writing fails in the same place
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    done = script("preprocess.py", "--input", scans, "--output", tmp_path / "d", "--size", 16,
                  "--workers", 1, expect=2, preexec_fn=small_files)
    assert "File too large" in error_line(done)
    assert list(tmp_path.iterdir()) == []


def test_masks_among_the_scans_are_no_scans(tmp_path):
    """As many masks as scans, as BraTS and many Kaggle copies have them."""
    for i in range(3):
        array = brain(seed=i)
        save_nifti(tmp_path / "in" / f"s{i}.nii.gz", array, AFFINE)
        save_nifti(tmp_path / "in" / f"s{i}_seg.nii.gz", array > 50, AFFINE, np.uint8)
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                  "--size", 16, "--workers", 1)
    assert "left out: 3 files that are not scans" in done.stdout
    assert "s0_seg.nii.gz: not a scan: it holds 2 values only, as masks and label" in done.stdout
    assert [v["id"] for v in manifest.read_manifest(tmp_path / "d")[1]] == ["s0", "s1", "s2"]
    for i in range(3):
        save_nifti(tmp_path / "two" / "t1" / f"s{i}.nii.gz", brain(seed=i), AFFINE)
        save_nifti(tmp_path / "two" / "masks" / f"s{i}.nii.gz", brain(seed=i) > 50, AFFINE,
                   np.uint8)
    done = script("preprocess.py", "--input", tmp_path / "two", "--output", tmp_path / "e",
                  "--size", 16, "--workers", 1,
                  "--mask", tmp_path / "two" / "masks" / "{name}.nii.gz")
    assert "3 scans of 3 subjects; left out: 3 masks of other scans" in done.stdout
    _, entries = manifest.read_manifest(tmp_path / "e")
    assert [v["id"] for v in entries] == ["s0", "s1", "s2"] and all(v["mask"] for v in entries)


def test_a_list_of_scans_with_all_it_may_say(tmp_path):
    for i in range(4):
        save_nifti(tmp_path / f"{i}.nii", brain(seed=i), AFFINE)
        save_nifti(tmp_path / "m" / f"{i}.nii", brain(seed=i) > 100, AFFINE, np.uint8)
    rows = [f"{i}.nii\tp{i // 2}\tses-{i % 2}\t{('train', 'val')[i // 2]}\tm/{i}.nii\t"
            f"{('AD', 'CN')[i % 2]}\t{60 + i}\n" for i in range(4)]
    (tmp_path / "l.tsv").write_text(
        "path\tsubject_id\tsession_id\tsplit\tmask\tclass\tage\n" + "".join(rows))
    done = script("preprocess.py", "--input", tmp_path / "l.tsv", "--output", tmp_path / "d",
                  "--size", 16, "--workers", 1)
    assert "columns that are not used: age" in done.stdout
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["classes"] == ["AD", "CN"]
    assert [(v["subject"], v["split"], v["class"]) for v in entries] == [
        ("p0", "train", 0), ("p0", "train", 1), ("p1", "val", 0), ("p1", "val", 1)]
    assert entries[2]["mask"] == str((tmp_path / "m" / "2.nii").resolve())


def test_paths_that_are_not_utf_8(tmp_path):
    """Named in every line, and converted."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    save_nifti(Path(folder) / "a.nii", brain(), AFFINE)
    save_nifti(Path(os.fsdecode(os.fsencode(folder) + b"/b\xff (1).nii")), brain(seed=1), AFFINE)
    Path(folder, os.fsdecode(b"\xfe.nii.gz")).write_bytes(b"")
    done = script("preprocess.py", "--input", folder, "--output", Path(folder) / "d", "--size", 16,
                  "--workers", 1, expect=1)
    assert "2 ids are not the files' names" in done.stderr
    assert "empty, 0 bytes" in done.stderr and "\\udce9/d: 2 mosaics" in done.stdout
    _, entries = manifest.read_manifest(Path(folder) / "d")
    assert [(v["id"], v.get("name")) for v in entries] == [
        ("a", None), ("b_1_", "b\\udcff (1)")]
    assert entries[1]["source"].endswith("caf\\udce9/b\\udcff (1).nii")


def test_nan_and_analyze_scans_need_a_flag(tmp_path):
    array = brain()
    array[0, 0, :5] = np.nan
    save_nifti(tmp_path / "in" / "a.nii.gz", array, AFFINE, np.float32)
    nib.save(nib.AnalyzeImage(brain(seed=1), None), tmp_path / "in" / "b.img")
    flags = ("--input", tmp_path / "in", "--size", 16, "--workers", 1)
    done = script("preprocess.py", *flags, "--output", tmp_path / "d", expect=2)
    assert "--nan zero sets NaN to 0" in done.stderr and "--orientation LAS" in done.stderr
    done = script("preprocess.py", *flags, "--output", tmp_path / "d", "--nan", "zero",
                  "--orientation", "las")
    assert "warning: a: 5 voxels were NaN, now 0 (--nan zero)" in done.stderr
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["preparation"] == {"orientation": "LAS", "nan": "zero"}
    assert nib.aff2axcodes(np.array(entries[1]["affine"])) == tuple("LAS")
    done = script("preprocess.py", *flags, "--output", tmp_path / "e", "--orientation", "LAR",
                  expect=2)
    assert "--orientation LAR: must be three letters" in error_line(done)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cohort").is_dir(),
                    reason="needs the cohort of real-size brains in ../shared/cohort")
def test_real_size_mosaics_are_lossless_and_keep_their_place(tmp_path):
    script("preprocess.py", "--input", SHARED / "cohort", "--output", tmp_path / "d")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n")
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert len(entries) == 14
    assert np.allclose(geometry.voxel_sizes(header["affine"]), [1.125, 1.375, 1.125])
    for v in entries:
        source, cube = nib.load(v["source"]), nib.load(tmp_path / "n" / f"{v['id']}.nii.gz")
        array = source.get_fdata(dtype=np.float32)
        direct = intensity.to_uint8(
            geometry.to_cube(array, source.affine, 128, "stretch"), v["window"])
        assert np.array_equal(np.asarray(cube.dataobj.get_unscaled()), direct)
        assert nib.aff2axcodes(cube.affine) == ("R", "A", "S")
        assert np.allclose(apply_affine(cube.affine, [63.5] * 3),
                           apply_affine(source.affine, [71.5, 87.5, 71.5]), atol=1e-4)
