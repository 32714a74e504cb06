"""Tables of every spelling, and which rows are of which scan."""
import pytest

from mri import scans, tables
from utils.errors import UserError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name, text", [
    ("t.tsv", "participant_id\tgroup\nsub-01\tAD \n\t\n"),
    ("t.csv", "participant_id,group\nsub-01, AD\n"),
    ("t.csv", "participant_id;group\nsub-01;AD\n"),
    ("t.csv", '"participant_id","group"\n"sub-01","AD"\n'),
    ("t.txt", "\ufeffparticipant_id , group\r\nsub-01,AD\r\n"),
])
def test_separators_and_blanks(tmp_path, name, text):
    table = tables.read_table(write(tmp_path / name, text))
    assert table.columns == ("participant_id", "group")
    assert table.rows == [{"participant_id": "sub-01", "group": "AD"}]
    assert table.find_column(("participant_id",)) == "participant_id"


def test_what_is_no_table_of_text(tmp_path):
    def refused(name, content, words):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as e:
            tables.read_table(tmp_path / name)
        assert "\n" not in str(e.value)

    refused("a.xlsx", b"PK\3\4", "a spreadsheet.* save its sheet as CSV or TSV")
    refused("a.XLS", b"x", "a spreadsheet")
    refused("a.csv", b"PK\3\4xx", "a zip archive, as Excel writes")
    refused("a.tsv", "id\tg\n\u00e9".encode("latin-1"), "in UTF-8")
    refused("u.tsv", "id\tg\n1\t2\n".encode("utf-16"), "NUL bytes, as UTF-16")
    refused("b.csv", b"id,g\n1,2,3\n", "more cells than the header")
    refused("c.csv", b"id,g,g\n1,2,3\n", "two columns 'g'")
    with pytest.raises(UserError, match="no such file"):
        tables.read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("a, b", [
    ("sub-01", "1"), ("sub-01", "01"), ("sub-01", "sub-1"), ("IXI002", "2"), ("IXI012", "12.0"),
    ("sub-ADNI003S0907", "003_S_0907"), ("OAS1_0001", "oas1_0001"), ("0", "00")])
def test_spellings_of_one_subject(a, b):
    assert tables.plain_subject(a) == tables.plain_subject(b)


@pytest.mark.parametrize("a, b", [
    ("ses-1", "1"), ("ses-01", "1"), ("bl", "ses-M000"), ("m06", "ses-M006"), ("m06", "M6"),
    ("ses-pre", "pre"), ("2.0", "ses-2")])
def test_spellings_of_one_session(a, b):
    assert tables.plain_session(a) == tables.plain_session(b)
    assert tables.plain_session("m06") != tables.plain_session("6")


def make(folder, *rows):
    return [scans.Scan(scan_id, subject, folder / f"{scan_id}.nii.gz", session)
            for scan_id, subject, session in rows]


def matched(folder, cohort, text):
    """{scan id: values of column x}, and the Matches."""
    found = tables.match_rows(cohort, tables.read_table(write(folder / "t.csv", text)), "--labels")
    return {scan.id: [row["x"] for row in found.rows_of[scan.id]] for scan in cohort}, found


def test_the_name_of_a_column_decides_what_rows_are_matched_to(tmp_path):
    cohort = make(tmp_path, ("sub-01", "sub-01", None), ("sub-02", "sub-02", None))
    values, found = matched(tmp_path, cohort,  # both columns hold the same names, permuted
                            "id,participant_id,x\nsub-02,sub-01,one\nsub-01,sub-02,two\n")
    assert values == {"sub-01": ["one"], "sub-02": ["two"]}
    assert "by column participant_id (subject), not by id" in found.notes[0]
    values, found = matched(tmp_path, cohort, "ID,x\nsub-02,two\nsub-01,one\n")
    assert values == {"sub-01": ["one"], "sub-02": ["two"]} and found.notes == ()
    cohort = make(tmp_path, ("a", "p", None), ("p", "q", None))
    values, _ = matched(tmp_path, cohort, "id,x\na,1\np,2\n")
    assert values == {"a": ["1"], "p": ["2"]}
    with pytest.raises(UserError, match="needs a column participant_id .* its columns are who, x"):
        matched(tmp_path, cohort, "who,x\na,1\n")


def test_subjects_match_tolerantly_where_they_are_unambiguous(tmp_path):
    cohort = make(tmp_path, ("a", "sub-01", None), ("b", "sub-02", None), ("c", "sub-11", None))
    values, found = matched(tmp_path, cohort, "participant_id,x\n1,one\nsub-2,two\n011,three\n")
    assert values == {"a": ["one"], "b": ["two"], "c": ["three"]}
    assert "3 subjects are spelled otherwise there: sub-01 = 1, sub-02 = sub-2" in found.notes[0]
    values, _ = matched(tmp_path, cohort, "participant_id,x\n1,one\n01,two\n")   # which of them?
    assert values["a"] == []
    both = make(tmp_path, ("a", "sub-01", None), ("b", "sub-1", None))
    values, _ = matched(tmp_path, both, "participant_id,x\n1,one\nsub-1,two\n")
    assert values == {"a": [], "b": ["two"]}


def test_rows_of_the_scans_session(tmp_path):
    cohort = make(tmp_path, ("a", "sub-01", "ses-1"), ("b", "sub-01", "ses-02"),
                  ("c", "sub-01", "ses-3"), ("d", "sub-01", None))
    text = "participant_id,session_id,x\nsub-01,ses-1,MCI\nsub-01,2,AD\n"
    values, found = matched(tmp_path, cohort, text)
    assert values == {"a": ["MCI"], "b": ["AD"], "c": [], "d": ["MCI", "AD"]}
    with pytest.raises(UserError, match=r"contradicting rows for 1 subjects, such as sub-01: MCI "
                                        r"\(ses-1\), AD \(2\)"):
        tables.values_of(cohort, found, "x", "--labels", "t.csv")
    assert tables.values_of(cohort[:3], found, "x", "--labels", "t.csv") == {
        "a": "MCI", "b": "AD", "c": None}


def test_public_tables(tmp_path):
    adni = make(tmp_path, ("a", "003_S_0907", "ses-M000"), ("b", "003_S_0907", "ses-M12"))
    values, _ = matched(tmp_path, adni, "RID,PTID,VISCODE,x\n1,003_S_0907,bl,CN\n"
                                        "1,003_S_0907,m12,MCI\n")
    assert values == {"a": ["CN"], "b": ["MCI"]}
    ixi = make(tmp_path, ("a", "IXI002", None), ("b", "IXI012", None))
    values, _ = matched(tmp_path, ixi, '"IXI_ID","SEX_ID (1=m, 2=f)","x"\n2,2,35\n12,1,38\n')
    assert values == {"a": ["35"], "b": ["38"]}
    bids = make(tmp_path, ("sub-01_T1w", "sub-01", None))
    values, _ = matched(tmp_path, bids, "filename,x\nanat/sub-01_T1w.nii.gz,good\n"
                                        "anat/sub-01_T2w.nii.gz,bad\n")
    assert values == {"sub-01_T1w": ["good"]}
