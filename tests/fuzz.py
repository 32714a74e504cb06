"""Mutated files, tables, links and folders through the scripts' own main().

    python tests/fuzz.py --cases 2000 --seed 0

All cases run in one process, which may take 2 GB more memory than it has at the start, and 10 s
per case. Prints a line of JSON per case: its kind; how it ended, "used", "skipped" or "refused";
for a defect "FAILED" and why. First comes each kind unchanged, as case -1. A case that hangs or
crashes ends the process in the middle of its line.
"""
import argparse
import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

# ruff: noqa: E402 (the imports below need the path above)
import nibabel as nib
import numpy as np
import torch
from helpers import AFFINE, GOLDEN, brain, random_vae, save_nifti
from mutations import mutate_bytes, mutate_header, mutate_json, mutate_png
from odd_inputs import OddInputs
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import evaluate
import models
import postprocess
import preprocess
import sample
from diffusion import vae as vae_module
from metrics import nifti_cubes, volume_sets
from mri import axis_orders, manifest
from mri.origin import describe
from training import checkpoint, pretrained
from utils import errors

MAX_SECONDS = 10              # per case
MAX_EXTRA_BYTES = 2 * 2 ** 30
CUBE = (12, 14, 13)


# -------------------------------------------------------------------------------------------- cases

class Cases(OddInputs):
    """Valid files of every kind, and for each kind a function that mutates one and uses it.

    These functions take a generator, None for no mutation, and an empty folder; they return the
    exit code of the script that used the file, and its stderr.
    """

    def __init__(self, root):
        self.root = root
        self.keep = root / "keep"
        self.keep.mkdir()
        self.array = brain(CUBE).astype(np.int16)
        self.scans = dict(self._write_scans())
        np.save(self.keep / "x.npy", self.array)
        self._write_cohort()
        self.vae = random_vae(self.keep / "vae", blocks=(8, 8), channels=2)
        self._write_checkpoint()

    def _write_scans(self):
        """Writes a scan in each format; yields its path, (header class, byte order)."""
        for cls, endian, name in ((nib.Nifti1Image, "<", "little.nii"),
                                  (nib.Nifti1Image, ">", "big.nii"),
                                  (nib.Nifti2Image, "<", "nifti2.nii"),
                                  (nib.Nifti1Pair, "<", "pair.hdr")):
            image = cls(self.array, AFFINE, cls.header_class(endianness=endian))
            image.set_qform(AFFINE, 1)
            nib.save(image, self.keep / name)
            yield self.keep / name, (cls.header_class, endian)
        image = nib.freesurfer.MGHImage(self.array, AFFINE)
        nib.save(image, self.keep / "m.mgh")
        yield self.keep / "m.mgh", (image.header_class, ">")

    def _write_cohort(self):
        """Scans with a mask, and the data folder of them."""
        names = [f"sub-0{i}_T1w.nii.gz" for i in range(3)]
        for i, name in enumerate(names):
            save_nifti(self.keep / "in" / name, brain(CUBE, i), AFFINE)
        save_nifti(self.keep / "mask.nii.gz", self.array > 200, AFFINE, np.uint8)
        self.preprocess(self.keep / "in", self.keep / "data", "--mask", self.keep / "mask.nii.gz",
                        "--crop", "brain")

    def _write_checkpoint(self):
        header, _ = manifest.read_manifest(self.keep / "data")
        config = dict(input_size=24, patch_size=4, in_channels=2, hidden_size=16, depth=2,
                      num_heads=2, num_classes=1, base_grid=6, gamma_blocks=0,
                      numerics="official")
        model = models.DiT(**config)
        weights = {k: v for k, v in model.state_dict().items() if k != "pos_embed"}
        sha256 = vae_module.fingerprint(vae_module.load_vae(str(self.vae)))
        metadata = dict(
            model="DiT-T/4", config=config, tune="full", base=None, header=header,
            begun_from=None, image_size=48, step=3,
            vae=dict(name=str(self.vae), scaling_factor=0.7, shift_factor=None, sha256=sha256,
                     path=str(self.vae)))
        checkpoint.save_checkpoint(self.keep / "c.safetensors", metadata, ema=weights,
                                   raw={k: v.clone() for k, v in weights.items()})
        torch.save(dict(model.state_dict()), self.keep / "w.pt")

    def preprocess(self, source, output, *more):
        return call(preprocess.main, "--input", source, "--output", output, "--size", 16,
                    "--workers", 1, *more)

    def postprocess(self, source, output, *more):
        return call(postprocess.main, "--input", source, "--output", output, *more)

    def read_sets(self, real, synthetic, *more):
        """As evaluate.py reads them."""
        def read():
            args = evaluate.parse_args()
            for found in filter(None, evaluate.find_sets(args)):
                volume_sets.load(found, volume_sets.allocate(len(found), found.side, 0.1, real))
                json.dumps([describe(found.made_by), found.warnings, found.notes()])

        return call(read, "--real", real, "--synthetic", synthetic, "--output", real / "out",
                    "--device", "cpu", *more)

    # Kinds of cases: the names are those in KINDS.

    def scan(self, rng, work):
        path = self._mutated_scan(rng, work)
        options = ((), ("--volume", 0), ("--fit", "pad"), ("--crop", "brain"))
        options = options[rng.integers(4)] if rng else ()
        code, said = self.preprocess(path, work / "d", *options)
        if code:
            return code, said
        _, (entry,) = manifest.read_manifest(work / "d")
        code, said = self.postprocess(work / "d", work / "n", "--restore-shape")
        back = nib.load(work / "n" / "x.nii.gz")
        assert code == 0 and list(back.shape) == entry["shape"], said
        assert np.isfinite(back.get_fdata()).all()
        tolerance = 1e-3 * np.abs(entry["affine"]).max()
        assert np.allclose(back.affine, entry["affine"], rtol=1e-4, atol=tolerance)
        return code, said

    def _mutated_scan(self, rng, work):
        path = list(self.scans)[rng.integers(len(self.scans)) if rng else 0]
        cls, endian = self.scans[path]
        raw, suffix = path.read_bytes(), path.suffix
        if rng and rng.integers(2):
            raw = mutate_header(raw, cls, rng, endian)
        else:
            raw = mutate_bytes(raw, rng)
        if suffix == ".hdr":
            shutil.copy(path.with_suffix(".img"), work / "x.img")
        elif rng and rng.integers(2):
            raw, suffix = gzip.compress(raw, 1), {".nii": ".nii.gz", ".mgh": ".mgz"}[suffix]
            if rng.integers(4) == 0:
                raw = mutate_bytes(raw, rng)
        (work / f"x{suffix}").write_bytes(raw)
        return work / f"x{suffix}"

    def npy(self, rng, work):
        raw = (self.keep / "x.npy").read_bytes()
        n = 128 if rng and rng.integers(2) else len(raw)  # the header, or all of it
        (work / "x.npy").write_bytes(mutate_bytes(raw[:n], rng) + raw[n:])
        return self.preprocess(work / "x.npy", work / "d", "--affine", "identity")

    def mask(self, rng, work):
        raw = gzip.decompress((self.keep / "mask.nii.gz").read_bytes())
        raw = mutate_header(raw, nib.Nifti1Header, rng)
        (work / "m.nii.gz").write_bytes(gzip.compress(raw, 1))
        return self.preprocess(self.keep / "in", work / "d", "--mask", work / "m.nii.gz",
                               "--crop", "brain", "--crop-margin", 0)

    def manifest(self, rng, work):
        shutil.copytree(self.keep / "data", work / "d")
        path = work / "d" / "manifest.json"
        path.write_bytes(mutate_json(path.read_text(), rng))
        options = ["--restore-shape"] if rng and rng.integers(2) else []
        return self.postprocess(work / "d", work / "n", *options)

    def png(self, rng, work):
        shutil.copytree(self.keep / "data", work / "d")
        path = next((work / "d" / "mosaics").iterdir())
        path.write_bytes(mutate_png(path.read_bytes(), rng))
        return self.postprocess(work / "d", work / "n")

    def checkpoint(self, rng, work):
        path = work / "c.safetensors"
        if rng and rng.integers(3):
            with safe_open(self.keep / "c.safetensors", "pt") as f:
                meta = json.loads(f.metadata()["mosaicdit"])
            del meta["sha256"]
            meta["version"] = 1  # which had no checksum: it would refuse whatever follows
            text = mutate_json(json.dumps(meta), rng).decode("utf-8", "replace")
            save_file(load_file(self.keep / "c.safetensors"), path, metadata={"mosaicdit": text})
        else:
            raw = (self.keep / "c.safetensors").read_bytes()
            n = int.from_bytes(raw[:8], "little") + 8  # the header
            path.write_bytes(mutate_bytes(raw[:n], rng) + raw[n:])
        return call(sample.main, "--ckpt", path, "--output", work / "s", "--num-samples", 1,
                    "--sampler", "ddim", "--num-sampling-steps", 2, "--precision", "fp32",
                    "--device", "cpu")

    def weights(self, rng, work):
        if rng and rng.integers(2):
            (work / "w.pt").write_bytes(mutate_bytes((self.keep / "w.pt").read_bytes(), rng))
            return call(lambda: pretrained.load_weights(work / "w.pt") and None)
        shutil.copytree(self.vae, work / "vae")
        name = ("config.json", "diffusion_pytorch_model.safetensors")[rng.integers(2) if rng else 0]
        raw = (work / "vae" / name).read_bytes()
        (work / "vae" / name).write_bytes(mutate_bytes(raw[:4000], rng) + raw[4000:])
        return call(lambda: vae_module.load_vae(str(work / "vae")) and None)


    def cubes(self, rng, work):
        """What another generator wrote, with a range, an axis order and a source.json."""
        folder = work / "cubes"
        folder.mkdir()
        ranges = [(0, 1), (-1, 1), (0, 255), (1, 0), (-1e30, 1e30), (float("nan"), 1)]
        lo, hi = ranges[rng.integers(len(ranges)) if rng else 0]
        for i in range(3):
            cube = np.clip(brain((12, 12, 12), seed=i) / 1000, 0, 1).astype(np.float32)
            nib.save(nib.Nifti1Image(cube, np.eye(4)), folder / f"v{i}.nii")
        raw = (folder / "v1.nii").read_bytes()
        if rng:
            mutated = rng.integers(2)
            raw = mutate_header(raw, nib.Nifti1Header, rng) if mutated else mutate_bytes(raw, rng)
        (folder / "v1.nii").write_bytes(raw)
        source = json.dumps({"format": "mosaicdit-source", "version": 1, "made_by": {"seed": 1},
                             "volumes": {f"v{i}": {"class": "AD"} for i in range(3)}})
        if rng and rng.integers(2):
            source = mutate_json(source, rng).decode("utf-8", "replace")
        (folder / "source.json").write_text(source)
        axes = [None, "zyx", "xxy", "", "SPR"][rng.integers(5) if rng else 0]
        return call(lambda: self._load(folder, (lo, hi), axes))

    def samples(self, rng, work):
        """A samples folder of which mosaics are missing, with a samples.json that was changed."""
        folder = shutil.copytree(GOLDEN / "v2" / "samples", work / "samples")
        path = folder / "samples.json"
        path.write_bytes(mutate_json(path.read_text(), rng))
        if rng and rng.integers(2):
            (folder / "mosaics" / "000001.png").rename(folder / "mosaics" / "another.png")
        return call(lambda: self._load(folder, None, None))

    def _load(self, folder, value_range, axes):
        """Reads a set as evaluate.py does."""
        if value_range:
            nifti_cubes.check_range(value_range, "--synthetic-range")
        if axes is not None:
            try:
                axis_orders.parse_codes(axes)
            except ValueError as e:
                raise errors.UserError(f"--synthetic-axes {e}") from None
        found = volume_sets.find_set(folder, None, "--synthetic", value_range=value_range,
                                     axes=axes)
        volume_sets.load(found, volume_sets.allocate(len(found), found.side, 0.1, folder))
        json.dumps([describe(found.made_by), found.warnings, found.notes()])


# the kinds, and how many of the cases are of each
KINDS = dict(cubes=0.05, samples=0.04, scan=0.20, npy=0.05, manifest=0.10, png=0.06, mask=0.05,
             checkpoint=0.06, weights=0.05, labels=0.07, splits=0.05, lists=0.05, ranges=0.05,
             links=0.04, folders=0.08)


def call(main, *args):
    """Runs a script's main() as the script does. Returns its exit code and its stderr."""
    # as Python opens them: stdout refuses what is not UTF-8
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    before, sys.argv = sys.argv, ["script.py", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            errors.run_script(main)
    except SystemExit as e:
        err.flush()
        return e.code or 0, err.buffer.getvalue().decode()
    finally:
        sys.argv = before


def outcome(code, said):
    """How a case ended: "used", "skipped" or "refused".

    :raises AssertionError: it should not have ended like that
    """
    error_lines = [line for line in said.splitlines() if ": error: " in line]
    assert "Traceback" not in said and "out of memory" not in said, said[-500:]
    assert code in (0, 1, 2), (code, said[-500:])
    assert len(error_lines) == (code == 2), said[-500:]
    return {0: "used", 1: "skipped", 2: "refused"}[code]


def run_case(cases, i, kind, rng, work):
    """Runs one case, and prints its line."""
    print(json.dumps({"case": i, "kind": kind}), end=" ", flush=True)
    signal.alarm(MAX_SECONDS)
    said = ""
    try:
        code, said = getattr(cases, kind)(rng, work)
        ended = outcome(code, said)
    except Exception as e:  # what would have been a traceback
        ended = f"FAILED {type(e).__name__}: {e}"
    signal.alarm(0)
    lines = [line for line in said.splitlines()
             if ": error: " in line or line.startswith("skipped: ")]
    first = lines[0][:300].replace(str(cases.root), "") if lines else ""
    print(json.dumps({"ended": ended, "said": first}), flush=True)


def limit_memory():
    """From now on this process may take MAX_EXTRA_BYTES more than it has."""
    with open("/proc/self/statm") as f:
        has = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MAX_EXTRA_BYTES, has + MAX_EXTRA_BYTES))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="run this case alone")
    args = p.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)   # for the cases of another user, see odd_inputs.py
        cases = Cases(Path(root))
        Image.init()
        limit_memory()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        numbers = range(args.cases) if args.only is None else [args.only]
        for i, kind in [(-1, kind) for kind in KINDS] + [(i, None) for i in numbers]:
            rng = np.random.default_rng([args.seed, i]) if i >= 0 else None
            kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
            work = Path(root, "work")
            work.mkdir()
            run_case(cases, i, kind, rng, work)
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
