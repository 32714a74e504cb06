"""One preprocessing done by the jobs of an array: each leaves its part in OUTPUT.shards/, the last to end puts all together.

What comes out is what one job would have written. A part that is there is not done again, so a task that failed can be
submitted alone.
"""
import fcntl
import json
import shutil
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_folder, read_json, require_new_folder

_held = []  # locks, until this process ends


def ready(scans, args, prepare_all, folders):
    """Does this shard's scans, where that is still to be done. Returns whether it is for this job to put the parts together.

    :param prepare_all: (scans, folder, args) -> for each a result, or why it was skipped (str); writes into folder/mosaics, …
    :param folders: those it writes into
    :raises UserError: the output exists, or this part was made with other flags
    """
    require_new_folder(args.output)
    i, n = args.shard
    if not _part(args, i).exists():
        mine = scans[i - 1::n]
        with atomic_folder(_part(args, i)) as part:
            for name in folders:
                (part / name).mkdir()
            results, arrays = prepare_all(mine, part, args) if mine else [], {}

            def plain(value):
                """What JSON cannot hold: arrays go to a file of their own, numpy's numbers become Python's."""
                if not isinstance(value, np.ndarray):
                    return value.item()
                arrays[f"{len(arrays)}"] = value
                return {"array": f"{len(arrays) - 1}"}

            content = dict(settings=_settings(args), results={s.id: r for s, r in zip(mine, results)})
            (part / "part.json").write_text(json.dumps(content, default=plain))
            np.savez(part / "part.npz", **arrays)
    results = _read(args, i)
    skipped = [r for r in results.values() if isinstance(r, str)]
    print(f"shard {i}/{n}: {len(results) - len(skipped)} scans done, {len(skipped)} skipped", flush=True)
    _held.append(open(args.output.with_name(f".{_root(args).name}.lock"), "a"))
    fcntl.flock(_held[-1], fcntl.LOCK_EX)
    if args.output.exists():  # another job was faster
        Path(_held[-1].name).unlink(missing_ok=True)
        return False
    return all(_part(args, k).exists() for k in range(1, n + 1))


def collect(scans, folder, args):
    """The results of all parts in the order of the scans; what the parts wrote is copied into `folder`."""
    results = {}
    for i in range(1, args.shard[1] + 1):
        results |= _read(args, i)
        for path in _part(args, i).glob("*/*"):
            shutil.copyfile(path, folder / path.parent.name / path.name)
    if results.keys() != {s.id for s in scans}:
        raise UserError(f"--input {args.input}: other scans than when its shards were begun; remove {_root(args)} to begin anew")
    return [results[s.id] for s in scans]


def remove(args):
    """Removes the parts, once they are together."""
    shutil.rmtree(_root(args))
    Path(_held[-1].name).unlink()


def _settings(args):
    """The flags on which all parts must agree, as JSON holds them."""
    return {k: str(v) for k, v in sorted(vars(args).items()) if k not in ("shard", "workers")}


def _root(args):
    return args.output.with_name(f"{args.output.name}.shards")


def _part(args, i):
    return _root(args) / f"{i}-of-{args.shard[1]}"


def _read(args, i):
    """{scan: result} of a part. Raises UserError when it was made with other flags."""
    part = _part(args, i)
    content = read_json(part / "part.json")
    if content["settings"] != _settings(args):
        raise UserError(f"{part}: was made with other flags; give those, or remove {_root(args)} to begin anew")
    with np.load(part / "part.npz") as arrays:
        return json.loads(json.dumps(content["results"]), object_hook=lambda d: arrays[d["array"]] if d.keys() == {"array"} else d)
