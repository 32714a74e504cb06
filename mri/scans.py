"""The scans of a cohort: found in a folder, by a glob pattern, or listed in a table; ids, subjects.
"""
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from mri import scan_search, subjects, tables
from mri.scan_formats import stem
from utils.errors import UserError
from utils.escaping import printable
from utils.files import is_safe_name

MAX_ID_CHARACTERS = 150
LIST_SUFFIXES = (".tsv", ".csv", *tables.SPREADSHEET_SUFFIXES)
PATH_COLUMN = "path"
ALL_SCANS = scan_search.Choice()
COLUMNS = {   # what a list of scans may say of each, and the names of that column, best first
    "id": ("id",),
    "subject": ("subject", "participant_id", "subject_id", "sub"),
    "session": ("session_id", "session", "ses"),
    "run": ("run",),
    "split": ("split",),
    "label": ("class",),
    "mask": ("mask",),
}


@dataclass(frozen=True)
class Scan:
    """Where a scan is, and of whom."""
    id: str         # unique in the cohort; names its files
    subject: str    # one person may have several scans
    path: Path
    session: str | None = None   # "ses-1"
    run: str | None = None       # "run-1"
    mask: Path | None = None     # from the column of a list
    label: str | None = None     # the class, likewise
    split: str | None = None     # likewise
    name: str | None = None      # of the file, where it cannot be the id
    source: Path | None = None   # what the file was converted from, where it is temporary
    sidecar: dict | None = None  # what the conversion says of it

    @property
    def lasting_path(self):
        """Where the scan is found again: what the file was converted from, or the file."""
        return self.source or self.path


@dataclass(frozen=True)
class FoundScans:
    """The scans that were asked for."""
    scans: list            # of Scan, sorted by id
    left_out: Counter      # {reason: number of files}
    notes: list            # lines for a person
    warnings: list         # lines that a person should not miss


def search(source, choice=ALL_SCANS, subject_pattern=None, id_pattern=None,
           masks_of=None, flag="--input", describe=None):
    """The scans of a folder, a glob pattern, a file or a list.

    A list is a table with a column `path` (relative to the table), and any of COLUMNS. Otherwise
    the id is the file's name, with its folders' where several files have one name, and the subject
    is what the path names (subjects.py), or the id.

    :param source: path or pattern
    :param choice: scan_search.Choice, which files of a tree are wanted
    :param subject_pattern, id_pattern: regular expressions that find subject and id in the path;
        their groups count where they have some, else all that matches
    :param masks_of: function of a list of scans -> set of the real paths of their masks, which are
        left out; None: no masks
    :param flag: that named the source, for errors
    :param describe: function of a Scan -> the Scan with what else is known of it; None: nothing is
    :return: FoundScans
    :raises UserError: no scans, two with one id, a list without the column, an id in it that cannot
        name a file, or a pattern that does not fit
    """
    source = os.fspath(source)
    if source.lower().endswith(LIST_SUFFIXES):
        found = scan_search.FoundFiles()
        scans = _scans_in_list(Path(source), found)
    else:
        found = scan_search.find_files(source, choice, flag)
        patterns = (compiled(subject_pattern, "--subject-pattern"),
                    compiled(id_pattern, "--id-pattern"))
        scans = [_scan_of_path(path, source, *patterns) for path in found.paths]
        scans = _without_masks(scans, masks_of, found)
        scans = _with_safe_ids(_with_unique_ids(scans, source), found)
    scans = _without_masks(scans, masks_of, found)
    if not scans:
        raise UserError(f"{flag} {source}: holds no scans; name a folder, a glob in quotes, or a "
                        ".tsv")
    if describe:
        scans = [describe(scan) for scan in scans]
    _check_ids(scans)
    prefix_note = subjects.shared_prefix_note(scans)
    if prefix_note:
        found.warnings.append(prefix_note)
    return FoundScans(sorted(scans, key=lambda scan: scan.id), found.left_out, found.notes,
                      found.warnings)


def real_path(path):
    """The path of a file without links; that of a link that leads nowhere, too."""
    return Path(os.path.realpath(path))


def _without_masks(scans, masks_of, found):
    if masks_of is None:
        return scans
    masks = masks_of(scans)
    kept = [scan for scan in scans if real_path(scan.path) not in masks]
    if len(kept) < len(scans):
        found.left_out["masks of other scans"] += len(scans) - len(kept)
    return kept


# ------------------------------------------------------------------------------ scans from a path

def _scan_of_path(path, source, subject_pattern, id_pattern):
    """The Scan of a file; its id may be another's, too, and not a safe name yet."""
    parts = _parts_below(path, source)
    parts = (*parts[:-1], stem(path))
    scan_id = _extract(id_pattern, path, "--id-pattern") or stem(path)
    subject = _extract(subject_pattern, path, "--subject-pattern") or subjects.subject_of(parts)
    return Scan(scan_id, subject or "", path, subjects.entity_of(parts, "ses"),
                subjects.entity_of(parts, "run"))


def _parts_below(path, source):
    """The parts of a path from the searched folder's own name on."""
    try:
        return (Path(source).name, *path.relative_to(source).parts)
    except ValueError:                   # found by a glob pattern
        return path.parts


def compiled(pattern, flag):
    """A regular expression that a flag gives; None for None.

    :raises UserError: it is none
    """
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as e:
        raise UserError(f"{flag} {pattern}: not a regular expression ({e})") from None


def _extract(pattern, path, flag):
    """What a pattern finds in a path: its groups joined by "_", or all that matches."""
    if pattern is None:
        return None
    found = pattern.search(path.as_posix())
    text = found and "_".join(filter(None, found.groups() or (found[0],)))
    if not text:
        raise UserError(f"{flag} {pattern.pattern}: finds nothing in {path}; it is searched in the "
                        "whole path")
    return text


def _with_unique_ids(scans, source):
    """Ids that are unique: where files have one name, the names of their folders are put before.

    Only the folders that distinguish these files count, the nearest first.
    """
    by_id = defaultdict(list)
    for scan in scans:
        by_id[scan.id].append(scan)
    out = []
    for scan_id, same in by_id.items():
        prefixes = _distinct_folders([_parts_below(scan.path, source)[:-1] for scan in same])
        out += [replace(scan, id="_".join((*prefix, scan_id)))
                for scan, prefix in zip(same, prefixes)]
    return out


def _distinct_folders(folders):
    """For each path, the tuple of its folders that distinguishes it from the others."""
    chosen = [()] * len(folders)
    for back in range(1, max(map(len, folders), default=0) + 1):
        if len(set(chosen)) == len(folders):
            break
        longer = [(parts[-back], *old) if back <= len(parts) else old
                  for parts, old in zip(folders, chosen)]
        if len(set(longer)) > len(set(chosen)):
            chosen = longer
    return chosen


def _with_safe_ids(scans, found):
    """Ids that can name a file, made from those that cannot; the subject is the id by default."""
    out, made = [], []
    for scan in scans:
        name = None
        safe = scan.id
        if not is_safe_name(safe):
            safe = re.sub(r"[^\w.+=-]+", "_", safe)[:MAX_ID_CHARACTERS]
            safe = safe if is_safe_name(safe) else f"_{safe}"
            name = printable(stem(scan.path))
            made.append(f"{printable(scan.id)} -> {safe}")
        out.append(replace(scan, id=safe, subject=printable(scan.subject or safe), name=name))
    if made:
        found.warnings.append(f"{len(made)} ids are not the files' names, which have blanks or "
                              f"signs: {tables.some(made)}")
    return out


# ------------------------------------------------------------------------------ scans from a list

def _scans_in_list(path, found):
    table = tables.read_table(path)
    if PATH_COLUMN not in table.columns:
        raise UserError(f"{path}: has no column `path`; its columns are "
                        f"{', '.join(table.columns) or 'none'}")
    column_of = {key: table.find_column(names) for key, names in COLUMNS.items()}
    unused = [column for column in table.columns
              if column != PATH_COLUMN and column not in column_of.values()]
    if unused:
        found.notes.append(f"{path}: columns that are not used: {', '.join(unused)}")
    used = [column for column in column_of.values() if column]
    if used:
        found.notes.append(f"{path}: columns that are used: {', '.join(('path', *used))}")
    scans = [_scan_of_row(path, number, row, column_of)
             for number, row in enumerate(table.rows, 2)]
    masked = sum(scan.mask is not None for scan in scans)
    if 0 < masked < len(scans):
        found.warnings.append(f"{path}: {len(scans) - masked} of {len(scans)} scans have no mask")
    return scans


def _scan_of_row(path, number, row, column_of):
    """The Scan of one row of a list."""
    def cell(key):
        column = column_of[key]
        text = row[column] if column else ""
        return None if text in tables.MISSING else text

    if row[PATH_COLUMN] in tables.MISSING:
        raise UserError(f"{path}: row {number} has no path")
    file = path.parent / row[PATH_COLUMN]
    parts = (*file.parts[:-1], stem(file))
    scan_id = cell("id") or stem(file)
    return Scan(
        id=scan_id,
        subject=cell("subject") or subjects.subject_of(parts) or scan_id,
        path=file,
        session=cell("session") or subjects.entity_of(parts, "ses"),
        run=cell("run") or subjects.entity_of(parts, "run"),
        mask=path.parent / cell("mask") if cell("mask") else None,
        label=cell("label"),
        split=cell("split"))


def _check_ids(scans):
    path_of = {}
    for scan in scans:
        if not is_safe_name(scan.id):
            raise UserError(f"{scan.path}: its id {scan.id!r} cannot name a file; give another in "
                            "column `id` of a TSV")
        if scan.id in path_of:
            raise UserError(f"{scan.path}: has the id {scan.id!r} of {path_of[scan.id]} too; "
                            "rename one, or list both in a TSV with columns `path` and `id`")
        path_of[scan.id] = scan.path
