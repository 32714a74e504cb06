"""Which covariates each sample is asked to have: fixed, from a table, drawn as in training, or
swept over values of one of them."""
import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from mri import tables
from mri.covariates import CATEGORY
from training.checkpoint import read_metadata
from training.conditions import Conditions, encode, recorded_conditions
from utils.errors import UserError
from utils.escaping import some_names
from utils.seeding import draw_weighted

COHORT = "cohort"           # value of --conditions: rows as frequent as among training volumes
PURPOSE = 2                 # of the draws of rows, apart from a sample's noise and its class
MAX_SWEEP = 1000            # samples of a sweep
DEFAULT_COUNT = 32          # of samples, where neither flags nor rows say it


@dataclass(frozen=True)
class ConditionChoice:
    """The covariates of every sample, {name: value}; what is not asked for is left out.

    :param conditions: Conditions of the model; None: it takes no covariates
    :param fixed: values for all samples
    :param rows: the samples' own values, one row each; None: only `fixed`
    :param is_cohort: rows are drawn from the training volumes
    :param swept: name of the covariate that changes over `rows`, while the noise stays; None: none
    :param warnings: lines for the user
    """
    conditions: Conditions | None = None
    fixed: dict = field(default_factory=dict)
    rows: tuple | None = None
    is_cohort: bool = False
    swept: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def names(self):
        """Of the model's covariates."""
        return tuple(column.name for column in self.conditions.columns) if self.conditions else ()

    @property
    def hint(self):
        """A line for the user if the model takes covariates and none is asked for, else None."""
        if self.conditions is None or self.fixed or self.rows or self.is_cohort:
            return None
        # what the demo's model does then, measured in docs/conditions.md
        return ("no covariates are asked for: such samples may be averages of what the model can "
                f"be asked for; --conditions {COHORT} draws them as in training")

    def count(self, asked):
        """The number of samples.

        :param asked: --num-samples, or None
        :raises UserError: more than there are rows or values
        """
        if self.rows is None:
            return DEFAULT_COUNT if asked is None else asked
        if asked is not None and asked > len(self.rows):
            raise UserError(f"--num-samples {asked}: --conditions or --sweep names "
                            f"{len(self.rows)}; leave --num-samples out")
        return len(self.rows) if asked is None else asked

    def of_sample(self, seed, i, class_index):
        """The values that sample i is asked to have, {name: value}: by (seed, i, class) alone."""
        if self.is_cohort:
            return self._drawn(seed, i, class_index)
        return self.fixed | (self.rows[i] if self.rows else {})

    def _drawn(self, seed, i, class_index):
        rows = [row for row in self.conditions.rows if row.class_index == class_index]
        values = rows[draw_weighted([row.count for row in rows], seed, i, PURPOSE)].values
        return {name: value for name, value in zip(self.names, values) if value is not None}

    def noise_index(self, i):
        """Which noise sample i is made from."""
        return 0 if self.swept else i

    def encode(self, rows):
        """What the network takes, (N, K) float32; None if it takes no covariates.

        :param rows: of `of_sample`
        """
        if self.conditions is None:
            return None
        columns = self.conditions.columns
        return encode(columns, [[row.get(c.name) for c in columns] for row in rows], "sample.py")

    def recipe(self):
        """What samples.json records of the choice; None where nothing is asked for."""
        if self.is_cohort:
            return COHORT
        if self.rows is None:
            return self.fixed or None
        found = {"sweep": self.swept} if self.swept else {}
        digest = hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()
        return {**self.fixed, **found, "rows": len(self.rows), "rows_sha256": digest}

    def headings(self, count):
        """The values of a sweep's first samples, as text; numbers rounded to four digits."""
        values = [row[self.swept] for row in self.rows[:count]]
        return [value if isinstance(value, str) else f"{value:.4g}" for value in values]

    def add_to(self, description, row):
        """What a NIfTI header says of a sample, with its covariates.

        :param description: of all samples
        :param row: of this one
        """
        return f"{description} {describe_row(row)}" if row else description

    def describe_all(self):
        """The values that all samples have, and what is missing, of fixed covariates."""
        missing = [name for name in self.names if name not in self.fixed]
        return ", ".join(filter(None, (describe_row(self.fixed),
                                       missing and f"{' and '.join(missing)} missing")))

    def describe(self):
        """A phrase for the user; None if the model takes no covariates."""
        if self.conditions is None:
            return None
        if self.is_cohort:
            return "covariates as in training"
        parts = [describe_row(self.fixed)] if self.fixed else []
        if self.swept:
            parts.append(f"{self.swept} from {describe_value(self.rows[0][self.swept])} to "
                         f"{describe_value(self.rows[-1][self.swept])} with one noise")
        elif self.rows:
            parts.append("covariates of a table")
        return ", ".join(parts) or "no covariates asked for"


def describe_value(value):
    """A value as headings and file headers show it."""
    return value if isinstance(value, str) else f"{value:g}"


def describe_row(row):
    """A row in one phrase: "age=70 sex=F"."""
    return " ".join(f"{name}={describe_value(value)}" for name, value in row.items())


# ------------------------------------------------------------------------------------- from flags

def choose_condition(conditions, classes, *, condition, table, sweep, checkpoint):
    """What --condition, --conditions and --sweep mean for a checkpoint.

    :param conditions: Conditions of the checkpoint; None: its model takes no covariates
    :param classes: indices of the classes that are sampled
    :param condition: list of NAME=VALUE
    :param table: path of a table, COHORT, or None
    :param sweep: NAME=START:STOP:COUNT, NAME=VALUE,VALUE,… or None
    :param checkpoint: its path, for errors
    :return: ConditionChoice
    :raises UserError: flags that contradict each other, or that the model does not know
    """
    given = {"--condition": condition, "--conditions": table, "--sweep": sweep}
    given = [flag for flag, value in given.items() if value]
    if conditions is None:
        if given:
            raise UserError(f"{given[0]}: the model of {checkpoint} takes no covariates; train one "
                            "with train.py --condition-on")
        return ConditionChoice()
    if table and len(given) > 1:
        raise UserError(f"--conditions {table}: gives all covariates already; leave out "
                        f"{' and '.join(flag for flag in given if flag != '--conditions')}")
    columns = {column.name: column for column in conditions.columns}
    if table == COHORT:
        return _choose_cohort(conditions, classes, checkpoint)
    if table:
        return _choose_table(conditions, columns, table)
    fixed = dict(_parse_pair("--condition", text, columns) for text in condition)
    if len(fixed) < len(condition):
        raise UserError(f"--condition {' '.join(condition)}: names a covariate twice")
    fixed = {name: value for name, value in fixed.items() if value is not None}
    rows, swept = None, None
    if sweep:
        swept, rows = _parse_sweep(sweep, columns)
        if swept in fixed:
            raise UserError(f"--sweep {sweep}: --condition names {swept}, too; leave one out")
    warnings = _warn_of_values([*(rows or ()), fixed], conditions)
    return ConditionChoice(conditions, fixed, rows, swept=swept, warnings=warnings)


def choose_as_in_training(metadata, path):
    """The choice of covariates as in training, where no flag says what to ask for.

    :param metadata: of a checkpoint
    :param path: of the checkpoint, for errors
    :return: ConditionChoice; index of the class to sample, which has training volumes
    :raises UserError: see `recorded_conditions`
    """
    conditions = recorded_conditions(metadata, path)
    if conditions is None:
        return ConditionChoice(), 0
    return (ConditionChoice(conditions, is_cohort=True),
            min(row.class_index for row in conditions.rows))


def covariates_of(path):
    """Names of the covariates that the model of a checkpoint takes, a tuple."""
    conditions = recorded_conditions(read_metadata(path), path)
    return tuple(column.name for column in conditions.columns) if conditions else ()


def _choose_cohort(conditions, classes, checkpoint):
    known = {row.class_index for row in conditions.rows}
    if not classes <= known:
        raise UserError(f"--conditions {COHORT}: {checkpoint} has no training volume of class "
                        f"{min(classes - known)}; see --class-label")
    return ConditionChoice(conditions, is_cohort=True)


def _choose_table(conditions, columns, path):
    table = tables.read_table(path)
    unused = [name for name in table.columns if name not in columns]
    names = [name for name in table.columns if name in columns]
    if not names or not table.rows:
        raise UserError(f"--conditions {path}: needs rows with some of the columns "
                        f"{', '.join(columns)}; its columns are {', '.join(table.columns)}")
    rows = []
    for number, cells in enumerate(table.rows, 1):
        where = f"--conditions {path}: row {number}: "
        row = {name: _parse_value(columns[name], cells[name], where) for name in names}
        rows.append({name: value for name, value in row.items() if value is not None})
    warnings = _warn_of_values(rows, conditions)
    if unused:
        warnings = (f"--conditions {path}: its columns {some_names(unused)} are not used, as the "
                    "model does not take them", *warnings)
    if table.empty_rows:
        warnings = (f"--conditions {path}: {table.empty_rows} rows without any value are left out, "
                    "so later rows move up; a row with n/a asks for nothing", *warnings)
    return ConditionChoice(conditions, rows=tuple(rows), warnings=warnings)


def _parse_pair(flag, text, columns):
    """Name and value of NAME=VALUE; None as value if that is empty or means missing."""
    name, value = _split_pair(flag, text, columns)
    return name, _parse_value(columns[name], value, f"{flag} {text}: ")


def _split_pair(flag, text, columns):
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{flag} {text}: must be NAME=VALUE, such as {next(iter(columns))}=…")
    if name not in columns:
        known = "; ".join(column.describe() for column in columns.values())
        raise UserError(f"{flag} {text}: the model was not trained on {name!r}; it knows {known}")
    return name, value.strip()


def _parse_value(column, text, where):
    """A value of a column; None if the text means missing.

    :param where: what an error begins with
    """
    if text in tables.MISSING:
        return None
    value = text if column.kind == CATEGORY else _to_number(text)
    if not column.has(value):
        raise UserError(f"{where}the model was trained on {column.describe()}; "
                        f"{text!r} is not one of these")
    return value


def _to_number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _parse_sweep(text, columns):
    """Name of a covariate, and a row with it alone for each of its values."""
    name, values = _split_pair("--sweep", text, columns)
    column, where = columns[name], f"--sweep {text}: "
    parts = values.split(":")
    if column.kind != CATEGORY and len(parts) == 3:
        start, stop = (_parse_value(column, part, where) for part in parts[:2])
        count = int(parts[2]) if parts[2].isascii() and parts[2].isdigit() else 0
        found = [] if None in (start, stop) else np.linspace(start, stop, min(count, MAX_SWEEP + 1))
        found = [float(f"{value:.8g}") for value in found]
    else:
        found = [_parse_value(column, part.strip(), where) for part in values.split(",")]
    if not 2 <= len(found) <= MAX_SWEEP or None in found:
        raise UserError(f"{where}needs 2 to {MAX_SWEEP} values, as NAME=VALUE,VALUE,… or, of a "
                        "number, NAME=START:STOP:COUNT")
    return name, tuple({name: value} for value in found)


def _warn_of_values(rows, conditions):
    """A line for each covariate of which some rows have values that training volumes do not."""
    untrained = conditions.untrained_levels()
    warnings = []
    for column in conditions.columns:
        values = [row[column.name] for row in rows if column.name in row]
        if column.kind == CATEGORY:
            unseen = [v for v in values if v in untrained.get(column.name, ())]
            what = "are levels that no training volume has"
        else:
            unseen = [v for v in values if not column.lowest <= v <= column.highest]
            what = f"lie outside the training volumes' range, {column.describe()}"
        if unseen:
            named = ", ".join(map(describe_value, list(dict.fromkeys(unseen))[:3]))
            warnings.append(f"{column.name} {named}: {len(unseen)} of {len(values)} values {what}; "
                            "the model has not seen such")
    return tuple(warnings)
