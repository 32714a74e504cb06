"""Columns of a table as covariates: their kinds, statistics, and what is refused."""
from dataclasses import dataclass
from pathlib import Path

import pytest

from mri import covariates
from mri.covariates import CATEGORY, NUMBER, Column
from utils.errors import UserError

TABLE = """participant_id\tage\tsex\tsite\tsame\tempty\todd
sub-1\t60\tF\t1\t5\tn/a\t3
sub-2\t70.5\tM\t2\t5\t\told
sub-3\tn/a\tF\t2\t5\tn/a\t4
sub-4\t80\tF\t1\t5\tn/a\t5
"""


@dataclass(frozen=True)
class Scan:
    id: str
    subject: str
    session: str = ""
    path: Path = Path("x.nii.gz")


SCANS = [Scan(f"s{k}", f"sub-{k}") for k in range(1, 5)]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "T.tsv"
    path.write_text(TABLE)
    return path


def test_numbers_and_categories_are_told_apart(table):
    found = covariates.read_covariates(SCANS, table, ["age:years", "sex", "site"])
    age, sex, site = found.columns
    assert (age.kind, age.unit, site.kind, site.unit) == (NUMBER, "years", NUMBER, "")
    assert (sex.kind, sex.levels) == (CATEGORY, ("F", "M"))
    assert found.row_of == {"s1": {"age": 60, "sex": "F", "site": 1},
                            "s2": {"age": 70.5, "sex": "M", "site": 2},
                            "s3": {"sex": "F", "site": 2},
                            "s4": {"age": 80, "sex": "F", "site": 1}}
    text = "\n".join(found.notes)
    assert "age: a number, 60 to 80 years, missing for 1 of 4 scans" in text
    assert "sex: a category, 3 F, 1 M" in text and "give site:category" in text


def test_codes_can_be_levels(table):
    (site,) = covariates.read_covariates(SCANS, table, ["site:category"]).columns
    assert (site.kind, site.levels) == (CATEGORY, ("1", "2"))


def test_statistics_are_of_the_train_split(table):
    found = covariates.read_covariates(SCANS, table, ["age:years", "sex", "site"])
    entries = [{"id": scan.id, "split": side}
               for scan, side in zip(SCANS, ("train", "train", "train", "test"))]
    notes, warnings = [], []
    age, sex, site = covariates.set_rows(entries, (), found, notes, warnings)
    assert (age.mean, age.deviation, age.lowest, age.highest) == (65.25, 5.25, 60, 70.5)
    assert (age.missing, sex.missing) == (1, 0)
    assert site.mean == pytest.approx(5 / 3) and not warnings
    assert entries[2]["covariates"] == {"sex": "F", "site": 2}
    assert covariates.columns_from_json([c.to_json() for c in (age, sex)], "m") == (age, sex)


def test_a_column_that_is_constant_in_the_train_split_is_warned_of(table):
    found = covariates.read_covariates(SCANS, table, ["sex"])
    entries = [{"id": scan.id, "split": "test" if scan.id == "s2" else "train"} for scan in SCANS]
    warnings = []
    covariates.set_rows(entries, (), found, [], warnings)
    assert warnings == ["covariate 'sex': F for all volumes in the train split"]


def test_rows_of_volumes_that_are_not_in_the_input_are_not_mixed_with_others(table):
    found = covariates.read_covariates(SCANS[:2], table, ["sex"])
    entries = [{"id": "s1", "split": "train"}, {"id": "old", "split": "train", "covariates": {}}]
    with pytest.raises(UserError, match="1 volumes .* not in --input .old."):
        covariates.set_rows(entries, (), found, [], [])
    notes = []
    others = [{"id": "s1", "split": "train"}, {"id": "old", "split": "train"}]
    covariates.set_rows(others, (), found, notes, [])
    assert notes == ["--covariates: 1 volumes of the data folder are not in --input and get none; "
                     "give all scans as --input"]
    notes = []
    former = (Column("sex", CATEGORY, levels=("F", "M")),)
    covariates.set_rows(entries, former, None, notes, [])
    assert notes == ["1 volumes get no sex, as --covariates is not given"]


@pytest.mark.parametrize(("wanted", "message"), [
    (["height"], "no column 'height'; its columns are participant_id, age"),
    (["same"], "same: has one number only, 5.0, for all scans"),
    (["same:category"], "same: has one level only, 5, for all scans"),
    (["empty"], "empty: missing for all 4 scans"),
    (["odd"], r"odd: numbers, but text for sub-2 \('old'\) in .*by odd:category"),
    (["sex:years"], "sex:years: holds text such as F, M"),
    (["age", "age:years"], "names a column twice"),
])
def test_what_tells_nothing_is_refused(table, wanted, message):
    with pytest.raises(UserError, match=message):
        covariates.read_covariates(SCANS, table, wanted)


def test_a_table_without_a_subject_is_refused(table):
    with pytest.raises(UserError, match="no row for 2 subjects: sub-8, sub-9; add rows, with n/a"):
        covariates.read_covariates([*SCANS, Scan("a", "sub-8"), Scan("b", "sub-9")], table, ["age"])


def test_too_many_levels_are_refused(tmp_path):
    scans = [Scan(f"s{k}", f"sub-{k}") for k in range(covariates.MAX_LEVELS + 1)]
    path = tmp_path / "T.tsv"
    path.write_text("participant_id\tsite\n"
                    + "".join(f"{scan.subject}\tat-{scan.id}\n" for scan in scans))
    with pytest.raises(UserError, match="site: 65 levels, more than the 64"):
        covariates.read_covariates(scans, path, ["site"])
    assert len(covariates.read_covariates(scans[1:], path, ["site"]).columns[0].levels) == 64


@pytest.mark.parametrize("spoil", [
    {"levels": []}, {"levels": ["F", "F"]}, {"levels": ["F", 3]}, {"name": ""}, {"missing": -1},
    {"missing": True}, {"kind": "color"}, {"levels": ["x" * 500, "y"]}, {"levels": None},
])
def test_columns_from_a_file_are_checked(spoil):
    column = Column("sex", CATEGORY, levels=("F", "M")).to_json()
    with pytest.raises(UserError, match=r"m: its `covariates` are damaged"):
        covariates.columns_from_json([column | spoil], "m")
    with pytest.raises(UserError, match="have one name"):
        covariates.columns_from_json([column, column], "m")


@pytest.mark.parametrize("spoil", [{"mean": None}, {"deviation": -1}, {"highest": 1e31},
                                   {"unit": 3}, {"mean": True}, {"lowest": float("nan")}])
def test_numbers_from_a_file_are_checked(spoil):
    column = Column("age", NUMBER, "years", 70, 5, 60, 80).to_json()
    assert covariates.columns_from_json([column], "m")[0].mean == 70
    with pytest.raises(UserError, match="damaged"):
        covariates.columns_from_json([column | spoil], "m")


def test_rows_from_a_file_are_checked():
    assert covariates.is_row({"age": 70, "sex": "F"}) and covariates.is_row({})
    for row in ([], {"age": None}, {"age": True}, {"age": float("nan")}, {"": 1}, {"sex": ""},
                {f"c{k}": 1 for k in range(33)}):
        assert not covariates.is_row(row)
