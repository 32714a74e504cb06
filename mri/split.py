"""The split of a cohort into training and test subjects."""
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mri import manifest, tables
from utils.errors import UserError

# what tables call the sides
SIDES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test"}


@dataclass(frozen=True)
class Split:
    """The side of each subject of a cohort."""
    side_of: dict      # {subject: "train", "val" or "test"}
    notes: tuple = ()  # lines for a person


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


def position(seed, subject):
    """Where a subject lies between 0 and 1, from (seed, subject) alone; uniform over subjects."""
    digest = hashlib.sha256(f"{seed}\0{subject}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2 ** 64


def split_subjects(subjects, ratio, seed, given=None, twins=(), class_of=None):
    """Assigns each subject to training or test, in a given proportion.

    A subject is for training if its `position` is below the proportion: its side depends on
    (seed, subject) alone, so adding a scan or a subject moves nobody else. The proportion is
    therefore approximate. Neither side stays empty if both numbers of `ratio` are above 0 and
    there are two subjects: the subject nearest to the threshold changes sides.

    :param subjects: names, repeated or not, in any order
    :param ratio: (train, test)
    :param given: {subject: side} of subjects whose side is known
    :param twins: sets of subjects who share an image: they stay on one side
    :param class_of: {subject: class}: meet the proportion exactly within each class, by the order
        of the positions; None: not
    :return: Split
    :raises UserError: subjects who share an image are given different sides
    """
    given = given or {}
    groups = _groups(sorted(set(subjects)), twins)
    side_of, free = {}, []
    for group in groups:
        sides = {given[subject] for subject in group if subject in given}
        if len(sides) > 1:
            raise UserError(f"{tables.some(group)} have the same image, but are on different sides "
                            "of the split that is given; take one out")
        if sides:
            side_of |= dict.fromkeys(group, sides.pop())
        else:
            free.append((position(seed, group[0]), group))
    threshold = ratio[0] / sum(ratio)
    if class_of is None:
        trained = {group[0] for place, group in free if place < threshold}
    else:
        trained = _stratified(free, threshold, class_of)
    for _, group in free:
        side_of |= dict.fromkeys(group, "train" if group[0] in trained else "test")
    notes = _fill_empty_side(side_of, free, ratio, threshold)
    return Split(side_of, notes)


def _groups(subjects, twins):
    """Subjects in groups that stay together: lists of names, sorted."""
    parent = {subject: subject for subject in subjects}

    def root(subject):
        while parent[subject] != subject:
            subject = parent[subject]
        return subject

    for same in twins:
        first, *others = sorted(same)
        for other in others:
            a, b = sorted((root(first), root(other)))
            parent[b] = a
    groups = defaultdict(list)
    for subject in subjects:
        groups[root(subject)].append(subject)
    return list(groups.values())


def _stratified(free, threshold, class_of):
    """First names of the groups that are trained on: of each class, the first by position."""
    strata = defaultdict(list)
    for place, group in free:
        strata[class_of[group[0]]].append((place, group[0]))
    trained = set()
    for members in strata.values():
        count = int(len(members) * threshold + 0.5)
        trained |= {name for _, name in sorted(members)[:count]}
    return trained


def _fill_empty_side(side_of, free, ratio, threshold):
    """Moves one group where a side that was asked for is empty; lines about it."""
    sides = set(side_of.values())
    wanted = [side for side, share in zip(("train", "test"), ratio) if share and side not in sides]
    if not wanted:
        return ()
    side = wanted[0]
    if not free or (side == "test" and len(free) < 2):
        return ()                        # nobody can be moved
    _, group = min(free, key=lambda item: (abs(item[0] - threshold), item[1]))
    side_of |= dict.fromkeys(group, side)
    return (f"no subject fell to the {side} side by --seed; {', '.join(group)} was moved there",)


# ------------------------------------------------------------------------------------ given sides

def given_sides(scans, source):
    """The sides that --split-from, or the column `split` of the list of scans, gives to subjects.

    :param scans: list of Scan
    :param source: table with a column `split`, or data folder; None: the scans' own `split`
    :return: Split, of the subjects whose side is given
    :raises UserError: unreadable, another word than train, val or test, or one subject on two sides
    """
    if source is None:
        return Split(_one_side_each(scans, {scan.id: scan.split for scan in scans}, "--input"))
    source = Path(source)
    flag = f"--split-from {source}"
    if source.is_dir() or source.name in manifest.FILE_NAMES:
        _, entries = manifest.read_manifest(source)
        known = {entry["subject"]: entry["split"] for entry in entries}
        found = {scan.id: known.get(scan.subject) for scan in scans}
        notes = ()
    else:
        table = tables.read_table(source)
        column = table.find_column(("split",))
        if column is None:
            raise UserError(f"{flag}: has no column `split`; its columns are "
                            f"{', '.join(table.columns) or 'none'}")
        matches = tables.match_rows(scans, table, "--split-from")
        found = tables.values_of(scans, matches, column, "--split-from", source)
        notes = matches.notes
    side_of = _one_side_each(scans, found, flag)
    others = sorted({scan.subject for scan in scans} - set(side_of))
    if not side_of:
        raise UserError(f"{flag}: names none of the subjects, who are {tables.some(others)}")
    if others:
        notes += (f"{flag}: does not name {len(others)} subjects, {tables.some(others)}; "
                  "--split and --seed assign them",)
    return Split(side_of, notes)


def _one_side_each(scans, side_of_scan, flag):
    """{subject: side}; the sides of a subject's scans must be the same."""
    side_of = {}
    for scan in scans:
        text = side_of_scan[scan.id]
        if text is None:
            continue
        side = SIDES.get(text.lower())
        if side is None:
            raise UserError(f"{flag}: split {text!r} of {scan.id}: must be train, val or test")
        if side_of.setdefault(scan.subject, side) != side:
            raise UserError(f"{flag}: {scan.subject} is on two sides, {side_of[scan.subject]} and "
                            f"{side}; a subject's scans belong on one")
    return side_of
