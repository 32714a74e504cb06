"""evaluate.py with anatomy: what it writes, and one line for what it cannot compute."""
import json

import numpy as np
import pytest
from helpers import error_line, save_nifti, script

from metrics import tissue_volumes
from mri.structures import STRUCTURES

QUICK = ("--device", "cpu", "--bootstrap", 0, "--permutations", 19)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """Two folders of 6 cubes of 16 voxels: one of 4 mm voxels, as --real and --synthetic."""
    folder = tmp_path_factory.mktemp("cubes")
    for name, seed in (("real", 0), ("synthetic", 1)):
        rng = np.random.default_rng(seed)
        for i in range(6):
            save_nifti(folder / name / f"sub-{i:02d}_T1w.nii.gz", cube(rng),
                       np.diag([4, 4, 4, 1.0]), np.uint8)
    return folder


def cube(rng):
    array = np.zeros((16, 16, 16))
    size = rng.integers(10, 13)
    array[2:size, 2:12, 2:12] = 60
    array[3:size - 1, 3:11, 3:11] = 130
    array[5:9, 5:9, 5:rng.integers(8, 10)] = 230
    return array


def evaluate(cubes, output, *flags, expect=0, metrics=("anatomy",)):
    return script("evaluate.py", "--real", cubes / "real", "--synthetic", cubes / "synthetic",
                  "--real-range", 0, 255, "--synthetic-range", 0, 255, "--output", output,
                  "--metrics", *metrics, *QUICK, *flags, expect=expect)


def table(path, ids, seed, names=STRUCTURES):
    rng = np.random.default_rng(seed)
    rows = [",".join(("subject", *(f"left {name.replace('_', ' ')}" for name in names)))]
    rows += [",".join((name, *(f"{x:.1f}" for x in rng.normal(9000, 900, len(names)))))
             for name in ids]
    path.write_text("\n".join(rows) + "\n")
    return path


IDS = [f"sub-{i:02d}_T1w" for i in range(6)]


def test_coarse_volumes_are_compared_by_tissues(cubes, tmp_path):
    done = evaluate(cubes, tmp_path / "e")
    assert "voxels of 4 mm are too coarse for structures" in done.stdout
    lines = (tmp_path / "e" / "anatomy-real.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["id", *tissue_volumes.TISSUES] and len(lines) == 7
    assert all(sum(map(float, line.split("\t")[1:])) > 30 for line in lines[1:])
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert content["metrics"]["anatomy_volume_csf"]["family"] == "volume"
    assert content["metrics"]["anatomy_share_csf"]["name"] == "CSF, share of the brain, d"
    report = (tmp_path / "e" / "report.md").read_text()
    assert "## Anatomy" in report and "| CSF | " in report and "| gray matter | " in report
    assert (tmp_path / "e" / "figures" / "structures.png").is_file()
    assert content["skipped"].keys() <= {"intervals"}


def test_tables_of_another_program(cubes, tmp_path):
    real, synthetic = (table(tmp_path / f"{k}.csv", IDS, k) for k in (1, 2))
    flags = ("--anatomy-real", real, "--anatomy-synthetic", synthetic)
    evaluate(cubes, tmp_path / "e", *flags)
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    again = evaluate(cubes, tmp_path / "e", *flags, "--update")
    assert "is there already" in again.stdout
    table(synthetic, IDS, 3)
    again = evaluate(cubes, tmp_path / "e", *flags, "--update")
    assert "or settings: content of the tables of --anatomy-real" in again.stdout
    found = content["metrics"]["anatomy_share_hippocampus"]
    assert found["structure"] == "hippocampus" and found["p"] <= 1
    assert found["mean_ml"]["real"] == pytest.approx(9, abs=1.5)


@pytest.mark.parametrize("case, message", [
    ("ids", "its rows (a, b, c) are of fewer than 2 volumes of --real"),
    ("one side", "--anatomy-real and --anatomy-synthetic go together"),
    ("no structure", "none of its columns is the volume of a structure"),
    ("absent", "no such file")])
def test_a_table_that_cannot_be_used_leaves_the_other_numbers(cubes, tmp_path, case, message):
    good = table(tmp_path / "good.csv", IDS, 1)
    bad = tmp_path / "bad.csv"
    if case == "ids":
        table(bad, "abc", 1)
    elif case == "no structure":
        bad.write_text("subject,age\na,70\n")
    flags = ["--anatomy-real", good if case == "one side" else bad]
    if case != "one side":
        flags += ["--anatomy-synthetic", good]
    done = evaluate(cubes, tmp_path / "e", *flags, metrics=("anatomy", "histogram"), expect=2)
    assert message in error_line(done)
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert content["metrics"]["histogram"]["value"] >= 0
    assert message in content["skipped"]["anatomy"]


def test_a_flag_of_anatomy_asks_for_it(cubes, tmp_path):
    """Without --metrics, too."""
    done = script("evaluate.py", "--real", cubes / "real", "--synthetic", cubes / "synthetic",
                  "--real-range", 0, 255, "--synthetic-range", 0, 255, "--output", tmp_path / "e",
                  "--anatomy-real", tmp_path / "none.csv", "--anatomy-synthetic", "none.csv",
                  "--device", "cpu", "--bootstrap", 0, "--permutations", 0, expect=2,
                  cwd=tmp_path, env={"TORCH_HOME": str(tmp_path)})
    assert "--anatomy-synthetic none.csv: could not be computed; anatomy: " in error_line(done)
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert "histogram" in content["metrics"] and "anatomy" in content["skipped"]


def test_half_of_a_set_and_missing_structures_are_said(cubes, tmp_path):
    real = table(tmp_path / "real.csv", IDS, 1)
    half = table(tmp_path / "half.csv", IDS[:3], 2, STRUCTURES[:15])
    done = evaluate(cubes, tmp_path / "e", "--anatomy-real", real, "--anatomy-synthetic", half)
    assert "has no row of 3 of 6 volumes, which are left out of anatomy" in done.stdout
    assert "2 of 17 structures are missing in some row of the tables" in done.stdout
    report = (tmp_path / "e" / "report.md").read_text()
    assert "has no row of 3 of 6 volumes" in report and "ventral DC" not in report


def test_flags_of_anatomy_need_it(cubes, tmp_path):
    done = evaluate(cubes, tmp_path / "e", "--meshnet", tmp_path, metrics=("mmd",), expect=2)
    assert "--meshnet has no effect without anatomy" in error_line(done)
