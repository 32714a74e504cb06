"""Which files of a folder, or of a glob pattern, are scans; and what was left out, and why."""
import glob
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from mri import not_a_scan, subjects, tables
from mri.scan_formats import format_of, is_scan_name, needs_affine, stem, suffix_phrase
from utils.errors import UserError

BIDS_DERIVED_FOLDERS = {"derivatives", "sourcedata"}
BIDS_SUFFIX = "T1w"            # that is taken where --suffix does not say otherwise
FREESURFER_FOLDER = "mri"      # of a subject, in a SUBJECTS_DIR
FREESURFER_VOLUME = "T1"       # of it, likewise
NATIVE = "native"              # --space of files whose names have no space-…
DICOM_SUFFIXES = (".dcm", ".ima")
MAX_FILES_LOOKED_INTO = 50     # for DICOM, where no scan is found


@dataclass(frozen=True)
class Choice:
    """Which scans of a tree are wanted; None: no choice was made."""
    suffix: str | None = None    # "T1w" of sub-01_ses-1_T1w.nii.gz
    session: str | None = None   # "1" or "ses-1"
    run: str | None = None
    space: str | None = None     # "MNI152Lin", or NATIVE
    has_affine: bool = False     # whether scans in formats without an affine have one


@dataclass
class FoundFiles:
    """The files that are scans."""
    paths: list = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)   # {reason: number of files}
    notes: list = field(default_factory=list)            # lines for a person
    warnings: list = field(default_factory=list)         # lines that a person should not miss


def find_files(source, choice, flag):
    """The scans of a folder, searched with its subfolders, of a glob pattern, or a single file.

    :param source: text
    :param choice: Choice
    :param flag: that named it, for errors
    :return: FoundFiles
    :raises UserError: none, or what is wanted is not there or not clear
    """
    found = FoundFiles()
    folder = Path(source)
    if folder.is_file():
        found.paths = [folder]
        return found
    if folder.is_dir():
        files = walk(folder, found)
    else:
        files = [Path(name) for name in sorted(glob.glob(source, recursive=True))]
        files = [path for path in files if not path.is_dir()]
    found.paths = _named_as_scans(files, found)
    if not found.paths:
        raise UserError(f"{flag} {source}: no {suffix_phrase()} files; {_what_instead(files)}")
    if folder.is_dir():
        _leave_out_derived(folder, found)
    _choose_suffix(folder, found, choice, f"{flag} {source}")
    for key, value in (("ses", choice.session), ("run", choice.run)):
        if value is not None:
            _choose_entity(found, key, value, f"{flag} {source}")
    _choose_space(found, choice.space, f"{flag} {source}")
    _leave_out_without_affine(found, choice)
    return found


# -------------------------------------------------------------------------------------- the walk

def walk(folder, found):
    """All files below a folder, sorted; links to folders are followed, each folder once."""
    files, waiting, seen = [], [folder], set()
    while waiting:
        current = waiting.pop()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in seen:
                found.left_out["folders linked a second time"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as e:
            if current == folder:
                raise
            found.warnings.append(f"{current}: cannot be searched ({e.strerror}); its scans are "
                                  "left out")
            found.left_out["folders that cannot be read"] += 1
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                found.left_out["hidden (.name)"] += 1
            elif _is_folder(entry):
                folders.append(Path(entry.path))
            else:
                files.append(Path(entry.path))
        waiting.extend(reversed(folders))
    return sorted(files)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:                      # a link in a circle, or into a folder without permission
        return False


def _named_as_scans(files, found):
    """The files whose names are those of scans; counts the others by suffix."""
    known = set(files)
    scans = []
    for path in files:
        if is_scan_name(path):
            scans.append(path)
        elif not _is_second_half(path, known):
            suffix = path.suffix.lower() or "without a suffix"
            what = "DICOM, which --dicom converts" if suffix in DICOM_SUFFIXES else "not a scan"
            found.left_out[f"{what} ({suffix})"] += 1
    return scans


def _is_second_half(path, known):
    """Whether a file holds the voxels of a pair whose header is there."""
    if format_of(path) is None:
        return False
    return any(path.with_name(stem(path) + suffix) in known
               for suffix in (".hdr", ".hdr.gz", ".HDR", ".hdr.GZ"))


def _what_instead(files):
    """What to do where there is no scan, the end of an error."""
    if any(is_dicom(path) for path in files[:MAX_FILES_LOOKED_INTO]):
        return "it has DICOM files, which --dicom converts"
    what = "name a folder, a glob in quotes, or a .tsv"
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in files)
    if suffixes:
        listed = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes.most_common(5))
        what += f"; it has {listed}"
    return what


def is_dicom(path):
    """Whether a file is named as a DICOM file, or begins like one."""
    if path.name.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        if not path.is_file():           # a pipe would never end
            return False
        with open(path, "rb") as f:
            return not_a_scan.is_dicom(f.read(not_a_scan.HEAD_BYTES))
    except OSError:
        return False


# ------------------------------------------------------------------------------------- the choice

def _keep(found, is_wanted, reason):
    """Keeps the files that a function wants; counts the others under reason(path)."""
    kept = []
    for path in found.paths:
        if is_wanted(path):
            kept.append(path)
        else:
            found.left_out[reason(path)] += 1
    found.paths = kept


def _leave_out_derived(folder, found):
    """Leaves out derivatives/ and sourcedata/ of a BIDS tree, unless nothing else is there."""
    def is_derived(path):
        return bool(BIDS_DERIVED_FOLDERS & set(path.relative_to(folder).parts[:-1]))

    if _is_bids(folder, found.paths) and not all(map(is_derived, found.paths)):
        _keep(found, lambda path: not is_derived(path), lambda path: "in derivatives/, sourcedata/")


def _choose_suffix(folder, found, choice, source):
    """Takes the files of one suffix: the one that is wanted, or that of the kind of tree."""
    wanted, tree = choice.suffix, "a folder"
    if folder.is_dir() and _is_bids(folder, found.paths):
        wanted, tree = wanted or BIDS_SUFFIX, "a BIDS tree"
    elif folder.is_dir() and _is_freesurfer(found.paths):
        wanted, tree = wanted or FREESURFER_VOLUME, "FreeSurfer's SUBJECTS_DIR"
    if wanted is None:
        _note_endings(found)
        return
    wanted = wanted.lstrip("_")

    def is_wanted(path):
        return suffix_of(path).lower() == wanted.lower()

    others = Counter(suffix_of(path) for path in found.paths if not is_wanted(path))
    _keep(found, is_wanted,
          lambda path: f"*_{suffix_of(path)}" if "_" in stem(path) else stem(path))
    listed = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
    if not found.paths:
        raise UserError(f"{source}: {tree} without {wanted} files; it has {listed}: choose with "
                        "--suffix")
    if choice.suffix is None and others:
        found.notes.append(f"{source}: {tree}, of which {wanted} files are taken; it also has "
                           f"{listed} (--suffix)")


def suffix_of(path):
    """The last part of a file's name: "T1w" of sub-01_T1w.nii.gz; the whole name without "_"."""
    return stem(path).rsplit("_", 1)[-1]


def _is_bids(folder, paths):
    """Whether names are BIDS' ones: sub-…_suffix in such a tree, or some that end in _T1w."""
    if any(stem(path).lower().endswith("_" + BIDS_SUFFIX.lower()) for path in paths):
        return True
    is_tree = (folder / "dataset_description.json").is_file() or any(
        part.startswith("sub-") for path in paths
        for part in (folder.name, *path.relative_to(folder).parts[:-1]))
    return is_tree and any(re.match(r"sub-[^_]+_", path.name) for path in paths)


def _is_freesurfer(paths):
    """Whether there are mri/T1.mgz files beside other volumes."""
    inside = {stem(path) for path in paths if path.parent.name == FREESURFER_FOLDER}
    return FREESURFER_VOLUME in inside and len(inside) > 1


def _note_endings(found):
    """A note where names differ in their endings alone, as those of BraTS: _t1, _t2, _flair."""
    endings = defaultdict(set)
    for path in found.paths:
        beginning, _, ending = stem(path).rpartition("_")
        if beginning:
            endings[beginning].add(ending)
    shared = Counter(ending for group in endings.values() if len(group) > 1 for ending in group)
    if len(endings) > 1 and len([ending for ending, count in shared.items() if count > 1]) > 1:
        listed = ", ".join(f"{ending} ({count})" for ending, count in shared.most_common(5))
        found.warnings.append("several files of one name that differ in its end are taken as "
                              f"scans: {listed}; --suffix takes one kind")


def _choose_entity(found, key, value, source):
    """Takes the files of one session or run."""
    names = {path: subjects.entity_of(path.parts, key) for path in found.paths}
    wanted = tables.plain_session(value.removeprefix(f"{key}-"))
    have = Counter(name or "none" for name in names.values())

    def is_wanted(path):
        name = names[path]
        return name is not None and tables.plain_session(name.removeprefix(f"{key}-")) == wanted

    _keep(found, is_wanted, lambda path: f"of another {key} ({names[path] or 'none'})")
    if not found.paths:
        listed = ", ".join(f"{name} ({count})" for name, count in have.most_common(5))
        raise UserError(f"{source}: no scan of {key}-{value}; there are {listed}")


def _choose_space(found, space, source):
    """Takes the files of one space; asks where scans are there in several."""
    spaces = {path: (subjects.entity_of((path.name,), "space") or "").removeprefix("space-")
              or NATIVE for path in found.paths}
    have = Counter(spaces.values())
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(have.items()))
    if space is None:
        of_scan = defaultdict(set)
        for path, name in spaces.items():
            of_scan[path.parent, re.sub(r"_space-[^_]+", "", path.name)].add(name)
        if any(len(names) > 1 for names in of_scan.values()):
            raise UserError(f"{source}: the same scans in several spaces, {listed}; choose one "
                            "with --space NAME")
        return
    wanted = space.removeprefix("space-").lower()
    _keep(found, lambda path: spaces[path].lower() == wanted,
          lambda path: f"in another space ({spaces[path]})")
    if not found.paths:
        raise UserError(f"{source}: no scan in the space {space}; there are {listed}")


def _leave_out_without_affine(found, choice):
    """Leaves out .npy files among scans that have an affine, unless one was given for them."""
    without = [path for path in found.paths if needs_affine(path)]
    if not choice.has_affine and len(without) < len(found.paths):
        _keep(found, lambda path: not needs_affine(path),
              lambda path: f"without an affine ({path.suffix.lower()}; --affine says where they "
              "lie)")
