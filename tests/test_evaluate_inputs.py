"""evaluate.py on what other generators write, by class, and done again."""
import json
import shutil

import numpy as np
import pytest
from helpers import brain, error_line, script

from mri import manifest, mosaic, mosaic_files, nifti
from utils.version import __version__

SIDE = 16
METRICS = ("--device", "cpu", "--bootstrap", 0, "--permutations", 0, "--metrics", "mmd")


def cohort(count, first=0):
    """Brains, narrow from left to right, brighter in front and above, (N, D, D, D) uint8."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    shape = (np.abs(x) < 0.6) * (z > -0.6) * (1 + 0.6 * y) * (1 + 0.6 * z)
    made = np.stack([shape * brain((SIDE,) * 3, seed=first + i) for i in range(count)])
    return np.clip(made / 2000 * 255, 0, 255).astype(np.uint8)


REAL, FAKE = cohort(12), cohort(12, 50)
X, Y = (v.reshape(12, -1) / 255 for v in (REAL, FAKE))
LINEAR = ((X.mean(0) - Y.mean(0)) ** 2).sum()


def cubes(folder, array, affine=None, names=None):
    """Writes volumes as NIfTIs, with an identity affine as many generators do."""
    folder.mkdir(parents=True)
    for i, volume in enumerate(array):
        name = names[i] if names else f"v{i:02d}"
        nifti.write_nifti(folder / f"{name}.nii.gz", volume,
                          np.eye(4) if affine is None else affine)
    return folder


def data_folder(folder, array, classes, splits):
    """Writes a data folder, as preprocess.py does."""
    names = sorted(set(classes))
    header = dict(size=SIDE, layout="rgb", grid=mosaic.grid_size(SIDE, "rgb"), fit="stretch",
                  window_percentiles=[0, 99.9], affine=np.eye(4).tolist(),
                  source_shape=[SIDE] * 3, source_affine=np.eye(4).tolist(), classes=names)
    (folder / "mosaics").mkdir(parents=True)
    entries = []
    for i, (volume, label, split) in enumerate(zip(array, classes, splits)):
        entries.append({"id": f"m{i:02d}", "subject": f"s{i:02d}", "source": f"m{i:02d}.nii",
                        "shape": [SIDE] * 3, "affine": np.eye(4).tolist(), "window": [0, 1],
                        "class": names.index(label), "split": split})
        path = folder / "mosaics" / f"m{i:02d}.png"
        mosaic_files.write_mosaic(path, mosaic.tile(volume, "rgb"))
    manifest.write_manifest(folder, header, entries)
    return folder


def samples_folder(folder, array, classes, names=("AD", "CN")):
    """Writes a samples folder, as sample.py does."""
    data_folder(folder, array, classes, ["test"] * len(array))
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    content |= {"format": "mosaicdit-samples", "recipe": {"seed": 5, "sampler": "ddim"},
                "provenance": {"run": "000-DiT", "step": 7}, "classes": list(names),
                "samples": [{"id": volume["id"], "index": i, "class": names.index(label)}
                            for i, (volume, label) in enumerate(zip(content.pop("volumes"),
                                                                    classes))]}
    (folder / "samples.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return cubes(tmp_path_factory.mktemp("real") / "real", REAL)


def evaluate(output, *args, **options):
    done = script("evaluate.py", "--output", output, *args, *METRICS, **options)
    return json.loads((output / "metrics.json").read_text()), done


def refused(tmp_path, *args):
    done = script("evaluate.py", "--output", tmp_path / "refused", *args, expect=2)
    assert not (tmp_path / "refused").exists()
    return error_line(done)


# ------------------------------------------------------------------------------- ranges and axes

@pytest.mark.parametrize("lo, hi, dtype", [
    (0, 1, np.float32), (-1, 1, np.float32), (0, 255, np.float32), (-1000, 2000, np.int16)])
def test_the_range_of_the_synthetic_volumes_changes_nothing(real, tmp_path, lo, hi, dtype):
    array = (FAKE / 255 * (hi - lo) + lo)
    array = np.round(array) if dtype == np.int16 else array
    fake = cubes(tmp_path / "fake", array.astype(dtype))
    content, _ = evaluate(tmp_path / "e", "--real", real, "--synthetic", fake,
                          "--synthetic-range", lo, hi)
    assert content["metrics"]["mmd_linear"]["value"] == pytest.approx(LINEAR, rel=1e-9)
    assert content["warnings"] == [] and content["settings"]["synthetic_range"] == [lo, hi]


def test_a_range_that_does_not_fit_is_named(real, tmp_path):
    fake = cubes(tmp_path / "fake", (FAKE / 127.5 - 1).astype(np.float32))
    line = refused(tmp_path, "--real", real, "--synthetic", fake)
    assert "v00.nii.gz: intensities -1 to" in line and "--synthetic-range -1 1" in line
    assert "--real-range 1 0: two finite numbers" in refused(
        tmp_path, "--real", real, "--synthetic", fake, "--real-range", 1, 0)


def test_what_is_clipped_is_said(real, tmp_path):
    array = (FAKE / 255).astype(np.float32)
    array[3:5, 0, 0, 0] = 1.0000001
    fake = cubes(tmp_path / "fake", array)
    content, done = evaluate(tmp_path / "e", "--real", real, "--synthetic", fake)
    (warning,) = content["warnings"]
    assert "clipped 2 volumes to 0 … 1" in warning and f"warning: {warning}" in done.stdout
    assert warning in (tmp_path / "e" / "report.md").read_text()


def test_arrays_saved_as_zyx(real, tmp_path):
    fake = cubes(tmp_path / "fake", FAKE.transpose(0, 3, 2, 1))
    wrong, done = evaluate(tmp_path / "wrong", "--real", real, "--synthetic", fake)
    (warning,) = wrong["warnings"]
    assert warning.endswith("with --synthetic-axes zyx") and warning in done.stdout
    right, _ = evaluate(tmp_path / "right", "--real", real, "--synthetic", fake,
                        "--synthetic-axes", "zyx")
    assert right["warnings"] == []
    assert right["metrics"]["mmd_linear"]["value"] == pytest.approx(LINEAR, rel=1e-9)
    assert wrong["metrics"]["mmd_linear"]["value"] > 2 * LINEAR
    assert "three letters such as zyx" in refused(tmp_path, "--real", real, "--synthetic", fake,
                                                  "--synthetic-axes", "xxy")


def test_what_is_no_cube_or_no_nifti(tmp_path):
    data = data_folder(tmp_path / "d", REAL, ["a"] * 12, ["test"] * 12)
    fake = cubes(tmp_path / "fake", FAKE[:, :, :12])
    line = refused(tmp_path, "--real", data, "--synthetic", fake)
    assert (f"not a cube; `python preprocess.py --input {fake} --size 16 --layout rgb --fit stretch"
            f" --window 0 99.9 --output {fake}-cubes` makes cubes") in line
    (tmp_path / "npy").mkdir()
    for i in range(3):
        np.save(tmp_path / "npy" / f"{i}.npy", FAKE[i])
    line = refused(tmp_path, "--real", data, "--synthetic", tmp_path / "npy")
    assert "holds 3 .npy files" in line and "--affine identity --size 16" in line


# --------------------------------------------------------------------------- what is in a folder

def test_all_of_a_data_folder_is_synthetic(real, tmp_path):
    """What preprocess.py made of 12 synthetic volumes: its split means nothing."""
    fake = data_folder(tmp_path / "d", FAKE, ["a"] * 12, ["train"] * 8 + ["test"] * 4)
    content, done = evaluate(tmp_path / "e", "--real", real, "--synthetic", fake)
    assert content["sets"]["synthetic"]["n"] == 12
    assert content["metrics"]["mmd_linear"]["value"] == pytest.approx(LINEAR, rel=1e-9)
    assert f"--synthetic {fake}: 12 volumes of 12 subjects, split all" in done.stdout
    content, _ = evaluate(tmp_path / "t", "--real", real, "--synthetic", fake,
                          "--synthetic-split", "test")
    assert content["sets"]["synthetic"]["n"] == 4


def test_samples_that_are_missing_are_counted(real, tmp_path):
    fake = samples_folder(tmp_path / "s", FAKE, ["AD"] * 12)
    for i in range(4, 12):
        (fake / "mosaics" / f"m{i:02d}.png").unlink()
    content, done = evaluate(tmp_path / "e", "--real", real, "--synthetic", fake)
    assert content["sets"]["synthetic"]["n"] == 4
    assert "holds 4 of the 12 samples that its samples.json lists" in content["warnings"][0]
    assert "holds 4 of the 12 samples" in done.stdout


def test_by_class(tmp_path):
    labels = ["AD", "CN"] * 6
    data = data_folder(tmp_path / "d", REAL, labels, ["test"] * 12)
    fake = samples_folder(tmp_path / "s", FAKE[:9], ["AD"] * 4 + ["CN"] * 4 + ["MCI"],
                          ("AD", "CN", "MCI"))
    content, done = evaluate(tmp_path / "e", "--real", data, "--synthetic", fake, "--by-class")
    linear = content["metrics"]["mmd_linear"]["value"]
    assert linear == pytest.approx(((X.mean(0) - Y[:9].mean(0)) ** 2).sum(), rel=1e-9)
    for k, name in enumerate(("AD", "CN")):
        own = content["by_class"][name]
        assert own["n"] == {"real": 6, "synthetic": 4}
        expected = ((X[k::2].mean(0) - Y[4 * k:4 * k + 4].mean(0)) ** 2).sum()
        assert own["metrics"]["mmd_linear"]["value"] == pytest.approx(expected, rel=1e-9)
    assert content["by_class"]["MCI"]["metrics"] == {}
    assert "0 real and 1 synthetic" in content["by_class"]["MCI"]["skipped"]["everything"]
    assert "## By class" in (tmp_path / "e" / "report.md").read_text()


def test_by_class_without_classes(real, tmp_path):
    assert "does not say the classes of its volumes" in refused(
        tmp_path, "--real", real, "--synthetic", real, "--by-class")


# ---------------------------------------------------------------------------- weights, provenance

def test_nothing_that_was_named_can_be_computed(real, tmp_path):
    """Exit code 2, before any volume is read."""
    sets = ("--real", real, "--synthetic", real)
    done = script("evaluate.py", *sets, "--output", tmp_path / "e", "--metrics", "fid", "kid",
                  cwd=tmp_path, expect=2, env={"TORCH_HOME": str(tmp_path)})
    assert "--metrics fid kid: nothing can be computed; FID: no Inception weights" in (
        error_line(done))
    assert "volumes: " not in done.stderr and not (tmp_path / "e").exists()
    done = script("evaluate.py", *sets, "--output", tmp_path / "e", "--metrics", "memorization",
                  expect=2)
    assert "--train" in error_line(done)


def test_some_of_what_was_named_cannot_be_computed(real, tmp_path):
    """The others are written, and the exit code is 2."""
    done = script("evaluate.py", "--real", real, "--synthetic", real, "--output", tmp_path / "e",
                  *METRICS, "fid", cwd=tmp_path, expect=2, env={"TORCH_HOME": str(tmp_path)})
    assert "--metrics mmd fid: not all could be computed; FID: no Inception weights" in (
        error_line(done))
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["metrics"]["mmd_linear"]


def test_a_label_that_cannot_be_learned(real, tmp_path):
    """--utility asks for its number by name; the others are written, and the exit code is 2."""
    flags = ("--real", real, "--synthetic", real, "--output", tmp_path / "e", "--utility", "age",
             "--bootstrap", 0, "--permutations", 0)
    done = script("evaluate.py", *flags, cwd=tmp_path, expect=2, env={"TORCH_HOME": str(tmp_path)})
    assert "--utility age: could not be computed; utility: --real" in error_line(done)
    assert "does not record age of its volumes" in error_line(done)
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert content["metrics"]["mmd_linear"] and "does not record" in content["skipped"]["utility"]
    again = script("evaluate.py", *flags, "--update", cwd=tmp_path, expect=2,
                   env={"TORCH_HOME": str(tmp_path)})
    assert "is there already" in again.stdout and "--utility age" in error_line(again)


def test_where_the_numbers_come_from(real, tmp_path):
    fake = samples_folder(tmp_path / "s", FAKE, ["AD"] * 12)
    script("postprocess.py", "--input", fake, "--output", tmp_path / "n")
    made_by = {"recipe": {"seed": 5, "sampler": "ddim"},
               "provenance": {"run": "000-DiT", "step": 7}}
    for number, folder in enumerate((fake, tmp_path / "n")):
        content, _ = evaluate(tmp_path / f"e{number}", "--real", real, "--synthetic", folder)
        assert content["sets"]["synthetic"]["made_by"] == made_by
        text = (tmp_path / f"e{number}" / "report.md").read_text()
        assert "sampler ddim" in text and "run 000-DiT, step 7" in text
    assert content["mosaicdit_version"] == __version__ and content["date"][:2] == "20"
    assert content["date"] in text and "git_commit" in content
    assert content["git_commit"] is None or f"commit {content['git_commit']}" in text


# ------------------------------------------------------------------------------------ done again

def test_an_evaluation_is_done_again_if_its_volumes_changed(real, tmp_path):
    fake = samples_folder(tmp_path / "s", FAKE[:4], ["AD"] * 4)
    flags = ("--real", real, "--synthetic", fake, "--update")
    output = tmp_path / "e"
    evaluate(output, *flags)
    before = (output / "metrics.json").read_bytes()
    _, done = evaluate(output, *flags)
    assert f"{output}: is there already" in done.stdout
    assert (output / "metrics.json").read_bytes() == before
    path = fake / "mosaics" / "m00.png"
    mosaic_files.write_mosaic(path, mosaic.tile(FAKE[5], "rgb"))
    _, done = evaluate(output, *flags)
    assert "synthetic: different voxels in volumes of the same names" in done.stdout
    shutil.rmtree(fake)
    samples_folder(tmp_path / "s", FAKE, ["AD"] * 12)
    content, done = evaluate(output, *flags)
    assert "is replaced, as it is of other volumes or settings: synthetic: 4 volumes, now 12" in (
        done.stdout)
    assert content["sets"]["synthetic"]["n"] == 12
    done = script("evaluate.py", *flags[:-1], "--output", output, *METRICS, expect=2)
    assert "exists already" in error_line(done)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("")
    done = script("evaluate.py", *flags, "--output", tmp_path / "other", expect=2)
    assert "exists already" in error_line(done) and (tmp_path / "other" / "mine").exists()
