"""One preprocessing shared by the jobs of an array.

Each job writes its part into OUTPUT.shards/; the last to finish assembles them, and what comes out
is what a single job would have written. A part that exists is not prepared again, so a failed task
can be submitted alone.
"""
import dataclasses
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np

from mri.conversion import PreparedScan, SkippedScan
from mri.quality_control import ScanSummary
from utils import archives
from utils.errors import UserError, shorten
from utils.files import atomic_folder, read_json, require_new_folder
from utils.shared_folders import lock


class JobArray:
    """One job's view of the shared work.

    Call `prepare_part`, then `is_last`; only where that is true, `collect` and `remove_parts`.
    """

    def __init__(self, output, part, parts, settings):
        """
        :param output: Path of the data folder that all parts become
        :param part: number of this job, 1…parts
        :param parts: number of jobs
        :param settings: {flag: text} on which all parts must agree; with "input"
        """
        self.output = output
        self.part = part
        self.parts = parts
        self.settings = settings
        target = output.resolve()  # `output` may be a symbolic link, or "."
        self._root = target.with_name(f"{target.name}.shards")
        self._lock = None

    def prepare_part(self, scans, prepare, subfolders):
        """Prepares this job's share of the scans, unless its part exists.

        :param scans: of all jobs
        :param prepare: (scans, folder) -> list of PreparedScan and SkippedScan
        :param subfolders: of the folder that `prepare` writes into
        :raises UserError: the output exists, or this part was made with other flags
        """
        require_new_folder(self.output)
        if not self._part_folder(self.part).exists():
            own_scans = scans[self.part - 1::self.parts]
            with atomic_folder(self._part_folder(self.part)) as folder:
                for name in subfolders:
                    (folder / name).mkdir()
                results = prepare(own_scans, folder) if own_scans else []
                ids = [scan.id for scan in own_scans]
                _write_results(folder, self.settings, dict(zip(ids, results)))
        results = self._read_part(self.part)
        skipped = sum(isinstance(result, SkippedScan) for result in results.values())
        print(f"shard {self.part}/{self.parts}: {len(results) - skipped} scans done, "
              f"{skipped} skipped", flush=True)

    def is_last(self):
        """Whether all parts exist and no other job has assembled them, or is about to.

        If so, this process holds a lock until it ends.
        """
        self._lock = lock(self._root.with_name(f".{self._root.name}.lock"))
        if (self.output / "manifest.json").exists():  # another job was faster
            Path(self._lock.name).unlink(missing_ok=True)
            return False
        return all(self._part_folder(part).exists() for part in range(1, self.parts + 1))

    def collect(self, scans, folder):
        """Copies what all parts wrote into a folder.

        :param scans: of all jobs
        :param folder: with the subfolders of `prepare_part`
        :return: list of PreparedScan and SkippedScan in the order of the scans
        :raises UserError: the parts are of other scans, or were made with other flags
        """
        results = {}
        for part in range(1, self.parts + 1):
            results |= self._read_part(part)
            for path in self._part_folder(part).glob("*/*"):
                (folder / path.parent.name).mkdir(exist_ok=True)
                shutil.copyfile(path, folder / path.parent.name / path.name)
        if results.keys() != {scan.id for scan in scans}:
            raise UserError(f"--input {self.settings['input']}: holds other scans than when its "
                            f"shards were started; remove {self._root} to start again")
        return [results[scan.id] for scan in scans]

    def remove_parts(self):
        """Removes the parts, once the output is complete."""
        shutil.rmtree(self._root)
        Path(self._lock.name).unlink()

    def _part_folder(self, part):
        return self._root / f"{part}-of-{self.parts}"

    def _read_part(self, part):
        """{scan id: result} of a part."""
        folder = self._part_folder(part)
        content = read_json(folder / "part.json")
        if not isinstance(content, dict) or content.get("settings") != self.settings:
            raise UserError(f"{folder}: was made with other flags; give those, or remove "
                            f"{self._root} to start again")
        try:
            return _read_results(folder, content["results"])
        except (KeyError, TypeError, ValueError, AttributeError, EOFError,
                zipfile.BadZipFile) as e:
            raise UserError(f"{folder}: damaged ({shorten(e, 100)}); remove it, and run its task "
                            "again") from None


# ------------------------------------------------------------------------------------------ files

def _write_results(folder, settings, results):
    """Writes part.json, and part.npz with the arrays in it; the inverse of `_read_results`.

    :param results: {scan id: PreparedScan or SkippedScan}
    """
    arrays = {}

    def replace(value):
        """An array by its name in part.npz, and a NumPy number by Python's."""
        if not isinstance(value, np.ndarray):
            return value.item()
        name = f"{len(arrays)}"
        arrays[name] = value
        return {"array": name}

    content = {"settings": settings,
               "results": {scan_id: _to_json(result) for scan_id, result in results.items()}}
    (folder / "part.json").write_text(json.dumps(content, default=replace))
    np.savez(folder / "part.npz", **arrays)


def _to_json(result):
    if isinstance(result, SkippedScan):
        return dataclasses.asdict(result)
    summary = {field.name: getattr(result.summary, field.name)
               for field in dataclasses.fields(result.summary)}
    return [result.entry, summary]


def _read_results(folder, results):
    """The results of a part as `prepare_scan` gave them; the inverse of `_write_results`.

    :param results: of part.json
    """
    path = folder / "part.npz"
    unread = _checked_names(path)
    with np.load(path) as arrays:
        def restore(value):
            """An array for its name in part.npz; each is used once."""
            if value.keys() != {"array"}:
                return value
            unread.remove(value["array"])
            return arrays[value["array"]]

        # result by result, as "array" may also be the id of a scan
        return {scan_id: _from_json(json.loads(json.dumps(result), object_hook=restore))
                for scan_id, result in results.items()}


def _checked_names(path):
    """Names of the arrays in part.npz, none of which claims more than the file holds.

    :raises ValueError: one does, by its place in the archive or by its own header
    """
    reason = archives.claims_more_than_it_holds(path)
    if reason:
        raise ValueError(reason)
    names = set()
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with archive.open(record) as f:
                if np.lib.format.read_magic(f) != (1, 0):
                    raise ValueError(f"{record.filename} is not an array that numpy.savez writes")
                shape, _, dtype = np.lib.format.read_array_header_1_0(f)
                if f.tell() + math.prod(shape) * dtype.itemsize != record.file_size:
                    raise ValueError(f"{record.filename} claims an array of shape {shape}")
            names.add(record.filename.removesuffix(".npy"))
    return names


def _from_json(result):
    if isinstance(result, dict):
        return SkippedScan(**result)
    entry, summary = result
    return PreparedScan(entry, ScanSummary(**summary))
