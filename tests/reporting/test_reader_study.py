"""Reader studies: what the page holds and does, its key, and the answers that come back."""
import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser
from helpers import related

from reporting import packed_volumes, reader_study
from utils.errors import UserError

SIDE = 16


class Set(SimpleNamespace):
    """As much of metrics.volume_sets.VolumeSet as a study needs."""

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        return self.volumes[i]


@pytest.fixture(scope="module")
def sets():
    volumes = (related(16, SIDE, seed=9) * 255).astype(np.uint8)
    volumes[8:] //= 32      # synthetic ones compress far better
    subjects = ["p", "p", *(f"p{k}" for k in range(2, 8))]
    made = [f"made-{k}" for k in range(8)]
    return {
        "real": Set(flag="--real", path="secret/real", ids=[f"anna-{k}" for k in range(8)],
                    subjects=subjects, side=SIDE, voxel_sizes=[1.0, 1.5, 1.0], volumes=volumes[:8]),
        "synthetic": Set(flag="--synthetic", path="secret/fake", ids=made, subjects=made,
                         side=SIDE, voxel_sizes=[9.0, 9.0, 9.0], volumes=volumes[8:])}


@pytest.fixture(scope="module")
def made(sets, tmp_path_factory):
    text, key = reader_study.make(sets, 3, seed=4)
    folder = tmp_path_factory.mktemp("study")
    (folder / "reader-study.html").write_text(text)
    (folder / "key.json").write_text(json.dumps(key))
    return folder, text, key


def volumes_of(text):
    found = re.findall(r'<script type="text/plain" id="(case-\d+)">([^<]*)</script>', text)
    return dict(found)


def test_the_page_shows_the_volumes_of_the_key(made, sets):
    _, text, key = made
    packed = volumes_of(text)
    assert [case["case"] for case in key["cases"]] == list(packed) == [
        f"case-{k:03d}" for k in range(1, 7)]
    assert sorted(case["set"] for case in key["cases"]) == ["real"] * 3 + ["synthetic"] * 3
    for case in key["cases"]:
        source = sets[case["set"]]
        volume = source.volumes[source.ids.index(case["id"])]
        assert np.array_equal(packed_volumes.unpacked(packed[case["case"]], SIDE), volume)


def test_a_volume_of_another_size_is_refused(sets):
    small = Set(**{**vars(sets["synthetic"]), "volumes": np.zeros((8, 4, 4, 4), np.uint8)})
    with pytest.raises(UserError, match=r"--synthetic secret/fake: made-\d is \(4, 4, 4\), others"):
        reader_study.make({**sets, "synthetic": small}, 3, seed=0)


def test_the_page_does_not_tell_what_is_what(made):
    _, text, key = made
    assert len({len(packed) for packed in volumes_of(text).values()}) == 1
    for word in ("anna", "made-", "secret", "subject", "seed", "key.json", "9.0"):
        assert word not in text
    assert len(key["study"]) == 16 and key["study"] in text


def test_the_draw_depends_on_the_seed_and_takes_each_subject_once(sets):
    one, again, other = (reader_study.draw_cases(sets, 7, seed) for seed in (1, 1, 2))
    assert one == again != other
    reals = [index for name, index in one if name == "real"]
    assert len(reals) == 7 and not {0, 1} <= set(reals)     # both are of one person
    orders = {tuple(name for name, _ in reader_study.draw_cases(sets, 3, seed))
              for seed in range(40)}
    assert len(orders) > 10                                 # of 20
    with pytest.raises(UserError, match="--reader-study 8: must be 1 to 7, the number of subjects"):
        reader_study.draw_cases(sets, 8, 0)


# ------------------------------------------------------------------------------- in the browser

def test_a_reader_rates_closes_returns_and_saves(made, tmp_path):
    folder, _, key = made
    path = folder / "reader-study.html"
    with Browser() as browser:
        browser.open(path)
        browser.wait_for("study.views.voxels !== null")
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.run("document.getElementById('study-reader').focus()")
        for letter in "=A, 1":          # in the field for the name, a 1 rates nothing
            browser.press(letter)
        browser.run("document.activeElement.blur()")
        assert shown(browser, "progress") == "0 of 6 rated"
        for key_pressed in "15":
            browser.press(key_pressed)
        assert shown(browser, "case") == "case 3 of 6"
        browser.press("b")
        assert shown(browser, "case") == "case 2 of 6"
        assert browser.run("document.querySelector('[aria-pressed=true]').textContent") == (
            "5: definitely synthetic")
        browser.press("4")              # changes it
        browser.press("6")              # is no rating
        browser.click("#study-forward")
        browser.click("#study-rating button:nth-child(3)")
        time.sleep(0.5)     # Chromium hands localStorage to its other processes a moment later
        browser.open(path)              # as after closing the page
        browser.wait_for("typeof study !== 'undefined' && study.views.voxels !== null")
        assert shown(browser, "progress") == "3 of 6 rated"
        assert shown(browser, "case") == "case 3 of 6"      # the first that is not rated
        browser.wheel("canvas[data-view=axial]", 120)
        browser.wait_for("document.getElementById('study-position').textContent.startsWith("
                         "'voxel 8, 8, 7 of 16')")
        browser.click("#study-save")
        name = f"answers-{key['study']}-A-1.csv"
        file = wait_for_file(tmp_path / name)
        assert browser.errors == []
    rows = file.read_text().splitlines()
    assert rows[0] == "study,reader,case,rating,seconds" and len(rows) == 7
    assert rows[1].startswith(f"{key['study']},\"'=A, 1\",case-001,1,")
    assert rows[3] == f"{key['study']},\"'=A, 1\",case-003,,"
    answers = reader_study.read_answers(file, *reader_study.read_key(folder / "key.json"))
    assert answers.reader == "=A, 1"
    assert answers.ratings == {"case-001": 1, "case-002": 4, "case-004": 3}


def shown(browser, name):
    return browser.run(f"document.getElementById('study-{name}').textContent")


def wait_for_file(path):
    end = time.monotonic() + 10
    while not path.is_file():
        assert time.monotonic() < end, list(path.parent.iterdir())
        time.sleep(0.05)
    return path


# ------------------------------------------------------------------------------- answers and key

@pytest.fixture
def key(made):
    return reader_study.read_key(made[0] / "key.json")


def table(study, ratings, reader="ann", **changes):
    rows = [f"{study},{reader},{case},{rating},1.5" for case, rating in ratings.items()]
    text = "\n".join(["study,reader,case,rating,seconds", *rows]) + "\n"
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def test_answers_are_read(key, tmp_path):
    truth, study = key
    assert sum(truth.values()) == 3 and len(truth) == 6
    (tmp_path / "a.csv").write_text("\ufeff" + table(study, {"case-001": 5, "case-002": ""}))
    found = reader_study.read_answers(tmp_path / "a.csv", truth, study)
    assert found == reader_study.Answers("ann", {"case-001": 5})
    (tmp_path / "b.csv").write_text(table(study, {"case-001": 2}, reader=""))
    assert reader_study.read_answers(tmp_path / "b.csv", truth, study).reader == "b"


@pytest.mark.parametrize("text, message", [
    (lambda study: table("0123", {"case-001": 5}), "of the study 0123, and --key is of"),
    (lambda study: table(study, {"case-001": 6}), "case-001 has the rating '6'; must be 1 to 5"),
    (lambda study: table(study, {"case-001": "4.5"}), "has the rating '4.5'"),
    (lambda study: table(study, {"case-999": 4}), "case 'case-999' is not in the key"),
    (lambda study: table(study, {"case-001": 4}) + f"{study},ann,case-001,4,1\n", "rated twice"),
    (lambda study: table(study, {"case-001": ""}), "no case is rated"),
    (lambda study: "a,b\n1,2\n", "needs the columns study, reader, case, rating"),
    (lambda study: "", "needs the columns")])
def test_bad_answers_are_refused(key, tmp_path, text, message):
    truth, study = key
    path = tmp_path / "a.csv"
    path.write_text(text(study))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        reader_study.read_answers(path, truth, study)
    assert str(caught.value).startswith(f"--score {path}: ")


def test_two_files_of_one_reader_are_refused(key, tmp_path):
    truth, study = key
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(table(study, {"case-001": 5}))
    with pytest.raises(UserError, match="of the reader 'ann', as .*a.csv; leave one out"):
        reader_study.read_all_answers([tmp_path / "a.csv", tmp_path / "b.csv"], truth, study)
    with pytest.raises(UserError, match="no such file"):
        reader_study.read_all_answers([tmp_path / "none.csv"], truth, study)


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "mosaicdit-evaluation", "version": 1}'])
def test_other_files_are_no_key(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(UserError, match="not the key of a reader study"):
        reader_study.read_key(tmp_path / "key.json")
    with pytest.raises(UserError, match="no such file"):
        reader_study.read_key(tmp_path / "none.json")


def test_a_key_without_one_kind_is_refused(made, tmp_path):
    key = {**made[2], "cases": [case for case in made[2]["cases"] if case["set"] == "real"]}
    (tmp_path / "key.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match="lists no real or no synthetic case"):
        reader_study.read_key(tmp_path / "key.json")
