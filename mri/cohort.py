"""Class labels of scans, and the split of a cohort into training and test subjects."""
from dataclasses import dataclass

import numpy as np

from mri.scans import read_tsv
from utils.errors import UserError

ID_COLUMNS = ("id", "participant_id", "subject")  # of a table of labels; the first decides
NO_LABEL = ("", "n/a")                            # n/a is BIDS' missing value


@dataclass(frozen=True)
class Labels:
    """The classes of a cohort's scans."""
    class_of: dict     # {scan id: index of its class}, without unlabeled scans
    names: list        # of the classes, by index
    unlabeled: dict    # {scan id: what is wrong with it}


def read_labels(scans, path, column):
    """The class of each scan from a table; one class "all" without a table.

    :param scans: list of Scan
    :param path: TSV with a column participant_id (or id, subject); None: no table
    :param column: of the class
    :return: Labels
    :raises UserError: a column is missing, or the table cannot be read
    """
    if not path:
        return Labels({scan.id: 0 for scan in scans}, ["all"], {})
    label_of = _read_table(path, column)
    labels = {scan.id: label_of.get(scan.id, label_of.get(scan.subject, "")) for scan in scans}
    unlabeled = {
        scan.id: f"{scan.path}: no {column} for {scan.subject} in {path}; add it, or take the scan "
                 "out"
        for scan in scans if labels[scan.id] in NO_LABEL}
    names = sorted({label for label in labels.values() if label not in NO_LABEL})
    class_of = {scan_id: names.index(label) for scan_id, label in labels.items()
                if scan_id not in unlabeled}
    return Labels(class_of, names, unlabeled)


def _read_table(path, column):
    """{id or subject: label}"""
    rows = read_tsv(path)
    keys = [key for key in ID_COLUMNS if rows and key in rows[0]]
    if not keys or column not in rows[0]:
        raise UserError(f"--labels {path}: needs a column participant_id (or id, subject) and "
                        f"--label-column {column!r}")
    label_of = {}
    for key in reversed(keys):  # an earlier key overrides a later one
        for row in rows:
            if row[key]:
                label_of[row[key]] = row[column]
    return label_of


def split_subjects(subjects, ratio, seed):
    """Assigns each subject to training or test, at random, in a given proportion.

    95 subjects at (63, 32) give 63 and 32. Neither side is empty if both numbers of `ratio` are
    above 0 and there are two subjects.

    :param subjects: names, repeated or not, in any order
    :param ratio: (train, test)
    :return: {subject: "train" or "test"}
    """
    subjects = sorted(set(subjects))
    train_count = round(len(subjects) * ratio[0] / sum(ratio))
    if ratio[0] and ratio[1] and len(subjects) > 1:
        train_count = min(max(train_count, 1), len(subjects) - 1)
    order = np.random.default_rng(seed).permutation(len(subjects))
    return {subjects[index]: "train" if rank < train_count else "test"
            for rank, index in enumerate(order)}


def parse_ratio(text):
    """The value of --split, "63:32", as (63, 32).

    :raises UserError: not two whole numbers, or both 0
    """
    try:
        train, test = (int(number) for number in text.split(":"))
    except ValueError:
        train = test = -1
    if min(train, test) < 0 or train + test == 0:
        raise UserError(f"--split {text}: must be TRAIN:TEST, two whole numbers such as 63:32, or "
                        "1:0 for no test set")
    return train, test
