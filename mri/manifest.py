"""The data folder: what preprocess.py writes and every other command reads.

    manifest.json   format, version and the *header* (HEADER_KEYS, and `preparation` where
                    preprocess.py was asked for any, `covariates` where it was given some); then
                    `volumes`, an *entry* for each: id, subject, source, shape, affine, window,
                    class, split, and where they apply

                      covariates  {name: value}, see mri/covariates.py
                      volume    which of the source's several volumes, from 0
                      codes     sform and qform codes of the source, where not 1 and 1
                      warnings  lines of text about the source
                      name      of the source's file, where the id had to differ
                      mask      path of the brain mask
                      n4        true: divided by the exponential of the field in bias/
                      n4_shift  what was added to the intensities to estimate that field
                      crop      [[start, stop], …] in the source's RAS array, voxels
                      outside   intensity around the crop
                      skull_strip  true: masked by the mask in masks/
                      brain_ml  volume of the brain mask, ml
                      registration  {"matrix": world of the source -> world of the template, 4 x 4,
                                mm; "overlap": Dice of the brain masks; "scaling": along three
                                directions; "shape", "affine": of the field of view in the
                                template's space; "code": sform code of that space}

    mosaics/ID.png  8-bit RGB, lossless
    bias/ID.nii.gz  logarithm of the bias field that --n4 removed, coarse
    masks/ID.nii.gz  brain mask of --skull-strip, on the source's grid
    outlines/ID.png the scan with the outline of its brain mask, where it has one
    dicom/ID.json   what dcm2niix says of the DICOM series that became the scan
    qc/             contact sheets and qc.tsv

A samples folder has samples.json instead, with the same header and no volumes, so that a mosaic can
always be put back into the world.
"""
import json
import math
from pathlib import Path

from mri import covariates, geometry, mosaic
from mri.mosaic_files import MAX_PIXELS
from mri.scan_volume import MAX_AXIS_VOXELS, MAX_VOXELS
from utils.errors import UserError
from utils.files import is_safe_name, read_json, write_text

FORMAT_VERSION = 1
FORMATS = ("mosaicdit-data", "mosaicdit-samples")
FILE_NAMES = ("manifest.json", "samples.json")
HEADER_KEYS = ("size", "layout", "grid", "fit", "window_percentiles", "affine", "source_shape",
               "source_affine", "classes")
SPLITS = ("train", "val", "test")
OPTIONAL_HEADER_KEYS = ("preparation", "covariates")
MAX_VOLUMES = 200_000       # in a manifest
MAX_CLASSES = 100_000
MAX_NAME = 1000             # of a class, characters
MAX_SIZE = 2 ** 12          # of a cube's side, voxels
MAX_INTENSITY = 3e38        # that float32 holds
MAX_AFFINE_ENTRY = 1e7      # mm
MIN_DETERMINANT = 1e-9      # of an affine's 3 x 3 part, mm^3
MAX_DETERMINANT = 1e9
MAX_FORM_CODE = 5           # of NIfTI's sform and qform

# what a check may raise for a value of another type than it expects
_CHECK_ERRORS = (KeyError, TypeError, ValueError, OverflowError, AttributeError)


def bias_path(folder, volume_id):
    """Where a data folder holds the logarithm of a volume's bias field."""
    return Path(folder) / "bias" / f"{volume_id}.nii.gz"


def mask_path(folder, volume_id):
    """Where a data folder holds the brain mask that the skull strip of a volume made."""
    return Path(folder) / "masks" / f"{volume_id}.nii.gz"


def outline_path(folder, volume_id):
    """Where a data folder holds the picture of a scan with the outline of its brain mask."""
    return Path(folder) / "outlines" / f"{volume_id}.png"


def sidecar_path(folder, volume_id):
    """Where a data folder holds what dcm2niix says of a scan's DICOM series."""
    return Path(folder) / "dicom" / f"{volume_id}.json"


def write_manifest(folder, header, entries):
    """Writes folder/manifest.json, atomically; the inverse of `read_manifest`."""
    keys = [*HEADER_KEYS, *(key for key in OPTIONAL_HEADER_KEYS if header.get(key))]
    content = {"format": FORMATS[0], "version": FORMAT_VERSION,
               **{key: header[key] for key in keys}, "volumes": entries}
    write_text(Path(folder) / FILE_NAMES[0], json.dumps(content, indent=1) + "\n")


def read_manifest(path):
    """Reads a manifest.json or samples.json; the inverse of `write_manifest`.

    :param path: of the file, or of the folder that holds one
    :return: header, a dict with HEADER_KEYS, and OPTIONAL_HEADER_KEYS where there are any; list of
        entries, empty for samples
    :raises UserError: missing, not JSON, another format or version, too large, or with a value that
        preprocess.py could not have written
    """
    path = _file_in_folder(Path(path))
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") not in FORMATS:
        raise UserError(f"{path}: not a MosaicDiT manifest; preprocess.py writes one")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(f"{path}: format version {content.get('version')}, this code reads "
                        f"{FORMAT_VERSION}; preprocess again")
    header = check_header({key: content.get(key) for key in HEADER_KEYS}, path)
    if isinstance(content.get("preparation"), dict):
        header["preparation"] = content["preparation"]
    if content.get("covariates"):
        covariates.columns_from_json(content["covariates"], path)
        header["covariates"] = content["covariates"]
    entries = content.get("volumes", [])
    if not isinstance(entries, list):
        raise UserError(f"{path}: `volumes` is not a list; preprocess again")
    if len(entries) > MAX_VOLUMES:
        raise UserError(f"{path}: {len(entries)} volumes, more than the {MAX_VOLUMES} that are "
                        "read; split the cohort")
    _check_entries(entries, len(header["classes"]), path)
    return header, entries


def _file_in_folder(path):
    if not path.is_dir():
        return path
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: holds no manifest.json; name a folder that preprocess.py or "
                    "sample.py wrote")


def select_split(entries, split, path):
    """The entries of one split.

    :param split: "train", "val" or "test"; "all" or None: every entry
    :param path: of the manifest, for errors
    :raises UserError: there are none
    """
    chosen = [entry for entry in entries if split in (None, "all", entry["split"])]
    if not chosen:
        raise UserError(f"{path}: has no volumes in the split {split!r}; see --split of "
                        "preprocess.py")
    return chosen


# ----------------------------------------------------------------------------------------- checks

def check_header(header, path):
    """Checks that a header is complete and agrees with itself.

    :param header: dict from JSON
    :param path: that it was read from, for errors
    :return: the header
    :raises UserError: names the key that is missing or bad
    """
    missing = [key for key in HEADER_KEYS
               if not isinstance(header, dict) or header.get(key) is None]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; preprocess again")
    checks = {
        "layout": lambda layout: layout in mosaic.SLICES_PER_TILE,
        "size": lambda size: _is_size(size, header["layout"]),
        "source_shape": _is_shape,
        "fit": lambda fit: fit in geometry.FITS,
        "classes": _is_list_of_names,
    }
    bad_key = _first_bad_key(header, checks)
    if bad_key:
        raise UserError(f"{path}: damaged header (bad `{bad_key}`); preprocess again")
    checks = {
        "grid": lambda grid: grid == mosaic.grid_size(header["size"], header["layout"]),
        "affine": _is_affine,
        "source_affine": _is_affine,
    }
    bad_key = _first_bad_key(header, checks)
    if bad_key:
        raise UserError(f"{path}: its grid, size and affine contradict each other (bad "
                        f"`{bad_key}`); preprocess again")
    return header


def _check_entries(entries, class_count, path):
    """Raises UserError for the first entry that preprocess.py could not have written."""
    known_ids = set()
    for number, entry in enumerate(entries, 1):
        bad_key = _bad_entry_key(entry, class_count)
        if bad_key is None and entry["id"] in known_ids:
            bad_key = "id"  # of an earlier volume
        if bad_key == "id":
            raise UserError(f"{path}: its volume {number} is damaged or names a path (its `id` "
                            "must be a plain name that no other volume has); preprocess again")
        if bad_key:
            raise UserError(f"{path}: its volume {number} is damaged (bad or missing `{bad_key}`); "
                            "preprocess again")
        known_ids.add(entry["id"])


def _bad_entry_key(entry, class_count):
    """The first key of an entry with a value that preprocess.py could not have written, or None."""
    required = {
        "id": is_safe_name,
        "subject": lambda subject: isinstance(subject, str) and subject,
        "split": lambda split: split in SPLITS,
        "class": lambda index: _is_whole(index, 0, class_count - 1),
        "shape": _is_shape,
        "affine": _is_affine,
        "window": _is_window,
    }
    optional = {
        "codes": _is_codes,
        "covariates": covariates.is_row,
        "warnings": lambda lines: all(isinstance(line, str) for line in lines),
        "name": lambda name: isinstance(name, str),
        "n4": lambda value: isinstance(value, bool),
        "n4_shift": _is_number,
        "crop": lambda box: _is_crop(box, max(entry["shape"])),
        "outside": _is_number,
        "skull_strip": lambda value: isinstance(value, bool),
        "brain_ml": _is_number,
        "registration": _is_registration,
    }
    bad_key = _first_bad_key(entry, required)
    if bad_key:
        return bad_key
    given = {key: check for key, check in optional.items() if key in entry}
    return _first_bad_key(entry, given)


def _first_bad_key(values, checks):
    """The first key of `checks` whose value is missing or does not pass its check, or None."""
    for key, is_valid in checks.items():
        try:
            if not is_valid(values[key]):
                return key
        except _CHECK_ERRORS:
            return key
    return None


def _is_whole(value, least, most):
    return type(value) is int and least <= value <= most


def _is_number(value, limit=MAX_INTENSITY):
    return type(value) in (int, float) and -limit < value < limit


def _is_size(size, layout):
    return _is_whole(size, 1, MAX_SIZE) and mosaic.mosaic_side(size, layout) ** 2 <= MAX_PIXELS


def _is_shape(shape):
    return (len(shape) == 3 and all(_is_whole(n, 2, MAX_AXIS_VOXELS) for n in shape)
            and math.prod(shape) <= MAX_VOXELS)


def _is_affine(rows):
    """Whether a value from JSON is an affine with an inverse: 4 rows of 4 finite numbers."""
    if len(rows) != 4 or any(len(row) != 4 for row in rows):
        return False
    if not all(_is_number(value, MAX_AFFINE_ENTRY) for row in rows for value in row):
        return False
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = rows
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return list(last) == [0, 0, 0, 1] and MIN_DETERMINANT < abs(determinant) < MAX_DETERMINANT


def _is_window(window):
    lo, hi = window
    return _is_number(lo) and _is_number(hi) and hi > lo and _is_number(hi - lo)


def _is_crop(box, longest_axis):
    """Whether a value is a box within the scan's longest axis; its own axes are checked later."""
    if len(box) not in (0, 3):
        return False
    return all(_is_whole(start, 0, stop - 2) and _is_whole(stop, 2, longest_axis)
               for start, stop in box)


def _is_registration(found):
    return (_is_affine(found["matrix"]) and _is_shape(found["shape"])
            and _is_affine(found["affine"]) and _is_whole(found["code"], 1, MAX_FORM_CODE)
            and _is_number(found["overlap"]) and len(found["scaling"]) == 3
            and all(map(_is_number, found["scaling"])))


def _is_codes(codes):
    return len(codes) == 2 and all(_is_whole(code, 1, MAX_FORM_CODE) for code in codes)


def _is_list_of_names(value):
    return (isinstance(value, list) and 0 < len(value) <= MAX_CLASSES
            and all(isinstance(name, str) and len(name) <= MAX_NAME for name in value))
