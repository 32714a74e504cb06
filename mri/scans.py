"""."""
import csv
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from mri.nifti import SUFFIXES, stem
from utils.errors import UserError
from utils.files import is_safe_name

MAX_TSV = 2 ** 26  # bytes


@dataclass(frozen=True)
class Scan:
    """Where a scan is, and whose it is."""
    id: str         # unique in the cohort; names its files
    subject: str    # one person may have several scans
    path: Path


def find_scans(source, flag="--input"):
    """The scans of a folder, a glob pattern or a TSV, sorted by id.

    In a folder, searched with its subfolders, a BIDS tree is known by its `*_T1w` files: those alone are taken, and
    derivatives/ and sourcedata/ are left out. A TSV has a column `path` (relative to the TSV), and may have `id` and
    `subject` (or `participant_id`). Else the id is the file's name, the subject its BIDS entity `sub-…`, or the id.

    :raises UserError: no scans, two of one id, a TSV without the column, an id that cannot name a file
    """
    source = str(source)
    if source.endswith(".tsv"):
        scans = _scans_of_tsv(Path(source))
    else:
        if Path(source).is_dir():
            root = Path(source)
            paths = [p for p in root.rglob("*") if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
            if any(stem(p).endswith("_T1w") for p in paths):
                derived = {"derivatives", "sourcedata"}
                paths = [p for p in paths if stem(p).endswith("_T1w") and not derived & set(p.relative_to(root).parts)]
        elif Path(source).is_file():
            paths = [Path(source)]
        else:
            paths = [Path(p) for p in glob.glob(source, recursive=True) if p.endswith(SUFFIXES)]
        scans = [Scan(stem(p), _bids_subject(p) or stem(p), p) for p in paths]
    if not scans:
        raise UserError(f"{flag} {source}: no .nii or .nii.gz (or .hdr, .mgz) files; name a folder, a glob in quotes, or a .tsv")
    seen = {}
    for scan in scans:
        if not is_safe_name(scan.id):
            raise UserError(f"{scan.path}: its id {scan.id!r} cannot name a file; give another in a TSV's column `id`")
        if scan.id in seen:
            raise UserError(f"{scan.path}: has the id {scan.id!r} of {seen[scan.id]} too; "
                            "rename one, or list both in a TSV with columns `path` and `id`")
        seen[scan.id] = scan.path
    return sorted(scans, key=lambda s: s.id)


def _scans_of_tsv(path):
    rows = read_tsv(path)
    if rows and "path" not in rows[0]:
        raise UserError(f"{path}: has no column `path`; its columns are {', '.join(rows[0])}")
    scans = []
    for row in rows:
        file = path.parent / row["path"]
        scan_id = row.get("id") or stem(file)
        subject = row.get("subject") or row.get("participant_id") or _bids_subject(file) or scan_id
        scans.append(Scan(scan_id, subject, file))
    return scans


def read_tsv(path):
    """The rows of a tab-separated file as dicts. Raises UserError when it cannot be read as one."""
    try:
        if Path(path).stat().st_size > MAX_TSV:
            raise UserError(f"{path}: larger than the {MAX_TSV >> 20} MiB that are read; is it a table?")
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
    found = re.match(r"(sub-[A-Za-z0-9]+)(?:_|$)", stem(path))
    return found and found[1]
