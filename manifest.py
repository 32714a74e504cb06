"""The data folder: manifest.json and its mosaics as PNGs. What preprocess writes and every other command reads.

    manifest.json   format, version and the *header* (size, layout, grid, fit, window rule, affine, source grid, classes),
                    then `volumes`: id, subject, source, shape, affine, window, class, split of each
    mosaics/ID.png  8-bit RGB, lossless

A samples folder has samples.json instead, with the same header, so that a mosaic can always be put back into the world.
"""
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

import mosaic
from cli import UserError, write_bytes, write_text

VERSION = 1
HEADER = ("size", "layout", "grid", "fit", "window_percentiles", "affine", "source_shape", "source_affine", "classes")
Image.MAX_IMAGE_PIXELS = 140_000_000  # 512 cubed in layout "gray" is 139 M; PIL warns above it and refuses twice as much


def write_manifest(folder, header, volumes):
    """Writes folder/manifest.json, atomically."""
    content = {"format": "mosaicdit-data", "version": VERSION, **{k: header[k] for k in HEADER}, "volumes": volumes}
    write_text(Path(folder) / "manifest.json", json.dumps(content, indent=1) + "\n")


def read_manifest(path):
    """Reads a manifest.json or samples.json, or the folder that holds one.

    :return: header dict (the keys of HEADER), list of volume dicts (empty for samples)
    :raises UserError: missing, not JSON, another format or version, a key missing, values that contradict each other
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
    if content.get("version") != VERSION:
        raise UserError(f"{path}: format version {content.get('version')}, this code reads {VERSION}; preprocess anew")
    header = check_header({k: content.get(k) for k in HEADER}, path)
    volumes = content.get("volumes", [])
    if not isinstance(volumes, list):
        raise UserError(f"{path}: `volumes` is no list; preprocess anew")
    for n, v in enumerate(volumes):
        try:
            name, numbers = v["id"], np.array([*v["shape"], *v["window"], *np.ravel(v["affine"])], float)
            sound = (isinstance(name, str) and Path(name).name == name and v["split"] in ("train", "test") and isinstance(v["class"], int)
                     and 0 <= v["class"] < len(header["classes"]) and len(numbers) == 21 and np.isfinite(numbers).all()
                     and numbers[:3].min() >= 2 and numbers[4] > numbers[3] and v["subject"])
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(f"{path}: its volume {n + 1} is damaged or names a path; preprocess anew")
    return header, volumes


def check_header(header, path):
    """The header, if it is whole and agrees with itself; else UserError naming `path`."""
    missing = [k for k in HEADER if header.get(k) is None]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; preprocess anew")
    try:
        grid = mosaic.grid_size(header["size"], header["layout"])
        shapes = np.array(header["affine"], float).shape, np.array(header["source_affine"], float).shape
        if min(header["source_shape"]) < 1 or len(header["source_shape"]) != 3 or header["fit"] not in ("stretch", "pad"):
            raise ValueError("source_shape or fit")
        len(header["classes"])
    except (ValueError, TypeError) as e:
        raise UserError(f"{path}: damaged header ({e}); preprocess anew") from None
    if header["grid"] != grid or shapes != ((4, 4), (4, 4)):
        raise UserError(f"{path}: its grid, size and affine contradict each other; preprocess anew")
    return header


def read_json(path):
    """The content of a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None


def select(volumes, split, path):
    """The volumes of one split. Raises UserError when there are none."""
    chosen = [v for v in volumes if split in (None, "all", v["split"])]
    if not chosen:
        raise UserError(f"{path}: has no volumes in the split {split!r}; see --split of preprocess.py")
    return chosen


def write_mosaic(path, pixels):
    """Writes a (side, side, 3) uint8 mosaic as PNG, atomically. Level 1 is twice as fast as PIL's default, 2 % larger."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(buffer, "PNG", compress_level=1)
    write_bytes(path, buffer.getvalue())


def read_mosaic(path, header):
    """Reads the PNG of a mosaic of this header.

    :return: (side, side, 3) uint8
    :raises UserError: missing, damaged, not 8-bit RGB, or of another size than the header says
    """
    side = mosaic.mosaic_side(header["size"], header["layout"])
    try:
        with Image.open(path) as image:
            if image.size != (side, side) or image.mode != "RGB":
                width, height = image.size
                raise UserError(f"{path}: {width} x {height} {image.mode}, but the manifest says {side} x {side} RGB "
                                f"({header['layout']} mosaic of {header['size']}^3); is it from another data folder?")
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; preprocess anew") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(f"{path}: cannot be read as PNG ({e}); preprocess anew") from None


def mosaic_path(folder, volume_id):
    return Path(folder) / "mosaics" / f"{volume_id}.png"


def read_mosaics(folder, header, volumes):
    """The mosaics of these volumes, (N, side, side, 3) uint8."""
    return np.stack([read_mosaic(mosaic_path(folder, v["id"]), header) for v in volumes])
