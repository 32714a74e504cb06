"""Class labels: of the right visit, without missing values, and nothing contradictory."""
import pytest

from mri import labels, scans
from utils.errors import UserError


def make(folder, *names):
    return [scans.Scan(name, name.split("_")[0], folder / f"{name}.nii",
                       "ses-1" if "ses-1" in name else "ses-2" if "ses-2" in name else None)
            for name in names]


def read(folder, cohort, text, column="group"):
    (folder / "t.tsv").write_text(text)
    return labels.read_labels(cohort, folder / "t.tsv", column)


def test_without_a_table(tmp_path):
    cohort = make(tmp_path, "sub-01", "sub-02")
    assert labels.read_labels(cohort, None, None).label_of == {"sub-01": "all", "sub-02": "all"}
    listed = [scans.Scan("a", "a", tmp_path / "a.nii", label="AD"),
              scans.Scan("b", "b", tmp_path / "b.nii")]
    found = labels.read_labels(listed, None, None)
    assert found.label_of == {"a": "AD"} and "has no class in its list" in found.unlabeled["b"]


def test_one_row_a_visit(tmp_path):
    cohort = make(tmp_path, "sub-01_ses-1", "sub-01_ses-2")
    text = "participant_id\tsession_id\tgroup\nsub-01\tses-1\tMCI\nsub-01\tses-2\tAD\n"
    assert read(tmp_path, cohort, text).label_of == {"sub-01_ses-1": "MCI", "sub-01_ses-2": "AD"}
    text = "participant_id\tgroup\nsub-01\tMCI\nsub-01\tAD\n"
    with pytest.raises(UserError, match="contradicting rows for 1 subjects, such as sub-01: MCI, "
                                        "AD; add a column session_id"):
        read(tmp_path, cohort, text)
    text = "participant_id\tgroup\nsub-01\tAD\nsub-01\tAD\nsub-01\tNA\nsub-09\tx\nsub-09\ty\n"
    assert set(read(tmp_path, cohort, text).label_of.values()) == {"AD"}


@pytest.mark.parametrize("missing", ["NA", "N/A", "NaN", "nan", "n/a", "", " ", "None", "NULL"])
def test_missing_values_are_no_classes(tmp_path, missing):
    cohort = make(tmp_path, "sub-01", "sub-02")
    found = read(tmp_path, cohort, f"participant_id\tgroup\nsub-01\tAD \nsub-02\t{missing}\n")
    assert found.label_of == {"sub-01": "AD"}
    assert "means missing; add it, or take the scan out" in found.unlabeled["sub-02"]


def test_a_scan_that_the_table_does_not_name(tmp_path):
    found = read(tmp_path, make(tmp_path, "sub-07"), "participant_id\tgroup\nA\tx\nB\ty\n")
    assert "no group for sub-07" in found.unlabeled["sub-07"]
    assert "its column participant_id holds A, B" in found.unlabeled["sub-07"]
    with pytest.raises(UserError, match="no column --label-column 'sex'; its columns are parti"):
        read(tmp_path, make(tmp_path, "sub-07"), "participant_id\tgroup\nA\tx\n", "sex")
