"""Which scans a cohort has: found in a folder, by a glob pattern, or listed in a TSV."""
import csv
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from mri.scan_formats import SCAN_SUFFIXES, stem, suffix_phrase
from utils.errors import UserError
from utils.files import is_safe_name

MAX_TSV_BYTES = 2 ** 26
BIDS_DERIVED_FOLDERS = {"derivatives", "sourcedata"}


@dataclass(frozen=True)
class Scan:
    """Where a scan is, and of whom."""
    id: str         # unique in the cohort; names its files
    subject: str    # one person may have several scans
    path: Path


def find_scans(source, flag="--input"):
    """The scans of a folder, a glob pattern, a file or a TSV, sorted by id.

    In a folder, searched with its subfolders, a BIDS tree is recognized by its `*_T1w` files: these
    alone are taken, and derivatives/ and sourcedata/ are left out. A TSV has a column `path`
    (relative to the TSV), and may have `id` and `subject` (or `participant_id`). Otherwise the id
    is the file's name, and the subject its BIDS entity `sub-…`, or the id.

    :param source: path or pattern
    :param flag: that named it, for errors
    :return: list of Scan
    :raises UserError: no scans, two with one id, a TSV without the column, an id that cannot name a
        file
    """
    source = str(source)
    if source.endswith(".tsv"):
        scans = _scans_in_tsv(Path(source))
    else:
        scans = [Scan(stem(path), _bids_subject(path) or stem(path), path)
                 for path in _scan_paths(source)]
    if not scans:
        raise UserError(f"{flag} {source}: no {suffix_phrase()} files; name a folder, a glob in "
                        "quotes, or a .tsv")
    _check_ids(scans)
    return sorted(scans, key=lambda scan: scan.id)


def _scan_paths(source):
    if Path(source).is_dir():
        return _paths_in_folder(Path(source))
    if Path(source).is_file():
        return [Path(source)]
    return [Path(name) for name in glob.glob(source, recursive=True)
            if name.endswith(SCAN_SUFFIXES)]


def _paths_in_folder(folder):
    paths = [path for path in folder.rglob("*")
             if path.name.endswith(SCAN_SUFFIXES) and not path.name.startswith(".")]
    t1_weighted = [path for path in paths if stem(path).endswith("_T1w")]
    if not t1_weighted:
        return paths
    return [path for path in t1_weighted
            if not BIDS_DERIVED_FOLDERS & set(path.relative_to(folder).parts)]


def _scans_in_tsv(path):
    rows = read_tsv(path)
    if rows and "path" not in rows[0]:
        raise UserError(f"{path}: has no column `path`; its columns are {', '.join(rows[0])}")
    scans = []
    for row in rows:
        file = path.parent / row["path"]
        scan_id = row.get("id") or stem(file)
        subject = (row.get("subject") or row.get("participant_id") or _bids_subject(file)
                   or scan_id)
        scans.append(Scan(scan_id, subject, file))
    return scans


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


def read_tsv(path):
    """The rows of a tab-separated file.

    :return: list of {column: cell}
    :raises UserError: missing, too large, or not a tab-separated table
    """
    try:
        if Path(path).stat().st_size > MAX_TSV_BYTES:
            raise UserError(f"{path}: larger than the {MAX_TSV_BYTES >> 20} MiB that are read; "
                            "is it a table?")
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f, delimiter="\t", restval="", strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: not a tab-separated text file ({e})") from None
    if any(None in row for row in rows):
        raise UserError(f"{path}: a row has more cells than the header; is it tab-separated?")
    return rows


def _bids_subject(path):
    """The entity sub-… that a file's name starts with, or None."""
    found = re.match(r"(sub-[A-Za-z0-9]+)(?:_|$)", stem(path))
    return found and found[1]
