"""Covariates of volumes, such as age, sex and diagnosis: columns of a table, and their kinds.

A *column* is a number with a unit, or a category with levels. A *row* is {name: value} of one
volume, a number or the name of a level; what is missing is left out.

The manifest's header holds `covariates`, a list of columns (see `Column.to_json`); each of its
entries holds `covariates`, the volume's row.
"""
import math
from collections import Counter
from dataclasses import dataclass, field, replace

from mri import tables
from utils.errors import UserError

MAX_COLUMNS = 32
MAX_LEVELS = 64             # of a category
MAX_TEXT = 200              # characters of a name, unit or level
MAX_NUMBER = 1e30
CATEGORY = "category"       # in place of a unit: numbers are names of levels
NUMBER = "number"


@dataclass(frozen=True)
class Column:
    """A covariate.

    :param kind: NUMBER or CATEGORY
    :param unit: of a number, as the user named it; "" if they did not
    :param mean, deviation: of a number over the volumes of the train split
    :param lowest, highest: of a number over them
    :param levels: of a category, sorted
    :param missing: volumes of the train split without a value
    """
    name: str
    kind: str
    unit: str = ""
    mean: float = 0.0
    deviation: float = 1.0
    lowest: float = 0.0
    highest: float = 0.0
    levels: tuple[str, ...] = field(default=())
    missing: int = 0

    def to_json(self):
        """JSON-serializable; the inverse of `column_from_json`."""
        common = {"name": self.name, "kind": self.kind, "missing": self.missing}
        if self.kind == CATEGORY:
            return common | {"levels": list(self.levels)}
        return common | {"unit": self.unit, "mean": self.mean, "deviation": self.deviation,
                         "lowest": self.lowest, "highest": self.highest}

    def has(self, value):
        """Whether a value is a number, or one of the levels."""
        return value in self.levels if self.kind == CATEGORY else _is_number(value)

    def describe(self):
        """A phrase for the user: "age 55 to 90 years", "sex F, M"."""
        if self.kind == CATEGORY:
            return f"{self.name} {', '.join(self.levels)}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} {self.lowest:g} to {self.highest:g}{unit}"


# ------------------------------------------------------------------------------------- from a file

def column_from_json(values, path):
    """A Column from JSON that may come from anywhere; the inverse of `Column.to_json`.

    :param path: of the file, for errors
    :raises UserError: preprocess.py could not have written it
    """
    try:
        name, kind, missing = values["name"], values["kind"], values["missing"]
        if not (_is_text(name) and type(missing) is int and missing >= 0):
            raise ValueError
        if kind == CATEGORY:
            levels = tuple(values["levels"])
            if not (0 < len(levels) <= MAX_LEVELS and all(map(_is_text, levels))
                    and len(set(levels)) == len(levels)):
                raise ValueError
            return Column(name, kind, levels=levels, missing=missing)
        numbers = [values[key] for key in ("mean", "deviation", "lowest", "highest")]
        unit = values["unit"]
        if kind != NUMBER or not all(map(_is_number, numbers)) or not numbers[1] >= 0 \
                or not (unit == "" or _is_text(unit)):
            raise ValueError
        return Column(name, kind, unit, *map(float, numbers), missing=missing)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: its `covariates` are damaged; preprocess again") from None


def columns_from_json(values, path):
    """Columns from JSON that may come from anywhere, with names that differ.

    :param values: list; None: there are none
    :raises UserError: see `column_from_json`
    """
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > MAX_COLUMNS:
        raise UserError(f"{path}: its `covariates` are damaged; preprocess again")
    columns = tuple(column_from_json(one, path) for one in values)
    if len({column.name for column in columns}) < len(columns):
        raise UserError(f"{path}: two of its `covariates` have one name; preprocess again")
    return columns


def is_row(row):
    """Whether a value from JSON is a row, of whatever columns."""
    return (isinstance(row, dict) and len(row) <= MAX_COLUMNS and all(map(_is_text, row))
            and all(_is_text(value) or _is_number(value) for value in row.values()))


def _is_text(value):
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _is_number(value):
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


# ------------------------------------------------------------------------------------ from a table

@dataclass(frozen=True)
class Covariates:
    """The covariates of a cohort's scans.

    :param columns: without statistics, see `with_statistics`
    :param row_of: {scan id: row}
    :param notes: lines for a person
    """
    columns: tuple
    row_of: dict
    notes: tuple = ()


def read_covariates(scans, path, wanted):
    """The covariates of each scan.

    :param scans: list of Scan
    :param path: table, see `labels.read_labels`
    :param wanted: NAME of a column, NAME:UNIT, or NAME:category for levels that look like numbers
    :return: Covariates
    :raises UserError: names a column that is missing or tells nothing, or what is wrong with it
    """
    table = tables.read_table(path)
    asked = [_parse_wanted(text, table) for text in wanted]
    names = [name for name, _ in asked]
    if len(set(names)) < len(names):
        raise UserError(f"--covariates {' '.join(wanted)}: names a column twice; give each once")
    if len(names) > MAX_COLUMNS:
        raise UserError(f"--covariates: {len(names)} columns, more than the {MAX_COLUMNS} that "
                        "are stored")
    matches = tables.match_rows(scans, table, "--labels")
    unknown = list(dict.fromkeys(scan.subject for scan in scans if not matches.rows_of[scan.id]))
    if unknown:
        raise UserError(f"--labels {path}: has no row for {len(unknown)} subjects: "
                        f"{tables.some(unknown)}; add rows, with n/a for what is not known, or "
                        "take their scans out")
    columns, notes, row_of = [], list(matches.notes), {scan.id: {} for scan in scans}
    for name, unit in asked:
        cells = tables.values_of(scans, matches, name, "--labels", path)
        column, values = _read_column(name, unit, cells, table, matches.key)
        columns.append(column)
        for scan_id, value in values.items():
            row_of[scan_id][name] = value
        notes.append(_describe_column(column, values, len(scans)))
    return Covariates(tuple(columns), row_of, tuple(notes))


def _parse_wanted(text, table):
    """Name and unit of one value of --covariates."""
    name, unit = text, ""
    if text not in table.columns and ":" in text:
        name, _, unit = text.rpartition(":")
    if name not in table.columns:
        raise UserError(f"--covariates {text}: {table.path} has no column {name!r}; its columns "
                        f"are {', '.join(table.columns) or 'none'}")
    if "=" in name or len(name) > MAX_TEXT or len(unit) > MAX_TEXT:
        raise UserError(f"--covariates {text}: the name of a covariate has no `=` and at most "
                        f"{MAX_TEXT} characters; rename the column")
    return name, unit


def _read_column(name, unit, cells, table, key):
    """A Column without statistics, and {scan id: value} of the scans that have one.

    :param cells: {scan id: text, or None where it is missing}
    :param key: column by which rows are named in errors
    """
    given = {scan_id: cell for scan_id, cell in cells.items() if cell is not None}
    if not given:
        raise UserError(f"--covariates {name}: missing for all {len(cells)} scans in {table.path}; "
                        "leave it out")
    numbers = {scan_id: _to_number(cell) for scan_id, cell in given.items()}
    texts = {given[scan_id] for scan_id, number in numbers.items() if number is None}
    if unit != CATEGORY and len(texts) < len(set(given.values())):
        if texts:
            raise UserError(f"--covariates {name}: numbers, but text for "
                            f"{_rows_with_text(table, name, key)} in {table.path}; correct it, "
                            f"put n/a for missing, or take all values as levels by "
                            f"{name}:{CATEGORY}")
        _require_two(name, set(numbers.values()), "number")
        return Column(name, NUMBER, unit), numbers
    if unit not in ("", CATEGORY):
        raise UserError(f"--covariates {name}:{unit}: holds text such as "
                        f"{tables.some(sorted(texts))}, and a unit is for numbers; give {name}")
    levels = tuple(sorted(set(given.values())))
    _require_two(name, levels, "level")
    if len(levels) > MAX_LEVELS:
        raise UserError(f"--covariates {name}: {len(levels)} levels, more than the {MAX_LEVELS} "
                        "that a category may have; group them, or leave it out")
    if any(len(level) > MAX_TEXT for level in levels):
        raise UserError(f"--covariates {name}: a level has more than {MAX_TEXT} characters; "
                        "shorten it")
    return Column(name, CATEGORY, levels=levels), given


def _require_two(name, values, what):
    if len(values) < 2:
        (value,) = values
        raise UserError(f"--covariates {name}: has one {what} only, {value}, for all scans, and "
                        "nothing can be learned from it; leave it out")


def _to_number(text):
    """The finite number that a cell holds, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < MAX_NUMBER else None


def _rows_with_text(table, name, key):
    """A phrase that names the rows of a table in which a column holds text: "sub-03 ('old')"."""
    return tables.some(
        f"{row[key]} ({row[name]!r})" for row in table.rows
        if row[name] not in tables.MISSING and _to_number(row[name]) is None)


def _describe_column(column, values, count):
    missing = f", missing for {count - len(values)} of {count} scans" if len(values) < count else ""
    if column.kind == NUMBER:
        lowest, highest = min(values.values()), max(values.values())
        unit = f" {column.unit}" if column.unit else ", without a unit"
        few = ""
        if len(set(values.values())) == 2:
            few = f"; if its two values are codes, give {column.name}:{CATEGORY}"
        return (f"--covariates {column.name}: a number, {lowest:g} to {highest:g}{unit}{missing}"
                f"{few}")
    counts = Counter(values.values())
    levels = ", ".join(f"{counts[level]} {level}" for level in column.levels)
    return f"--covariates {column.name}: a category, {levels}{missing}"


# ------------------------------------------------------------------------------ in the data folder

def set_rows(entries, former, known, notes, warnings):
    """Gives each entry of a manifest its row; what the command names replaces earlier rows.

    :param entries: of the manifest, those of the data folder that there was included
    :param former: columns of the data folder that there was
    :param known: Covariates of --input; None: the command names none
    :param notes, warnings: lists of lines for a person, which get more
    :return: columns, with statistics of the train split
    :raises UserError: volumes that are not in --input would keep rows of other columns
    """
    if known is None:
        without = sum("covariates" not in entry for entry in entries)
        if former and without:
            names = ", ".join(column.name for column in former)
            notes.append(f"{without} volumes get no {names}, as --covariates is not given")
    else:
        kept = [entry["id"] for entry in entries
                if "covariates" in entry and entry["id"] not in known.row_of]
        if kept:
            raise UserError(f"--covariates: {len(kept)} volumes of the data folder have others and "
                            f"are not in --input ({tables.some(kept)}); give all scans as --input")
        for entry in entries:
            if entry["id"] in known.row_of:
                entry["covariates"] = known.row_of[entry["id"]]
        without = sum("covariates" not in entry for entry in entries)
        if without:
            notes.append(f"--covariates: {without} volumes of the data folder are not in --input "
                         "and get none; give all scans as --input")
    columns, problems = with_statistics(known.columns if known else former, entries)
    warnings += problems
    return columns


def with_statistics(columns, entries):
    """Columns with what the volumes of the train split tell of them.

    :param entries: of the manifest
    :return: columns; warnings about those that are constant there, and cannot be trained on
    """
    rows = [entry.get("covariates", {}) for entry in entries if entry["split"] == "train"]
    found = tuple(_measure(column, rows) for column in columns)
    return found, [f"covariate {column.name!r}: {problem} in the train split"
                   for column in found for problem in [problem_of(column, rows)] if problem]


def _measure(column, rows):
    values = [row[column.name] for row in rows if column.name in row]
    column = replace(column, missing=len(rows) - len(values))
    if column.kind == CATEGORY or not values:
        return column
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return replace(column, mean=mean, deviation=math.sqrt(variance), lowest=min(values),
                   highest=max(values))


def problem_of(column, rows):
    """Why nothing can be learned of a column from these rows, as a phrase; None if it can."""
    values = {row[column.name] for row in rows if column.name in row}
    if not values:
        return "missing for all volumes"
    if len(values) == 1:
        return f"{next(iter(values))} for all volumes"
    return None
