"""log.jsonl of a run: a line of JSON with its step for each log line."""
import json
import math
import os
import sys

from utils.errors import UserError
from utils.escaping import printable
from utils.shared_folders import open_regular

MAX_LOG_BYTES = 2 ** 28     # a million lines take 150 MB


def lines_until(step, path):
    """The lines of a log.jsonl up to a step, as bytes; what train.py did not write is dropped.

    Damaged lines, or one that was cut short when the job was killed, are counted in a warning.

    :raises UserError: too large to be a log, or no regular file
    """
    if not path.exists():
        return []
    with open_regular(path) as f:
        if os.fstat(f.fileno()).st_size > MAX_LOG_BYTES:
            raise UserError(f"{path}: larger than the {MAX_LOG_BYTES >> 20} MiB that are read; "
                            "move it away")
        lines = f.read().splitlines()
    steps = [_step_of(line) for line in lines]
    damaged = [number for number, found in enumerate(steps, 1) if found is None]
    if damaged:
        print(f"warning: {printable(path)}: {len(damaged)} damaged lines are dropped, the first is "
              f"line {damaged[0]}", file=sys.stderr, flush=True)
    return [line + b"\n" for line, found in zip(lines, steps)
            if found is not None and found <= step]


def read_entries(path):
    """The entries of a log.jsonl, dicts with their step; damaged lines are left out.

    :raises UserError: see `lines_until`
    """
    return [json.loads(line) for line in lines_until(math.inf, path)]


def values_by_step(path, key):
    """A number that some lines of a log.jsonl hold, {step: value}; other lines are passed over.

    :raises UserError: see `lines_until`
    """
    return {entry["step"]: float(entry[key]) for entry in read_entries(path)
            if type(entry.get(key)) in (int, float)}


def _step_of(line):
    """The step of a line; None for a line that is damaged."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if type(found) is int else None
