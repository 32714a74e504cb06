"""A reader study: the page on which readers rate volumes, its key, and the answers it saves.

The page holds no name, number or order that depends on which set a volume is of: cases are in
random order, and packed to one length. The key, in its own file, says what they are.
"""
import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reporting import packed_volumes
from reporting.page import embedded_json, embedded_text, page, web_file
from utils.errors import UserError
from utils.escaping import printable
from utils.files import read_json
from utils.progress import progress

PAGE_FILE = "reader-study.html"
KEY_FILE = "key.json"
KEY_FORMAT = "mosaicdit-reader-study-key"
KEY_VERSION = 1
SETS = ("real", "synthetic")
RATINGS = ("definitely real", "probably real", "cannot tell", "probably synthetic",
           "definitely synthetic")      # 1 to 5
COLUMNS = ("study", "reader", "case", "rating", "seconds")  # of the page's CSV file
STYLES = ("page.css", "volumes.css", "reader_study.css")
SCRIPTS = ("volumes.js", "reader_study.js")
MAX_ANSWER_BYTES = 2 ** 22
ID_DIGITS = 16          # of the hash that names a study


# ------------------------------------------------------------------------------------ the page

def draw_cases(sets, per_set, seed):
    """Which volumes are shown, in the order in which they are.

    :param sets: {"real": VolumeSet, "synthetic": VolumeSet}
    :param per_set: number of volumes of each set; each is of another subject
    :return: list of (name of the set, index in it)
    :raises UserError: a set has too few subjects
    """
    rng = np.random.default_rng(seed)
    cases = []
    for name in SETS:
        subjects = np.array(sets[name].subjects)
        names = np.unique(subjects)
        if not 1 <= per_set <= len(names):
            raise UserError(f"--reader-study {per_set}: must be 1 to {len(names)}, the number of "
                            f"subjects in {sets[name].flag} {sets[name].path}")
        for subject in rng.permutation(names)[:per_set]:
            cases.append((name, int(rng.choice(np.flatnonzero(subjects == subject)))))
    return [cases[k] for k in rng.permutation(len(cases))]


def study_page(volumes, voxel_sizes, seed):
    """The page of a study and the id of the study.

    The id is a hash of the volumes as the page shows them, so it tells nothing else.

    :param volumes: of the cases, in order, (D, D, D) uint8
    :param voxel_sizes: mm, (3,), with which all of them are shown
    :param seed: of the padding
    :return: HTML, id
    """
    digest, streams = hashlib.sha256(), []
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume))
        streams.append(packed_volumes.deflate(volume))
        side = len(volume)
    study = digest.hexdigest()[:ID_DIGITS]
    rng = np.random.default_rng([seed, len(streams)])
    texts = packed_volumes.padded_to_one_length(streams, rng)
    cases = [case_name(k) for k in range(len(texts))]
    description = {"study": study, "side": side, "cases": cases, "ratings": RATINGS,
                   "voxel_mm": [round(float(size), 3) for size in voxel_sizes],
                   "columns": COLUMNS}
    body = "\n".join((
        web_file("reader_study.html"), embedded_json("study-description", description),
        *(embedded_text(name, text) for name, text in zip(cases, texts))))
    return page(body, "Reader study", STYLES, SCRIPTS), study


def case_name(index):
    """The name of a case on the page and in the answers: "case-001" is the first."""
    return f"case-{index + 1:03d}"


def make(sets, per_set, seed):
    """A study's page and key.

    :param sets: {"real": VolumeSet, "synthetic": VolumeSet}
    :return: HTML, content of key.json
    :raises UserError: a set has too few subjects, or volumes of another size
    """
    drawn = draw_cases(sets, per_set, seed)
    volumes = (_read_checked(sets[name], i) for name, i in progress(drawn, "volumes of the study"))
    text, study = study_page(volumes, sets["real"].voxel_sizes, seed)
    cases = [{"case": case_name(k), "set": name, "id": sets[name].ids[i],
              "subject": sets[name].subjects[i]} for k, (name, i) in enumerate(drawn)]
    key = {"format": KEY_FORMAT, "version": KEY_VERSION, "study": study, "seed": seed,
           "sets": {name: sets[name].path for name in SETS}, "cases": cases}
    return text, key


def _read_checked(found, i):
    """One volume of a VolumeSet, of the size that the set's first has."""
    volume = found.read(i)
    if volume.shape != (found.side,) * 3:
        raise UserError(f"{found.flag} {found.path}: {found.ids[i]} is {volume.shape}, others have "
                        f"{found.side} voxels a side; preprocess them to one --size")
    return volume


def summary(folder, key, text):
    """What was written, as a line for the terminal."""
    return (f"{folder}: {PAGE_FILE}, {len(key['cases'])} cases, {len(text) / 1e6:.3g} MB, study "
            f"{key['study']}, for readers; {KEY_FILE}, which they must not see")


# ------------------------------------------------------------------------------ key and answers

@dataclass(frozen=True)
class Answers:
    """What one reader answered."""
    reader: str
    ratings: dict       # {case: 1 … 5}; cases that were not rated are absent


def read_key(path):
    """{case: whether it is synthetic} and the id of a study.

    :raises UserError: no such file, or not a key
    """
    if not Path(path).is_file():
        raise UserError(f"--key {path}: no such file; it is the {KEY_FILE} that was written beside "
                        "the page")
    content = read_json(path)
    try:
        if content["format"] != KEY_FORMAT or content["version"] != KEY_VERSION:
            raise KeyError
        truth = {case["case"]: SETS.index(case["set"]) == 1 for case in content["cases"]}
        study = content["study"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--key {path}: not the key of a reader study, {KEY_FILE}") from None
    if len(set(truth.values())) < 2:
        raise UserError(f"--key {path}: lists no real or no synthetic case; it must be as it was "
                        "written")
    return truth, study


def read_answers(path, truth, study):
    """The answers of one reader.

    :param path: CSV file that the page saved
    :param truth, study: of `read_key`
    :return: Answers
    :raises UserError: not such a file, of another study, or without a rating
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--score {path}: no such file")
    if path.stat().st_size > MAX_ANSWER_BYTES:
        raise UserError(f"--score {path}: too large for the answers of a reader study")
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"--score {path}: no CSV file in UTF-8 ({e})") from None
    if not rows or not set(COLUMNS) - {"seconds"} <= set(rows[0]):
        raise UserError(f"--score {path}: needs the columns {', '.join(COLUMNS)}, as the page of "
                        "the study saves them")
    other = next((row["study"] for row in rows if row["study"] != study), None)
    if other is not None:
        raise UserError(f"--score {path}: of the study {printable(other)}, and --key is of "
                        f"{study}; name the key of the same study")
    ratings = {}
    for row in rows:
        if row["rating"]:
            ratings[_checked_case(path, row, truth, ratings)] = _checked_rating(path, row)
    if not ratings:
        raise UserError(f"--score {path}: no case is rated")
    reader = " ".join((rows[0]["reader"] or "").split()).lstrip("'")
    return Answers(printable(reader or path.stem), ratings)


def read_all_answers(paths, truth, study):
    """The answers of several readers, whose names differ.

    :return: list of Answers
    :raises UserError: see `read_answers`; or two files of the same reader
    """
    found = [read_answers(path, truth, study) for path in paths]
    by_name = {}
    for path, answers in zip(paths, found):
        if answers.reader in by_name:
            raise UserError(f"--score {path}: of the reader {answers.reader!r}, as "
                            f"{by_name[answers.reader]}; leave one out, or change the column "
                            "reader")
        by_name[answers.reader] = path
    return found


def _checked_case(path, row, truth, ratings):
    if row["case"] not in truth:
        raise UserError(f"--score {path}: case {printable(row['case'])!r} is not in the key")
    if row["case"] in ratings:
        raise UserError(f"--score {path}: {row['case']} is rated twice; leave one row")
    return row["case"]


def _checked_rating(path, row):
    if row["rating"].strip() not in map(str, range(1, len(RATINGS) + 1)):
        raise UserError(f"--score {path}: {row['case']} has the rating "
                        f"{printable(row['rating'])!r}; must be 1 to {len(RATINGS)}")
    return int(row["rating"])
