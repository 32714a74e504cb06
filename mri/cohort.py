"""."""

import numpy as np

from mri.scans import read_tsv
from utils.errors import UserError


def labels_of(scans, path, column):
    """Class index of each scan id, names of the classes, and the scans that have no label with the reason."""
    if not path:
        return {s.id: 0 for s in scans}, ["all"], {}
    rows = read_tsv(path)
    keys = [k for k in ("id", "participant_id", "subject") if rows and k in rows[0]]
    if not keys or column not in rows[0]:
        raise UserError(f"--labels {path}: needs a column participant_id (or id, subject) and --label-column {column!r}")
    label_of = {row[k]: row[column] for k in keys[::-1] for row in rows if row[k]}
    labels = {s.id: label_of.get(s.id, label_of.get(s.subject, "")) for s in scans}
    unlabelled = {s.id: f"{s.path}: no {column} for {s.subject} in {path}; add it, or take the scan out"
                  for s in scans if labels[s.id] in ("", "n/a")}
    names = sorted({label for label in labels.values() if label not in ("", "n/a")})
    return {i: names.index(label) for i, label in labels.items() if i not in unlabelled}, names, unlabelled


def split_subjects(subjects, ratio, seed):
    """Assigns "train" or "test" to each subject in the proportion `ratio`, at random: 95 subjects at (63, 32) give 63, 32."""
    subjects = sorted(set(subjects))
    n_train = round(len(subjects) * ratio[0] / sum(ratio))
    if ratio[0] and ratio[1] and len(subjects) > 1:  # neither side empty when both are asked for
        n_train = min(max(n_train, 1), len(subjects) - 1)
    order = np.random.default_rng(seed).permutation(len(subjects))
    return {subjects[j]: "train" if rank < n_train else "test" for rank, j in enumerate(order)}


def parse_ratio(text):
    try:
        train, test = (int(n) for n in text.split(":"))
    except ValueError:
        train = test = -1
    if min(train, test) < 0 or train + test == 0:
        raise UserError(f"--split {text}: must be TRAIN:TEST, two whole numbers such as 63:32, or 1:0 for no test set")
    return train, test
