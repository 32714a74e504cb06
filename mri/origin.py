"""Where the volumes of a folder come from: how they were made, of whom they are, and their classes.

A data folder (manifest.json) and a samples folder (samples.json) say it themselves. postprocess.py
takes it along into its folder of NIfTIs, as source.json:

    format, version, mosaicdit_version
    made_by     what samples.json holds besides its header, such as the recipe; {} for scans
    volumes     {id: {"class": name, "subject": name}} of its volumes
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

from mri import manifest
from utils.errors import UserError
from utils.files import is_safe_name, read_json, write_text
from utils.version import __version__

FILE_NAME = "source.json"
FORMAT = "mosaicdit-source"
FORMAT_VERSION = 1
MAX_SHOWN_CHARACTERS = 200      # of a value in a description
NOT_MADE_BY = {"format", "version", "samples", "volumes", *manifest.HEADER_KEYS}


@dataclass(frozen=True)
class Origin:
    """What is known of the volumes of a folder."""
    made_by: dict = field(default_factory=dict)     # of samples; {} for scans
    class_of: dict = field(default_factory=dict)    # {id: name}
    subject_of: dict = field(default_factory=dict)  # {id: name}
    listed: list | None = None                      # ids that samples.json lists


def read_origin(folder):
    """What a folder says of its volumes; an empty Origin if it says nothing.

    The folder nifti/ of a samples folder is described by the samples.json beside it.

    :param folder: data folder, samples folder, or a folder of NIfTI files; or the file of one that
        says it
    :raises UserError: a file that says it is damaged
    """
    folder = Path(folder)
    if folder.is_file():
        return _of_data_folder(folder) if manifest.read_manifest(folder)[1] else _of_samples(folder)
    if (folder / "manifest.json").is_file():
        return _of_data_folder(folder / "manifest.json")
    if (folder / "samples.json").is_file():
        return _of_samples(folder / "samples.json")
    if (folder / FILE_NAME).is_file():
        return _of_source_file(folder / FILE_NAME)
    beside = folder.resolve().parent / "samples.json"
    if folder.resolve().name == "nifti" and beside.is_file():
        return _of_samples(beside)
    return Origin()


def write_origin(folder, origin, ids):
    """Writes source.json for the volumes of these ids; the inverse of `read_origin`."""
    volumes = {}
    for volume_id in ids:
        known = {"class": origin.class_of.get(volume_id),
                 "subject": origin.subject_of.get(volume_id)}
        volumes[volume_id] = {key: value for key, value in known.items() if value is not None}
    content = {"format": FORMAT, "version": FORMAT_VERSION, "mosaicdit_version": __version__,
               "made_by": origin.made_by, "volumes": volumes}
    write_text(Path(folder) / FILE_NAME, json.dumps(content, indent=1) + "\n")


def describe(made_by):
    """What made samples, as short phrases such as "seed 0"; hashes are cut."""
    flat = {}
    for key, value in made_by.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return [f"{key.replace('_', ' ')} {_short(key, value)}" for key, value in flat.items()
            if value is not None and not isinstance(value, dict | list)]


def _short(key, value):
    return str(value)[:12 if "sha256" in key else MAX_SHOWN_CHARACTERS]


def _of_data_folder(path):
    header, entries = manifest.read_manifest(path)
    return Origin(
        class_of={entry["id"]: header["classes"][entry["class"]] for entry in entries},
        subject_of={entry["id"]: entry["subject"] for entry in entries})


def _of_samples(path):
    header, _ = manifest.read_manifest(path)
    content = read_json(path)
    made_by = {key: value for key, value in content.items() if key not in NOT_MADE_BY}
    if "samples" not in content:
        return Origin(made_by)
    try:
        listed = [sample["id"] for sample in content["samples"]]
        class_of = {sample["id"]: header["classes"][sample["class"]]
                    for sample in content["samples"] if sample.get("class") is not None}
        indices = [sample.get("class") or 0 for sample in content["samples"]]
        if not all(map(is_safe_name, listed)) or min(indices, default=0) < 0:
            raise TypeError
    except (KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{path}: damaged (bad `samples`); sample again") from None
    return Origin(made_by, class_of, listed=listed)


def _of_source_file(path):
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not written by postprocess.py; remove it, or write the folder "
                        "again")
    try:
        volumes, made_by = content["volumes"], content["made_by"]
        named = {key: {volume_id: volume[key] for volume_id, volume in volumes.items()
                       if key in volume} for key in ("class", "subject")}
        if not isinstance(made_by, dict) or not all(
                isinstance(name, str) for names in named.values() for name in names.values()):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; write the folder again with postprocess.py") from None
    return Origin(made_by, named["class"], named["subject"])
