"""Kinds of fuzz.py's cases that are more than one file: tables, ranges, links and odd folders."""
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from helpers import brain
from mutations import mutate_table

from mri import manifest, mosaic_files

PARTICIPANTS = [["participant_id", "group"], ["sub-00", "a"], ["sub-01", "b"], ["sub-02", "a"]]
VISITS = [["participant_id", "session_id", "group"], ["sub-00", "ses-1", "a"],
          ["sub-01", "ses-1", "b"], ["sub-01", "ses-2", "a"], ["sub-02", "ses-1", "a"]]
SIDES = [["participant_id", "split"], ["sub-00", "train"], ["sub-01", "test"], ["sub-02", "val"]]
LIST = [["path", "id", "subject", "session_id", "class", "split", "mask"],
        *([f"in/sub-0{i}_T1w.nii.gz", f"s{i}", f"p{i}", "ses-1", "ab"[i % 2], "train",
           "mask.nii.gz"] for i in range(3))]

# contents of files that are called scans, and are none
NO_SCANS = (
    b"", b"\n", b"<!DOCTYPE html><title>Log in</title>", b"<html>", b"PK\3\4zip", b"\x89PNG\r\n",
    b"/annex/objects/MD5E-s1--0.nii.gz\n", b"version https://git-lfs.github.com/spec/v1\noid 1\n",
    bytes(128) + b"DICM" + bytes(200), b"\x1f\x8b\x08\0\0\0", bytes(400), b"NRRD0004\n")
ODD_NAMES = (
    b"sub-07_T1w.nii.gz", b"sub-07_ses-2_run-1_T1w.nii", b"scan (1).nii.gz", b"caf\xe9.nii",
    b"a\nb.nii", b"._sub-00_T1w.nii.gz", b".hidden/a.nii", b"x.nii/x.nii", b"x.nii/",
    b"IM0001.dcm", b"sub-07/anat/sub-07_FLAIR.nii.gz", b"derivatives/p/sub-07/sub-07_T1w.nii.gz",
    b"sub-07/anat/sub-07_space-MNI152Lin_T1w.nii.gz", b"bert/mri/T1.mgz", b"bert/mri/aseg.mgz",
    b"ADNI/003_S_0907/MPRAGE/2007/I1/file.nii", b"-rf.nii", b"~.nii", b"%s{id}.nii", b"a.NII.GZ",
    b"a.img", b"a.hdr", b"v.npy", b"\xe2\x80\xae.nii", b"dataset_description.json",
    b"participants.tsv", b"x" * 200 + b".nii", b"CON.nii", b"a b/c d/e f.nii.gz")
CHOICES = (("--suffix", "T1w"), ("--suffix", "FLAIR"), ("--session", "1"), ("--run", "1"),
           ("--space", "native"), ("--space", "MNI152Lin"), ("--subject-pattern", r"(\d+)"),
           ("--subject-pattern", "("), ("--id-pattern", r"sub-\d+"), ("--nan", "zero"),
           ("--affine", "identity"), ("--orientation", "LAS"), ("--mask", "{dir}/{name}_m*"),
           ("--mask", "{id}{run}{session}"), ("--stratify",), ("--split", "1:0"))
RANGES = {  # (scale, offset) of volumes in [0, 1]: their range
    (1, 0): ("0", "1"), (2, -1): ("-1", "1"), (255, 0): ("0", "255"), (4000, 0): ("0", "4000")}
ODD_SCALES = ((1 + 1e-4, 0), (1.5, 0), (1e30, 0), (0, 0), (1e-30, 0), (float("nan"), 0))
ODD_RANGES = (("1", "0"), ("nan", "1"), ("-inf", "inf"), ("1e308", "1e309"), ("0", "1e-300"),
              ("x", "1"), ("0.5", "0.5"), ("-1e308", "1e308"))
NOBODY = 65534      # a user without rights


class OddInputs:
    """Kinds of cases; fuzz.Cases, which inherits them, has the files in `keep` and the scripts."""

    # -------------------------------------------------------------------------------------- tables

    def labels(self, rng, work):
        """Labels, one row per subject or visit, as TSV or CSV."""
        shutil.copytree(self.keep / "in", work / "in")
        rows = VISITS if rng and rng.integers(2) else PARTICIPANTS
        table = work / ("labels.csv" if rng and rng.integers(2) else "participants.tsv")
        table.write_bytes(mutate_table(rows, rng))
        columns = ("group", "group", "group", "group", "Group", "participant_id")
        column = columns[rng.integers(len(columns))] if rng else "group"
        more = ("--stratify",) if rng and rng.integers(2) else ()
        return self.preprocess(work / "in", work / "d", "--labels", table, "--label-column",
                               column, *more)

    def splits(self, rng, work):
        """--split-from: a table, a data folder, or a damaged one."""
        shutil.copytree(self.keep / "in", work / "in")
        source = work / "split.csv"
        source.write_bytes(mutate_table(SIDES, rng))
        if rng and rng.integers(4) == 0:
            source = work / "earlier"
            source.mkdir()
            text = (self.keep / "data" / "manifest.json").read_text()
            text = text.replace('"train"', json.dumps(str(rng.choice(["val", "tset", ""]))), 1)
            (source / "manifest.json").write_text(text)
        return self.preprocess(work / "in", work / "d", "--split-from", source)

    def lists(self, rng, work):
        """A list of scans as --input, with masks, classes and sides."""
        shutil.copytree(self.keep / "in", work / "in")
        shutil.copy(self.keep / "mask.nii.gz", work)
        name = ("list.tsv", "list.csv", "list.xlsx")[int(rng.choice(3, p=(0.6, 0.3, 0.1))) if rng
                                                     else 0]
        (work / name).write_bytes(mutate_table(LIST, rng))
        return self.preprocess(work / name, work / "d")

    # -------------------------------------------------------------------------------------- ranges

    def ranges(self, rng, work):
        """Volumes in and out of the range that the flags of evaluate.py say."""
        flags = []
        for name in ("real", "synthetic"):
            scale = list(RANGES)[rng.integers(len(RANGES))] if rng else (1, 0)
            value_range = RANGES[scale]
            if rng and rng.integers(4) == 0:
                value_range = ODD_RANGES[rng.integers(len(ODD_RANGES))]
            if rng and rng.integers(4) == 0:
                scale = ODD_SCALES[rng.integers(len(ODD_SCALES))]
            self._write_cubes(work / name, *scale, np.int16 if scale[0] > 200 else np.float32)
            flags += [f"--{name}-range", *value_range]
        if rng and rng.integers(4) == 0:
            flags += ["--synthetic-axes", str(rng.choice(["zyx", "xyzz", "", "LPS", "é"]))]
        return self.read_sets(work / "real", work / "synthetic", *flags)

    def _write_cubes(self, folder, scale, offset, dtype):
        folder.mkdir()
        for i in range(3):
            cube = np.clip(brain((12, 12, 12), seed=i) / 1000, 0, 1) * scale + offset
            with np.errstate(invalid="ignore"):
                image = nib.Nifti1Image(cube.astype(dtype), np.eye(4))
            nib.save(image, folder / f"v{i}.nii")

    # --------------------------------------------------------------------------------------- links

    def links(self, rng, work):
        """Links to scans and folders, that lead nowhere or in a circle; and as --output."""
        elsewhere = shutil.copytree(self.keep / "in", work / "elsewhere")
        source = work / "in"
        source.mkdir()
        names = sorted(path.name for path in elsewhere.iterdir())
        targets = ("../elsewhere/" + names[0], "../elsewhere", ".", "..", "nothing", "/dev/null",
                   "../.git/annex/objects/x/y", "/dev/zero", "loop", "../in/s1.nii.gz")
        for i, name in enumerate(names):
            (source / f"s{i}.nii.gz").symlink_to(elsewhere / name)
        for i in range(rng.integers(1, 4) if rng else 1):
            target = targets[rng.integers(len(targets))] if rng else targets[1]
            name = ("loop", "x.nii", f"more{i}", f"t{i}.nii.gz")[rng.integers(4) if rng else 2]
            if not os.path.lexists(source / name):
                (source / name).symlink_to(target)
        output = work / "d"
        places = ("disk", "in", "nothing", "d", "elsewhere/x", "in/s0.nii.gz", "/proc/self/fd")
        place = places[rng.integers(len(places))] if rng else places[0]
        (work / "disk").mkdir()
        output.symlink_to(place)
        code, said = self.preprocess(source, output)
        assert os.path.islink(output), "the link is gone"
        assert sorted(path.name for path in elsewhere.iterdir())[:3] == names
        return code, said

    # ------------------------------------------------------------------------------------- folders

    def folders(self, rng, work):
        """A tree of scans, of files that are none, and of names that nobody expects."""
        source = work / "in"
        shutil.copytree(self.keep / "in", source)
        for _ in range(rng.integers(1, 6) if rng else 0):
            self._add_odd_file(source, rng)
        flags = []
        for _ in range(rng.integers(3) if rng else 0):
            flags += CHOICES[rng.integers(len(CHOICES))]
        with unreadable(source, rng):
            code, said = self.preprocess(source, work / "d", *flags)
        if code != 2:
            header, entries = manifest.read_manifest(work / "d")
            for entry in entries:
                path = mosaic_files.mosaic_path(work / "d", entry["id"])
                assert mosaic_files.read_mosaic(path, header).any()
        return code, said

    def _add_odd_file(self, source, rng):
        name = ODD_NAMES[rng.integers(len(ODD_NAMES))]
        path = Path(os.fsdecode(os.fsencode(source) + b"/" + name))
        if name.endswith(b"/"):
            path.mkdir(exist_ok=True)
            return
        if path.is_dir() or any(parent.is_file() for parent in path.parents):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        good = sorted((self.keep / "in").iterdir())
        if rng.integers(2):
            path.write_bytes(good[rng.integers(len(good))].read_bytes())
        else:
            path.write_bytes(NO_SCANS[rng.integers(len(NO_SCANS))])


@contextmanager
def unreadable(folder, rng):
    """One time in four, a file or folder below cannot be read meanwhile.

    Root may read everything, and is another user meanwhile.
    """
    paths = sorted(folder.rglob("*"))
    chosen = paths[rng.integers(len(paths))] if rng and rng.integers(4) == 0 else None
    if chosen is None:
        yield
        return
    user, mode = os.geteuid(), chosen.stat().st_mode
    folder.parent.chmod(0o777)
    chosen.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        chosen.chmod(mode)
