"""Tables of text: tab-, comma- or semicolon-separated, with a header row; and which rows are of
which scan."""
import csv
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mri.scan_formats import stem
from utils.errors import UserError, shorten
from utils.shared_folders import open_regular

MAX_TABLE_BYTES = 2 ** 26
MAX_CELLS = 5_000_000       # a row that is too short gets all columns
SPREADSHEET_SUFFIXES = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
DELIMITERS = "\t;,"
NAMED_EXAMPLES = 3         # in a line about many

# Cells that mean "missing": those of pandas.read_csv
MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"))

# What a column's name says about its cells (lower case, blanks and dashes as "_"), best first.
SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "sub", "ptid", "ixi_id", "oasisid")
ID_COLUMNS = ("id", "scan_id")
KEY_COLUMNS = {"file name": ("filename",), "subject": SUBJECT_COLUMNS, "id": ID_COLUMNS}
SESSION_COLUMNS = ("session_id", "session", "ses", "viscode", "visit")


@dataclass(frozen=True)
class Table:
    """A table's cells, without blanks around them."""
    path: Path
    columns: tuple     # as the file spells them
    rows: list         # of {column: cell}
    empty_rows: int = 0     # left out, as all of their cells are empty

    def find_column(self, names):
        """The first column with one of these names, whatever its case; None if there is none."""
        by_name = {plain_column(column): column for column in reversed(self.columns)}
        return next((by_name[name] for name in names if name in by_name), None)


@dataclass(frozen=True)
class Matches:
    """Which rows of a table are about which scan."""
    rows_of: dict      # {scan id: list of rows}; empty where none is
    key: str           # the column that decides
    session: str | None  # the column of sessions
    examples: tuple    # what the key column holds, a few cells
    notes: tuple       # lines for a person


def read_table(path):
    """Reads a table; tabs, semicolons or commas between the cells.

    :return: Table
    :raises UserError: missing, too large, a spreadsheet, or not a table of text
    """
    path = Path(path)
    if path.name.lower().endswith(SPREADSHEET_SUFFIXES):
        raise UserError(f"{path}: a spreadsheet, which can hold formulas and several sheets, is "
                        "not read; save its sheet as CSV or TSV (UTF-8)")
    try:
        _check_is_text(path)
        with open(path, newline="", encoding="utf-8-sig") as f:
            delimiter = _delimiter(f.readline())
            f.seek(0)
            reader = csv.DictReader(f, delimiter=delimiter, restval="", strict=True)
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: not a table of text, tab- or comma-separated, in UTF-8 "
                        f"({shorten(e)})") from None
    if any(None in row for row in rows):
        raise UserError(f"{path}: a row has more cells than the header; is it separated by tabs, "
                        "commas or semicolons, and are cells with such signs quoted?")
    stripped = [{column.strip(): cell.strip() for column, cell in row.items()} for row in rows]
    columns = tuple(column.strip() for column in columns)
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise UserError(f"{path}: has two columns {repeated[0]!r}; rename or remove one")
    filled = [row for row in stripped if any(row.values())]
    return Table(path, columns, filled, empty_rows=len(stripped) - len(filled))


def _check_is_text(path):
    with open_regular(path) as f:
        if os.fstat(f.fileno()).st_size > MAX_TABLE_BYTES:
            raise UserError(f"{path}: larger than the {MAX_TABLE_BYTES >> 20} MiB that are read; "
                            "is it a table?")
        raw = f.read()
    if raw.startswith(b"PK\3\4"):
        raise UserError(f"{path}: a zip archive, as Excel writes; save the sheet as CSV or TSV "
                        "(UTF-8)")
    if b"\0" in raw:
        raise UserError(f"{path}: not a table of text in UTF-8: it holds NUL bytes, as UTF-16 and "
                        "binary files do; save it again as UTF-8")
    header, _, rest = raw.partition(b"\n")
    columns = max(header.count(sign.encode()) for sign in DELIMITERS) + 1
    if columns * (rest.count(b"\n") + rest.count(b"\r") + 1) > MAX_CELLS:
        raise UserError(f"{path}: more than the {MAX_CELLS} cells that are read; take out columns "
                        "that are not needed")


def _delimiter(header):
    """The sign between the cells: a tab if there is one, else the more frequent."""
    if "\t" in header:
        return "\t"
    counts = {sign: header.count(sign) for sign in DELIMITERS}
    best = max(DELIMITERS, key=counts.get)
    return best if counts[best] else "\t"


def plain_column(name):
    """A column's name as the lists above have it: "Subject ID" -> "subject_id"."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def some(names):
    """A few names for a line: "a, b, c and 7 more"."""
    names = list(names)
    text = ", ".join(map(str, names[:NAMED_EXAMPLES]))
    more = len(names) - NAMED_EXAMPLES
    return f"{text} and {more} more" if more > 0 else text


# --------------------------------------------------------------------------------------- matching

def match_rows(scans, table, flag):
    """Finds the rows that are about each scan; the name of a column decides what it is matched to.

    `filename` is matched to the scan's file name (BIDS' scans.tsv), participant_id and its kin to
    the subject, `id` to the scan's id or, failing that, the subject. Subjects match tolerantly
    ("1", "01" and "sub-01" are one) where no two subjects of the table or of the cohort could be
    meant. Where the table has a column of sessions and the scan has a session, only the rows of
    that session count.

    :param scans: list of Scan
    :param flag: that named the table, for errors
    :return: Matches
    :raises UserError: no column to match by
    """
    kind, key, others = _find_key(table, flag)
    session = table.find_column(SESSION_COLUMNS)
    if kind == "file name":
        rows_of = _match_file_names(scans, table, key)
        loose = {}
    else:
        rows_of, loose = _match_names(scans, table, key, by_id=kind == "id")
        if session:
            rows_of = {scan.id: _of_session(scan, rows_of[scan.id], session) for scan in scans}
    notes = []
    if others:
        notes.append(f"{flag} {table.path}: rows are matched to scans by column {key} "
                     f"({kind}), not by {', '.join(others)}")
    if loose:
        pairs = [f"{subject} = {name}" for subject, name in sorted(loose.items())]
        notes.append(f"{flag} {table.path}: {len(loose)} subjects are spelled otherwise there: "
                     f"{some(pairs)}")
    examples = dict.fromkeys(row[key] for row in table.rows[:NAMED_EXAMPLES])
    return Matches(rows_of, key, session, tuple(examples), tuple(notes))


def _find_key(table, flag):
    """What rows are matched by: its kind, a key of KEY_COLUMNS; its column; the unused columns."""
    found = []
    for kind, names in KEY_COLUMNS.items():
        columns = [table.find_column((name,)) for name in names]
        found += [(kind, column) for column in columns if column is not None]
    if not found:
        raise UserError(f"{flag} {table.path}: needs a column participant_id (or id, subject, "
                        f"filename); its columns are {', '.join(table.columns) or 'none'}")
    kind, key = found[0]
    return kind, key, [column for _, column in found[1:]]


def _match_file_names(scans, table, key):
    rows_of_stem = defaultdict(list)
    for row in table.rows:
        if row[key] not in MISSING:
            rows_of_stem[stem(row[key])].append(row)
    return {scan.id: rows_of_stem[stem(scan.path)] for scan in scans}


def _match_names(scans, table, key, by_id):
    """{scan id: rows}, and {subject: name in the table} of those that match tolerantly."""
    exact = defaultdict(list)
    for row in table.rows:
        if row[key] not in MISSING:
            exact[row[key]].append(row)
    in_table = _spellings(exact)
    in_cohort = _spellings({scan.subject for scan in scans})
    rows_of, loose = {}, {}
    for scan in scans:
        names = [name for name in (scan.id if by_id else None, scan.subject) if name in exact]
        plain = plain_subject(scan.subject)
        if not names and len(in_table[plain]) == 1 and len(in_cohort[plain]) == 1:
            (spelled,) = in_table[plain]
            names = [spelled]
            loose[scan.subject] = spelled
        rows_of[scan.id] = exact[names[0]] if names else []
    return rows_of, loose


def _spellings(names):
    """{plain spelling: set of names that have it}"""
    found = defaultdict(set)
    for name in names:
        found[plain_subject(name)].add(name)
    return found


def plain_subject(name):
    """A subject's name without what tables and files spell differently: "sub-01" -> "1"."""
    text = re.sub(r"\.0$", "", str(name).lower())             # a number that Excel made a decimal
    text = re.sub(r"[^0-9a-z]", "", text.removeprefix("sub-"))
    text = re.sub(r"^(adni|ixi|sub)(?=\d)", "", text)
    return text.lstrip("0") or text[:1]


def plain_session(name):
    """A session's name likewise: "ses-01" -> "1"; ADNI's "bl" and "ses-M000" -> "m0"."""
    text = re.sub(r"\.0$", "", str(name).lower().removeprefix("ses-"))
    if text in ("bl", "baseline"):
        return "m0"
    numbered = re.fullmatch(r"(m|v|y)?0*(\d+)", text)
    return f"{numbered[1] or ''}{numbered[2]}" if numbered else text


def _of_session(scan, rows, column):
    """The rows of a scan's session; all where the scan or every row has none."""
    if not scan.session or all(row[column] in MISSING for row in rows):
        return rows
    wanted = plain_session(scan.session)
    return [row for row in rows if plain_session(row[column]) == wanted]


def values_of(scans, matches, column, flag, path):
    """One value per scan from its rows; rows that contradict each other are an error.

    :param matches: Matches
    :param column: that holds the values
    :return: {scan id: value, or None where the table has none}
    :raises UserError: several values for one scan
    """
    value_of, contradictions = {}, {}
    for scan in scans:
        rows = matches.rows_of[scan.id]
        values = list(dict.fromkeys(row[column] for row in rows if row[column] not in MISSING))
        value_of[scan.id] = values[0] if values else None
        if len(values) > 1:
            contradictions[scan.subject] = [
                f"{row[column]}{f' ({row[matches.session]})' if matches.session else ''}"
                for row in rows if row[column] not in MISSING]
    if contradictions:
        subject, found = next(iter(contradictions.items()))
        hint = ("scans without a session in their names need one value per subject"
                if matches.session else "add a column session_id")
        raise UserError(
            f"{flag} {path}: contradicting rows for {len(contradictions)} subjects, such as "
            f"{subject}: {some(dict.fromkeys(found))}; {hint}, or keep one row each")
    return value_of
