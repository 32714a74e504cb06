"""Tables of structures' volumes as SynthSeg, FreeSurfer and FastSurfer write them, unedited.

SynthSeg: the CSV of `--vol`, and that of `--qc`. FreeSurfer and FastSurfer: what asegstats2table
writes, aseg.stats files, or a folder that is searched for them (a SUBJECTS_DIR). Hemispheres are
summed, mm³ become ml.
"""
import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mri import tables
from mri.structures import STRUCTURES
from utils.errors import UserError
from utils.files import sha256_of_file
from utils.shared_folders import open_regular

STATS_NAME = "aseg.stats"
MAX_STATS_BYTES = 2 ** 20
SUBJECT_COLUMNS = ("subject", "measure:volume", "id")
QC_COLUMNS = ("general white matter", "hippocampus+amygdala")   # that only scores have
MM3_PER_ML = 1000
# how a column gives a structure, the best last: hemispheres by FreeSurfer's surfaces are in all of
# its tables, and by voxels in some, beside them
TOTAL, VOXELS_OF_SIDE, MEASURE_OF_SIDE = range(3)

# names as `_plain` leaves them, where they are not those of STRUCTURES
NAMES = {
    "inf_lat_vent": "inferior_lateral_ventricle", "thalamus_proper": "thalamus",
    "ventraldc": "ventral_dc", "brainstem": "brain_stem", "cortexvol": "cerebral_cortex",
    "cerebralwhitemattervol": "cerebral_white_matter",
    "corticalwhitemattervol": "cerebral_white_matter"}


@dataclass
class AnatomyTable:
    """What tables say of the volumes of a set."""
    flag: str
    volumes: dict = field(default_factory=dict)   # {subject: {structure: ml}}
    scores: dict = field(default_factory=dict)    # {subject: lowest QC score, 0…1}
    paths: list = field(default_factory=list)


def read_anatomy_tables(paths, flag):
    """Reads all tables of one side.

    :param paths: of files and folders
    :param flag: that named them, for errors
    :return: AnatomyTable
    :raises UserError: one cannot be read, or none holds volumes of structures
    """
    out = AnatomyTable(flag)
    for path in map(Path, paths):
        found = _files(path)
        if not found:
            raise UserError(f"{flag} {path}: a folder without {STATS_NAME} files; name the table "
                            "itself, or a SUBJECTS_DIR")
        for file in found:
            out.paths.append(str(file))
            if file.suffix == ".stats":
                _read_stats(file, out)
            else:
                _read_table(file, out)
    if not out.volumes:
        what = ("holds scores but no volumes; give the file of SynthSeg's volumes, too"
                if out.scores else "none of its rows holds a volume")
        raise UserError(f"{flag} {' '.join(map(str, paths))}: {what}")
    return out


def checksum(paths):
    """SHA-256 of all files that `read_anatomy_tables` would read, in hex.

    :raises UserError: one is no regular file
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in _files(path):
            digest.update(sha256_of_file(file).encode() if file.exists() else b"absent")
    return digest.hexdigest()


def _files(path):
    """The tables that a path stands for: itself, or what a folder holds."""
    return sorted(path.rglob(STATS_NAME)) if path.is_dir() else [path]


def _read_table(path, out):
    """A table with a row per subject: SynthSeg's, or asegstats2table's."""
    table = tables.read_table(path)
    key = table.find_column(SUBJECT_COLUMNS)
    if key is None:
        raise UserError(f"{out.flag} {path}: has no column subject or Measure:volume; it is "
                        "neither a table of SynthSeg nor of asegstats2table")
    others = [column for column in table.columns if column != key]
    if set(QC_COLUMNS) <= {column.lower() for column in others}:
        for row in table.rows:
            subject = _subject(row[key])
            _refuse_second_row(out.scores, subject, out, path)
            scores = [_number(row[column], path) for column in others]
            out.scores[subject] = float(np.min(scores))     # NaN if one is missing
        return
    structure_of = {column: found for column in others if (found := _structure(column))}
    if not structure_of:
        raise UserError(f"{out.flag} {path}: none of its columns is the volume of a structure; "
                        f"they are {tables.some(others)}")
    in_ml = "mm" not in key.lower() and set(STRUCTURES) & set(others)    # a table of our own
    for row in table.rows:
        values = [(structure_of[column], column, _number(row[column], path))
                  for column in structure_of]
        _add(out, path, _subject(row[key]), values, 1 if in_ml else MM3_PER_ML)


def _read_stats(path, out):
    """An aseg.stats file: measures in its comments, a row per structure below."""
    with open_regular(path) as f:
        text = f.read(MAX_STATS_BYTES).decode("utf-8", "replace")
    subject, values = None, []
    for line in text.splitlines():
        cells = line.split()
        if line.startswith("# subjectname"):
            subject = cells[-1]
        elif line.startswith("# Measure"):
            parts = [part.strip() for part in line.removeprefix("# Measure").split(",")]
            if len(parts) >= 4 and (found := _structure(parts[1])):
                values.append((found, parts[1], _number(parts[3], path)))
        elif cells and not line.startswith("#") and len(cells) >= 5:
            if found := _structure(cells[4]):
                values.append((found, cells[4], _number(cells[3], path)))
    if not values:
        raise UserError(f"{out.flag} {path}: holds no volumes of structures; is it an aseg.stats "
                        "file?")
    if subject is None:
        subject = path.parent.parent.name              # SUBJECTS_DIR/subject/stats/aseg.stats
    _add(out, path, subject, values, MM3_PER_ML)


def _add(out, path, subject, values, unit):
    """Sums hemispheres, which count once however they are given; a row without a volume is none.

    :param values: list of (structure, column, number), NaN where it is missing
    """
    _refuse_second_row(out.volumes, subject, out, path)
    sums = {}       # {structure: {how it is given: ml}}
    for structure, column, value in values:
        if value < 0 or value == math.inf:
            raise UserError(f"{out.flag} {path}: {column} of {subject} is {value:g}, which is no "
                            "volume")
        of_structure, how = sums.setdefault(structure, {}), _how_given(column)
        of_structure[how] = of_structure.get(how, 0) + value / unit
    known = {structure: {how: ml for how, ml in found.items() if not math.isnan(ml)}
             for structure, found in sums.items()}      # without what lacks a side
    volumes = {structure: found[max(found)] for structure, found in known.items() if found}
    if volumes:
        out.volumes[subject] = volumes


def _refuse_second_row(rows, subject, out, path):
    if subject in rows:
        raise UserError(f"{out.flag} {path}: a second row of {subject}; keep one")


def _how_given(column):
    """MEASURE_OF_SIDE: "lhCortexVol"; VOXELS_OF_SIDE: "Left-Thalamus"; TOTAL: "CortexVol"."""
    if re.match(r"[lr]h[A-Z]", column):
        return MEASURE_OF_SIDE
    return VOXELS_OF_SIDE if re.match(r"(?i)(left|right)[\s_-]", column) else TOTAL


def _structure(column):
    """The structure of STRUCTURES that a column holds, as any of the programs spells it; None."""
    text = re.sub(r"(?i)^(left|right)[\s_-]+", "", column.strip())
    text = re.sub(r"^[lr]h(?=[A-Z])", "", text)
    text = re.sub(r"[\s-]+", "_", text).lower()
    found = NAMES.get(text, text)
    return found if found in STRUCTURES else None


def _subject(cell):
    """A subject as the file's name without folders and suffixes; asegstats2table may add slashes"""
    name = cell.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", "", name)


def _number(cell, path):
    """NaN where it is missing."""
    if cell in tables.MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}: {cell!r} where a number should be") from None


def match(volume_set, found):
    """The rows of a set's volumes.

    By the volume's id or, failing that, its subject, tolerantly as `mri.tables.match_rows`.

    :param volume_set: VolumeSet
    :param found: AnatomyTable of it
    :return: list of subjects of the table, None where a volume has no row; lines for a person
    """
    rows = [{"id": subject} for subject in found.volumes]
    table = tables.Table(Path(found.paths[0]), ("id",), rows)
    volumes = [_Named(name, subject) for name, subject in zip(volume_set.ids, volume_set.subjects)]
    matches = tables.match_rows(volumes, table, found.flag)
    named = [matches.rows_of[name][0]["id"] if matches.rows_of[name] else None
             for name in volume_set.ids]
    notes = list(matches.notes)
    where = f"{found.flag} {found.paths[0]}"
    missing = [name for name, row in zip(volume_set.ids, named) if row is None]
    unused = [subject for subject in found.volumes if subject not in named]
    if missing:
        notes.append(f"{where}: has no row of {len(missing)} of {len(named)} volumes, which are "
                     f"left out of anatomy: {tables.some(missing)}")
    if unused:
        notes.append(f"{where}: {len(unused)} of its {len(found.volumes)} rows are of no volume "
                     f"that is compared, and left out: {tables.some(unused)}")
    return named, notes


@dataclass(frozen=True)
class _Named:
    """What `tables.match_rows` needs to know of a scan."""
    id: str
    subject: str
    session: str | None = None
