"""The covariates that a model takes: chosen from a manifest, as numbers for the network, and as
its checkpoints record them."""
import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from mri import covariates
from mri.covariates import CATEGORY, Column
from utils.errors import UserError

MAX_ROWS = 10_000           # that a checkpoint records
MAX_COUNT = 10 ** 9


@dataclass(frozen=True)
class CohortRow:
    """Training volumes of one class with the same covariates."""
    class_index: int
    values: tuple           # one per column: a number, the name of a level, or None
    count: int              # of volumes


@dataclass(frozen=True)
class Conditions:
    """The covariates of a model, and of the volumes it is trained on.

    :param columns: in the order in which the network takes them
    :param rows: distinct rows of the training volumes, sorted; of more than MAX_ROWS, a part
    :param sha256: of the covariates of all training volumes, in the order of the manifest
    """
    columns: tuple[Column, ...]
    rows: tuple[CohortRow, ...]
    sha256: str

    @property
    def levels(self):
        """What `models.ConditionEmbedder` is built from."""
        return tuple(len(column.levels) for column in self.columns)

    def untrained_levels(self):
        """{name of a category: its levels that no training volume has}, of which nothing is
        learned. Empty where only a part of the rows is known."""
        if len(self.rows) == MAX_ROWS:
            return {}
        seen = zip(*(row.values for row in self.rows))
        lacking = {column.name: [level for level in column.levels if level not in values]
                   for column, values in zip(self.columns, map(set, seen))}
        return {name: levels for name, levels in lacking.items() if levels}

    def to_json(self):
        """For the metadata of a checkpoint; the inverse of `recorded_conditions`."""
        return {"columns": self.columns_to_json(),
                "rows": [[row.class_index, list(row.values), row.count] for row in self.rows],
                "sha256": self.sha256}

    def example_row(self):
        """A row of plausible values, in the order of the columns; of no participant."""
        return [column.levels[0] if column.kind == CATEGORY else float(f"{column.mean:.3g}")
                for column in self.columns]

    def columns_to_json(self):
        """The columns alone, without what the rows tell of single participants."""
        return [column.to_json() for column in self.columns]


def choose_conditions(names, header, entries, path):
    """The Conditions that train.py --condition-on asks for.

    :param names: of covariates
    :param header, entries: of the manifest; the entries are the training volumes
    :param path: of the data folder, for errors
    :return: Conditions; None for no names
    :raises UserError: the data folder has no such covariates, or they tell nothing
    """
    if not names:
        return None
    known = {column.name: column
             for column in covariates.columns_from_json(header.get("covariates"), path)}
    if len(set(names)) < len(names):
        raise UserError(f"--condition-on {' '.join(names)}: names a covariate twice")
    for name in names:
        if name not in known:
            has = ", ".join(known) or "none; preprocess.py --labels --covariates stores them"
            raise UserError(f"--condition-on {name}: {path} has no such covariate; it has {has}")
    columns = tuple(known[name] for name in names)
    rows = [entry.get("covariates", {}) for entry in entries]
    for column in columns:
        if column.kind != CATEGORY and column.deviation <= 0:
            raise UserError(f"{path}: the deviation of its covariate {column.name!r} is damaged; "
                            "preprocess again")
        problem = covariates.problem_of(column, rows)
        if problem:
            raise UserError(f"--condition-on {column.name}: {problem} that are trained on; leave "
                            "it out")
    values = [tuple(row.get(name) for name in names) for row in rows]
    encode(columns, values, path)
    digest = hashlib.sha256(json.dumps([[c.to_json() for c in columns], values]).encode())
    counts = Counter((entry["class"], row) for entry, row in zip(entries, values))
    distinct = sorted(counts.items(), key=lambda item: json.dumps(item[0]))
    if len(distinct) > MAX_ROWS:
        chosen = np.random.default_rng(0).choice(len(distinct), MAX_ROWS, replace=False)
        distinct = [distinct[i] for i in sorted(chosen)]
    return Conditions(columns, tuple(CohortRow(*row, count) for row, count in distinct),
                      digest.hexdigest())


def encode_entries(conditions, entries, path):
    """What the network takes of each volume, (N, K) float32; None without conditions.

    :param conditions: Conditions, or None
    :param entries: of the manifest
    """
    if conditions is None:
        return None
    rows = [[entry.get("covariates", {}).get(column.name) for column in conditions.columns]
            for entry in entries]
    return encode(conditions.columns, rows, path)


def encode(columns, rows, path):
    """Standardized numbers and indices of levels, NaN where missing: (N, K) float32.

    :param columns: list of K Columns
    :param rows: N lists of K values: numbers, names of levels, or None
    :param path: where the rows are from, for errors
    :raises UserError: a value is not one of its column
    """
    encoded = [[_encode_value(column, value, path) for column, value in zip(columns, row)]
               for row in rows]
    return torch.tensor(encoded, dtype=torch.float32).reshape(len(rows), len(columns))


def _encode_value(column, value, path):
    if value is None:
        return math.nan
    if not column.has(value):
        raise UserError(f"{path}: {value!r} is not a value of the covariate {column.describe()}; "
                        "preprocess again")
    if column.kind == CATEGORY:
        return column.levels.index(value)
    return (value - column.mean) / column.deviation


def describe_conditions(conditions, dropout):
    """Lines for the log of a run.

    :param conditions: Conditions; None: no lines
    :param dropout: probability of leaving out each covariate
    """
    if conditions is None:
        return ()
    total = sum(row.count for row in conditions.rows)
    described = [f"{column.describe()}" + (f" ({column.missing} missing)" if column.missing else "")
                 for column in conditions.columns]
    untrained = [f"no training volume has {name} {', '.join(levels)}: nothing is learned of it"
                 for name, levels in conditions.untrained_levels().items()]
    return (f"covariates: {'; '.join(described)}; each is left out with probability {dropout:g}",
            *untrained,
            f"the checkpoints record {len(conditions.rows)} distinct rows of covariates, of "
            f"{total} volumes, without names, for sample.py --conditions cohort")


def with_covariates(model, covariates, device):
    """A model called model(x, t, y) whose samples have these covariates.

    :param model: models.DiT
    :param covariates: (N, K), see `models.ConditionEmbedder`; None: the model takes none
    """
    if covariates is None:
        return model
    covariates = covariates.to(device)

    def predict(x, t, y):
        # guidance computes the batch twice: of its classes, and of the null class, which has none
        return model(x, t, y, covariates.repeat(len(y) // len(covariates), 1))

    return predict


# ------------------------------------------------------------------------------- from a checkpoint

def recorded_conditions(metadata, path):
    """The Conditions of a checkpoint; None if its model takes no covariates.

    :param metadata: of the checkpoint, which may come from anywhere
    :raises UserError: train.py could not have written it
    """
    levels = metadata.get("config", {}).get("covariates")
    recorded = metadata.get("covariates")
    if not levels and recorded is None:
        return None
    damaged = UserError(f"{path}: its covariates are damaged; use another checkpoint")
    try:
        columns = covariates.columns_from_json(recorded["columns"], path)
        if [len(column.levels) for column in columns] != levels:
            raise damaged
        if any(column.kind != CATEGORY and column.deviation <= 0 for column in columns):
            raise damaged
        rows = tuple(CohortRow(index, tuple(values), count)
                     for index, values, count in recorded["rows"])
        if not 0 < len(rows) <= MAX_ROWS or not all(_is_cohort_row(row, columns) for row in rows):
            raise damaged
        return Conditions(columns, rows, str(recorded["sha256"]))
    except (KeyError, TypeError, ValueError, UserError):
        raise damaged from None


def _is_cohort_row(row, columns):
    return (type(row.class_index) is int and row.class_index >= 0
            and type(row.count) is int and 0 < row.count <= MAX_COUNT
            and len(row.values) == len(columns)
            and all(value is None or column.has(value)
                    for column, value in zip(columns, row.values)))
