"""The data folder: manifest.json and its mosaics as PNGs. What preprocess writes and every other command reads.

    manifest.json   format, version and the *header* (size, layout, grid, fit, window rule, affine, source grid, classes),
                    and, where preprocess was asked for any, `preparation`; then `volumes`: id, subject, source, shape, affine,
                    window, class, split of each, and where they apply the keys of OPTIONAL
    mosaics/ID.png  8-bit RGB, lossless
    bias/ID.nii.gz  logarithm of the bias field that --n4 took out, coarse
    qc/             contact sheets and qc.tsv

A samples folder has samples.json instead, with the same header, so that a mosaic can always be put back into the world.
"""
import json
import math
from pathlib import Path

from PIL import Image

from mri import mosaic
from utils.errors import UserError
from utils.files import is_safe_name, write_text

FORMAT_VERSION = 1
HEADER_KEYS = ("size", "layout", "grid", "fit", "window_percentiles", "affine", "source_shape", "source_affine", "classes")
OPTIONAL = {
    "volume": "which of a 4D file's volumes, from 0",
    "codes": "sform and qform codes of the source, where not 1 and 1",
    "mask": "path of the brain mask",
    "n4": "true: divided by exp of the field in bias/",
    "crop": "[[start, stop], …] in the source's RAS array; `outside` is what was around it",
    "outside": "intensity",
    "warnings": "lines of text about the source",
}
MAX_VOLUMES = 200_000     # in a manifest
MAX_BYTES = 2 ** 28       # of a manifest: 1.3 kB a volume
MAX_MARKS = 10_000_000    # commas and brackets in a JSON file: 50 a volume. They bound the memory that its content takes
MAX_VOXELS = 2 ** 29      # of a scan that a volume goes back to
MAX_PIXELS = Image.MAX_IMAGE_PIXELS = 140_000_000  # 512 cubed in layout "gray" is 139 M; PIL warns above it and refuses twice as much


def write_manifest(folder, header, volumes):
    """Writes folder/manifest.json, atomically."""
    keys = HEADER_KEYS + (("preparation",) if header.get("preparation") else ())
    content = {"format": "mosaicdit-data", "version": FORMAT_VERSION, **{k: header[k] for k in keys}, "volumes": volumes}
    write_text(Path(folder) / "manifest.json", json.dumps(content, indent=1) + "\n")


def read_manifest(path):
    """Reads a manifest.json or samples.json, or the folder that holds one.

    :return: header dict (the keys of HEADER_KEYS, and `preparation` where there is one), list of volume dicts (empty for samples)
    :raises UserError: missing, not JSON, another format or version, a key missing, values that contradict each other, too large
    """
    path = Path(path)
    if path.is_dir():
        names = [n for n in ("manifest.json", "samples.json") if (path / n).is_file()]
        if not names:
            raise UserError(f"{path}: holds no manifest.json; name a folder that preprocess.py or sample.py wrote")
        path = path / names[0]
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") not in ("mosaicdit-data", "mosaicdit-samples"):
        raise UserError(f"{path}: not a MosaicDiT manifest; preprocess.py writes one")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(f"{path}: format version {content.get('version')}, this code reads {FORMAT_VERSION}; preprocess anew")
    header = check_header({k: content.get(k) for k in HEADER_KEYS}, path)
    if isinstance(content.get("preparation"), dict):
        header["preparation"] = content["preparation"]
    volumes = content.get("volumes", [])
    if not isinstance(volumes, list):
        raise UserError(f"{path}: `volumes` is no list; preprocess anew")
    if len(volumes) > MAX_VOLUMES:
        raise UserError(f"{path}: {len(volumes)} volumes, more than the {MAX_VOLUMES} that are read; split the cohort")
    seen = set()
    for n, v in enumerate(volumes):
        try:
            sound = _sound(v, len(header["classes"])) and v["id"] not in seen
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            sound = False
        if not sound:
            raise UserError(f"{path}: its volume {n + 1} is damaged or names a path; preprocess anew")
        seen.add(v["id"])
    return header, volumes


def _whole(value, least, most):
    return type(value) is int and least <= value <= most


def _number(value, most=3e38):
    return type(value) in (int, float) and -most < value < most


def _is_affine(rows):
    """Whether a value from JSON is an affine with an inverse: 4 rows of 4 finite numbers."""
    if len(rows) != 4 or any(len(row) != 4 for row in rows) or not all(_number(x, 1e7) for row in rows for x in row):
        return False
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = rows
    return list(last) == [0, 0, 0, 1] and 1e-9 < abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) < 1e9


def _is_shape(value):
    return len(value) == 3 and all(_whole(n, 2, 2 ** 15 - 1) for n in value) and math.prod(value) <= MAX_VOXELS


def _sound(v, classes):
    """Whether a volume's entry is one that preprocess could have written; may raise where a value is of another kind."""
    lo, hi = v["window"]
    crop, codes = v.get("crop", []), v.get("codes", [1, 1])
    return (is_safe_name(v["id"]) and isinstance(v["subject"], str) and v["subject"] and v["split"] in ("train", "test")
            and _whole(v["class"], 0, classes - 1) and _is_shape(v["shape"]) and _is_affine(v["affine"])
            and _number(lo) and _number(hi) and hi > lo and _number(hi - lo) and _number(v.get("outside", 0))
            and len(crop) in (0, 3) and all(_whole(start, 0, stop - 2) and _whole(stop, 2, max(v["shape"])) for start, stop in crop)
            and len(codes) == 2 and all(_whole(c, 1, 5) for c in codes) and isinstance(v.get("n4", False), bool)
            and all(isinstance(w, str) for w in v.get("warnings", [])))


def check_header(header, path):
    """The header, if it is whole and agrees with itself; else UserError naming `path`."""
    missing = [k for k in HEADER_KEYS if not isinstance(header, dict) or header.get(k) is None]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; preprocess anew")
    try:
        size, layout = header["size"], header["layout"]
        if not _whole(size, 1, 2 ** 12) or mosaic.mosaic_side(size, layout) ** 2 > MAX_PIXELS:
            raise ValueError("size")
        if not _is_shape(header["source_shape"]) or header["fit"] not in ("stretch", "pad"):
            raise ValueError("source_shape or fit")
        if not isinstance(header["classes"], list) or not all(isinstance(c, str) for c in header["classes"]) or not header["classes"]:
            raise ValueError("classes")
        if header["grid"] != mosaic.grid_size(size, layout) or not _is_affine(header["affine"]) or not _is_affine(header["source_affine"]):
            raise UserError(f"{path}: its grid, size and affine contradict each other; preprocess anew")
    except (ValueError, TypeError, OverflowError) as e:
        raise UserError(f"{path}: damaged header ({e}); preprocess anew") from None
    return header


def read_json(path):
    """The content of a JSON file. Raises UserError when it is missing, damaged, or too large to be one of ours."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_BYTES} that are read; no MosaicDiT file is so large")
        raw = path.read_bytes()
        if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MARKS:
            raise UserError(f"{path}: holds more values than {MAX_VOLUMES} volumes have; no MosaicDiT file is so large")
        return json.loads(raw)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deep)") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None


def select_split(volumes, split, path):
    """The volumes of one split. Raises UserError when there are none."""
    chosen = [v for v in volumes if split in (None, "all", v["split"])]
    if not chosen:
        raise UserError(f"{path}: has no volumes in the split {split!r}; see --split of preprocess.py")
    return chosen








def bias_path(folder, volume_id):
    return Path(folder) / "bias" / f"{volume_id}.nii.gz"


