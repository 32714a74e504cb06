"""The note beside a checkpoint that says which refiner was trained for it.

A checkpoint's own bytes are its identity, so they stay; STEP.refiner.json lies next to it.
"""
import json
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_text


def record_path(checkpoint):
    """Where the note of a checkpoint lies: 0066000.safetensors -> 0066000.refiner.json."""
    return Path(checkpoint).with_suffix(".refiner.json")


def record_refiner(checkpoint, refiner, sha256):
    """Notes beside a checkpoint that a refiner was trained for it; a later one takes its place.

    :param refiner: its folder
    :param sha256: of its weights
    :return: a line for the user where the note cannot be written, else None
    """
    content = {"refiner": str(Path(refiner).resolve()), "sha256": sha256}
    try:
        write_text(record_path(checkpoint), json.dumps(content, indent=1) + "\n")
    except OSError as e:
        return (f"{record_path(checkpoint)}: cannot be written ({e.strerror}); sample.py will not "
                "mention the refiner, but --refiner takes it")
    return None


def refiner_hint(checkpoint):
    """A line for the user if a refiner was trained for this checkpoint, else None."""
    try:
        content = read_json(record_path(checkpoint))
        folder, sha256 = content["refiner"], content["sha256"]
        return (f"a refiner was trained for this checkpoint: --refiner {folder} ({sha256[:12]}) "
                "applies it")
    except (UserError, OSError, KeyError, TypeError):
        return None
