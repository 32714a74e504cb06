"""Class labels of scans, from a table or from the column `class` of the list of scans."""
from dataclasses import dataclass

from mri import tables
from utils.errors import UserError


@dataclass(frozen=True)
class Labels:
    """The classes of a cohort's scans."""
    label_of: dict     # {scan id: name of its class}, without unlabeled scans
    unlabeled: dict    # {scan id: what is wrong with it}
    notes: tuple = ()  # lines for a person


def read_labels(scans, path, column):
    """The class of each scan; one class "all" where nothing says more.

    :param scans: list of Scan
    :param path: table with a column participant_id (or id, subject, filename); None: the scans' own
        `label`, from the list that names them
    :param column: of the class; None: the table is not about classes
    :return: Labels
    :raises UserError: a column is missing, the table cannot be read or contradicts itself
    """
    if path and column:
        return _labels_in_table(scans, path, column)
    if not any(scan.label for scan in scans):
        return Labels({scan.id: "all" for scan in scans}, {})
    unlabeled = {scan.id: f"{scan.path}: has no class in its list; add it, or take the scan out"
                 for scan in scans if not scan.label}
    return Labels({scan.id: scan.label for scan in scans if scan.label}, unlabeled)


def _labels_in_table(scans, path, column):
    table = tables.read_table(path)
    if column not in table.columns:
        raise UserError(f"--labels {path}: has no column --label-column {column!r}; its columns "
                        f"are {', '.join(table.columns) or 'none'}")
    matches = tables.match_rows(scans, table, "--labels")
    label_of = tables.values_of(scans, matches, column, "--labels", path)
    unlabeled = {scan.id: _what_is_missing(scan, matches, column, path)
                 for scan in scans if label_of[scan.id] is None}
    label_of = {scan_id: label for scan_id, label in label_of.items() if label is not None}
    return Labels(label_of, unlabeled, matches.notes)


def _what_is_missing(scan, matches, column, path):
    rows = matches.rows_of[scan.id]
    if rows:
        return (f"{scan.path}: no {column} for {scan.subject} in {path}: {rows[0][column]!r} means "
                "missing; add it, or take the scan out")
    session = f" in {scan.session}" if scan.session and matches.session else ""
    return (f"{scan.path}: no {column} for {scan.subject}{session} in {path}: "
            f"its column {matches.key} holds {tables.some(matches.examples)}; add it, or take the "
            "scan out")
