"""evaluate.py's report with volumes and LaTeX, and reader studies, as a user runs them."""
import json
import re

import numpy as np
import pytest
from helpers import error_line, related, script

from mri import nifti
from reporting import packed_volumes

SIDE = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("cubes")
    volumes = (related(12, SIDE, seed=8) * 255).astype(np.uint8)
    for name, part in (("real", volumes[:6]), ("fake", volumes[6:])):
        (root / name).mkdir()
        for k, volume in enumerate(part):
            nifti.write_nifti(root / name / f"{name}{k}.nii.gz", volume, np.diag([2, 2.5, 3, 1]))
    return root, volumes


def sides(root):
    return "--real", root / "real", "--synthetic", root / "fake"


def test_the_report_holds_volumes_and_the_table_is_written(folders, tmp_path):
    root, volumes = folders
    output = tmp_path / "e"
    done = script("evaluate.py", *sides(root), "--output", output, "--metrics", "histogram",
                  "--bootstrap", 0, "--permutations", 0, "--viewer-volumes", 2, "--latex")
    assert "report.html, figures/, table.tex" in done.stdout
    page, text = (output / "report.html").read_text(), (output / "report.md").read_text()
    assert "shows 2 of 6 real and 2 of 6 synthetic volumes" in text
    found = dict(re.findall(r'id="(volume-\w+-\d)">([^<]+)<', page))
    assert list(found) == [f"volume-{name}-{k}" for name in ("real", "synthetic") for k in (0, 1)]
    last = packed_volumes.unpacked(found["volume-synthetic-1"], SIDE)
    assert np.array_equal(last, volumes[11])
    assert '"ids": ["real0", "real5"]' in page and '"voxel_mm": [2.0, 2.5, 3.0]' in page
    content = json.loads((output / "metrics.json").read_text())
    table = (output / "table.tex").read_text()
    for entry in content["metrics"].values():
        assert f"{entry['name']} & " in table
    # without them
    script("evaluate.py", *sides(root), "--output", output, "--metrics", "histogram",
           "--bootstrap", 0, "--permutations", 0, "--viewer-volumes", 0, "--update")
    assert "volume-real" not in (output / "report.html").read_text()
    assert not (output / "table.tex").exists()


def test_commands_in_reasons_stay_code(folders, tmp_path):
    root, _ = folders
    done = script("evaluate.py", *sides(root), "--output", tmp_path / "e", "--metrics", "histogram",
                  "memorization", "--bootstrap", 0, "--permutations", 0, expect=2)
    assert "--metrics histogram memorization: not all could be computed" in error_line(done)
    text = (tmp_path / "e" / "report.md").read_text()
    assert ": not computed, " in text and "&#96;" not in text


def study(folders, output, n=3, seed=0):
    done = script("evaluate.py", "--reader-study", n, *sides(folders[0]), "--output", output,
                  "--seed", seed)
    return json.loads((output / "key.json").read_text()), done


def answers(path, key, rate, reader):
    rows = [f"{key['study']},{reader},{case['case']},{rate(k, case)},2.0"
            for k, case in enumerate(key["cases"])]
    path.write_text("\n".join(["study,reader,case,rating,seconds", *rows]) + "\n")
    return path


def perfect(k, case):
    return 5 if case["set"] == "synthetic" else 1


def test_a_study_and_its_scores(folders, tmp_path):
    key, done = study(folders, tmp_path / "s", n=6)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["key.json", "reader-study.html"]
    assert "12 cases, " in done.stdout and "key.json, which they must not see" in done.stdout
    again, _ = study(folders, tmp_path / "again", n=6)
    assert again == key
    assert (tmp_path / "s" / "reader-study.html").read_bytes() == (
        tmp_path / "again" / "reader-study.html").read_bytes()

    good = answers(tmp_path / "good.csv", key, perfect, "good")
    half = answers(tmp_path / "half.csv", key, lambda k, case: 3 if k < 5 else "", "half")
    done = script("evaluate.py", "--score", good, half, "--key", tmp_path / "s" / "key.json",
                  "--output", tmp_path / "scores", "--bootstrap", 100)
    assert "warning: half rated 5 of 12 cases; the numbers are of these" in done.stdout
    assert re.search(r"good: AUC 1, p 0\.00\d+; sensitivity 1 \[0\.54, 1\]; specificity 1",
                     done.stdout)
    assert re.search(r"half: AUC 0\.5, p 1; sensitivity 0 \[", done.stdout)
    assert "mean AUC of 2 readers: 0.75" in done.stdout and "agreement on 5 cases" in done.stdout
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["study"] == key["study"] and scores["readers"][0]["auc"]["value"] == 1
    text = (tmp_path / "scores" / "scores.md").read_text()
    assert "| good | 12 | 0 | 1 | " in text and "| half | 5 | 5 | 0.5 | 1 | " in text
    # on the terminal alone
    script("evaluate.py", "--score", good, "--key", tmp_path / "s" / "key.json")


def test_answers_of_another_study_are_refused(folders, tmp_path):
    key, _ = study(folders, tmp_path / "s")
    other, _ = study(folders, tmp_path / "o", seed=5)
    assert other["study"] != key["study"]
    path = answers(tmp_path / "a.csv", other, perfect, "ann")
    done = script("evaluate.py", "--score", path, "--key", tmp_path / "s" / "key.json", "--output",
                  tmp_path / "scores", expect=2)
    assert f"of the study {other['study']}, and --key is of {key['study']}" in error_line(done)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("args, message", [
    (["--score", "a.csv"], "--key is missing"),
    (["--score", "a.csv", "--key", "k.json"], "--key k.json: no such file"),
    (["--score", "a.csv", "--key", "k.json", "--real", "r"], "--real has no effect with --score"),
    (["--score", "a.csv", "--key", "k", "--reader-study", "2"], "--reader-study has no effect"),
    (["--reader-study", "2", "--real", "r"], "--synthetic is missing"),
    (["--reader-study", "2", "--real", "r", "--synthetic", "s", "--output", "o", "--latex"],
     "--latex has no effect with --reader-study"),
    (["--key", "k.json", "--real", "r", "--synthetic", "s", "--output", "o"],
     "--key has no effect without --score"),
    (["--real", "r", "--output", "o"], "--synthetic is missing; an evaluation")])
def test_flags_that_do_not_fit(args, message, tmp_path):
    assert message in error_line(script("evaluate.py", *args, cwd=tmp_path, expect=2))


def test_a_study_of_no_cases_or_too_many(folders, tmp_path):
    for n in (0, 7):
        done = script("evaluate.py", "--reader-study", n, *sides(folders[0]), "--output",
                      tmp_path / "s", expect=2)
        assert f"--reader-study {n}: must be 1 to 6" in error_line(done)
        assert not (tmp_path / "s").exists()
