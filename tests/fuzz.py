"""Mutated files through the scripts' own main(), in one process that may take 2 GB more than it has and 10 s a case.

    python tests/fuzz.py --cases 2000 --seed 0

Prints a line of JSON a case: its kind, how it ended (used, skipped, refused), and for what is a defect ("FAILED") why. First
comes each kind unchanged, as case -1. A case that hangs or crashes ends the process in the middle of its line.
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
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from training import pretrained
from utils import errors

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from helpers import AFFINE, brain, random_vae, save_nifti  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import models  # noqa: E402
import postprocess  # noqa: E402
import preprocess  # noqa: E402
import sample  # noqa: E402
from diffusion import vae as latents  # noqa: E402
from mri import manifest  # noqa: E402
from training import checkpoint as checkpoints  # noqa: E402

SECONDS, BYTES = 10, 2 * 2 ** 30
NUMBERS = [0, -0.0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, -32768, 65535, 2 ** 31 - 1, -2 ** 31, 2 ** 63 - 1, 1e-40, 1e30, -1e30,
           float("nan"), float("inf"), 0.5, 1000]
VALUES = [None, True, False, 0, 1, -1, 2, 10 ** 12, 10 ** 400, 1e308, -1e308, float("nan"), float("inf"), 0.5, "", "x", "../../x",
          "/etc/passwd", "a" * 5000, "\u0000", "\n", "é", [], {}, [[]], [1, 2, 3], [0, 0, 0], [10 ** 6] * 3, {"a": 1}, [None] * 16, "1"]


# --------------------------------------------------------------------------------------------------------- mutations

def mutate_bytes(raw, rng):
    """One to three changes anywhere: flipped, overwritten, cut, doubled, zeroed or added bytes. Without a generator, none."""
    if rng is None:
        return raw
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        n = max(1, len(raw))
        at, length = int(rng.integers(n)), int(rng.integers(1, max(2, min(n, 64))))
        what = rng.integers(7)
        if what == 0 and raw:
            raw[min(at, len(raw) - 1)] ^= 1 << int(rng.integers(8))
        elif what == 1:
            raw[at:at + length] = rng.bytes(length)
        elif what == 2:
            del raw[at:]
        elif what == 3:
            raw[at:at] = raw[at:at + length]
        elif what == 4:
            raw[at:at + length] = bytes(length)
        elif what == 5:
            raw += rng.bytes(length)
        else:
            del raw[at:at + length]
    return bytes(raw)


def mutate_header(raw, cls, rng, endian="<"):
    """One to three fields of a header get an odd value, or random bytes."""
    if rng is None:
        return raw
    raw, fields = bytearray(raw), cls.template_dtype.fields
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(list(fields)))
        dtype, at = fields[name][:2]
        width = dtype.itemsize
        scalar = dtype.base.newbyteorder(endian)
        if scalar.kind == "S" or rng.integers(4) == 0:
            raw[at:at + width] = rng.bytes(width)
            continue
        k = int(rng.integers(width // scalar.itemsize))
        value = NUMBERS[rng.integers(len(NUMBERS))]
        with np.errstate(all="ignore"):
            if scalar.kind in "iu":
                value = 0 if not np.isfinite(value) else int(value) & (2 ** (8 * scalar.itemsize) - 1)
                new = np.array([value], f"{endian}u{scalar.itemsize}")
            else:
                new = np.array([value], scalar)
        raw[at + k * scalar.itemsize:at + (k + 1) * scalar.itemsize] = new.tobytes()
    return bytes(raw)


def mutate_json(text, rng):
    """One or two values anywhere in the tree are replaced, removed or doubled; one time in four the bytes are mutated instead."""
    if rng is None or rng.integers(4) == 0:
        return mutate_bytes(text.encode(), rng)
    content = json.loads(text)
    for _ in range(rng.integers(1, 3)):
        node, parent, key = content, None, None
        while isinstance(node, (dict, list)) and len(node) and (parent is None or rng.integers(4)):
            parent, key = node, (list(node)[rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node))))
            node = node[key]
        if parent is None:
            continue
        what = rng.integers(4)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, list):
            parent.insert(key, node)
        else:
            parent[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(content).encode()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mutate_png(raw, rng):
    """The bytes, or a header of another size or kind with a right checksum, or a bomb of text."""
    what = rng.integers(4) if rng else 3
    if what == 0:
        header = bytearray(raw[16:29])
        header[int(rng.integers(13))] = int(rng.integers(256))
        return raw[:8] + png_chunk(b"IHDR", bytes(header)) + raw[33:]
    if what == 1:
        bomb = zlib.compress(bytes(50_000_000), 9)
        kind = [png_chunk(b"zTXt", b"k\0\0" + bomb), png_chunk(b"iCCP", b"k\0\0" + bomb), png_chunk(b"IDAT", bomb)][rng.integers(3)]
        return raw[:33] + kind + raw[33:]
    return mutate_bytes(raw, rng)


# -------------------------------------------------------------------------------------------------------------- cases

class Cases:
    """Valid files of every kind in a folder, and for each kind a function that mutates one and runs a script on it."""

    def __init__(self, root):
        self.root, self.keep = root, root / "keep"
        array = brain((12, 14, 13)).astype(np.int16)
        self.scans = {}
        for suffix, cls, endian in ((".nii", nib.Nifti1Image, "<"), (".nii", nib.Nifti1Image, ">"), (".nii", nib.Nifti2Image, "<"),
                                    (".hdr", nib.Nifti1Pair, "<")):
            path = self.keep / f"{cls.__name__}{'big' if endian == '>' else ''}{suffix}"
            path.parent.mkdir(exist_ok=True)
            image = cls(array, AFFINE, cls.header_class(endianness=endian))
            image.set_qform(AFFINE, 1)
            nib.save(image, path)
            self.scans[path] = cls.header_class, endian
        path = self.keep / "m.mgh"
        nib.save(nib.freesurfer.MGHImage(array, AFFINE), path)
        self.scans[path] = nib.freesurfer.MGHImage.header_class, ">"
        for i in range(3):
            save_nifti(self.keep / "in" / f"sub-0{i}_T1w.nii.gz", brain((12, 14, 13), i), AFFINE)
        save_nifti(self.keep / "mask.nii.gz", array > 200, AFFINE, np.uint8)
        (self.keep / "list.tsv").write_text("path\tid\tsubject\n" + "".join(f"in/sub-0{i}_T1w.nii.gz\ts{i}\tp{i}\n" for i in range(3)))
        (self.keep / "labels.tsv").write_text("participant_id\tgroup\n" + "".join(f"sub-0{i}\t{'ab'[i % 2]}\n" for i in range(3)))
        self.preprocess(self.keep / "in", self.keep / "data", "--mask", self.keep / "mask.nii.gz", "--crop", "brain")
        self.vae = random_vae(self.keep / "vae", blocks=(8, 8), channels=2)
        header, _ = manifest.read_manifest(self.keep / "data")
        config = dict(input_size=24, patch_size=4, in_channels=2, hidden_size=16, depth=2, num_heads=2, num_classes=1, base_grid=6,
                      gamma_blocks=0, numerics="official")
        model = models.DiT(**config)
        weights = {k: v for k, v in model.state_dict().items() if k != "pos_embed"}
        sha = latents.fingerprint(latents.load_vae(str(self.vae)))
        checkpoints.save_checkpoint(self.keep / "c.safetensors", dict(
            model="DiT-T/4", config=config, tune="full", base=None, header=header, begun_from=None, image_size=48, step=3,
            vae=dict(name=str(self.vae), scaling_factor=0.7, shift_factor=None, sha256=sha, path=str(self.vae))),
            ema=weights, raw={k: v.clone() for k, v in weights.items()})
        torch.save(dict(model.state_dict()), self.keep / "w.pt")

    def preprocess(self, source, output, *more):
        return call(preprocess.main, "--input", source, "--output", output, "--size", 16, "--workers", 1, *more)

    def scan(self, rng, work):
        path = list(self.scans)[rng.integers(len(self.scans)) if rng else 0]
        cls, endian = self.scans[path]
        raw = mutate_header(path.read_bytes(), cls, rng, endian) if rng and rng.integers(2) else mutate_bytes(path.read_bytes(), rng)
        suffix = path.suffix
        if suffix != ".hdr" and rng and rng.integers(2):
            raw, suffix = gzip.compress(raw, 1), {".nii": ".nii.gz", ".mgh": ".mgz"}[suffix]
            raw = mutate_bytes(raw, rng) if rng.integers(4) == 0 else raw
        elif suffix == ".hdr":
            shutil.copy(path.with_suffix(".img"), work / "x.img")
        (work / f"x{suffix}").write_bytes(raw)
        options = [(), ("--volume", 0), ("--fit", "pad"), ("--crop", "brain")][rng.integers(4)] if rng else ()
        code, said = self.preprocess(work / f"x{suffix}", work / "d", *options)
        if code == 0:
            header, (entry,) = manifest.read_manifest(work / "d")
            code, said = call(postprocess.main, "--input", work / "d", "--output", work / "n", "--restore-shape")
            back = nib.load(work / "n" / "x.nii.gz")
            assert code == 0 and list(back.shape) == entry["shape"] and np.isfinite(back.get_fdata()).all(), said
            assert np.allclose(back.affine, entry["affine"], rtol=1e-4, atol=1e-3 * np.abs(entry["affine"]).max())
        return code, said

    def mask(self, rng, work):
        raw = gzip.decompress((self.keep / "mask.nii.gz").read_bytes())
        (work / "m.nii.gz").write_bytes(gzip.compress(mutate_header(raw, nib.Nifti1Header, rng), 1))
        return self.preprocess(self.keep / "in", work / "d", "--mask", work / "m.nii.gz", "--crop", "brain", "--crop-margin", 0)

    def table(self, rng, work):
        shutil.copytree(self.keep / "in", work / "in")
        if rng and rng.integers(2):
            (work / "list.tsv").write_bytes(mutate_bytes((self.keep / "list.tsv").read_bytes(), rng))
            return self.preprocess(work / "list.tsv", work / "d")
        (work / "labels.tsv").write_bytes(mutate_bytes((self.keep / "labels.tsv").read_bytes(), rng))
        return self.preprocess(work / "in", work / "d", "--labels", work / "labels.tsv", "--label-column", "group")

    def manifest(self, rng, work):
        shutil.copytree(self.keep / "data", work / "d")
        (work / "d" / "manifest.json").write_bytes(mutate_json((work / "d" / "manifest.json").read_text(), rng))
        options = ["--restore-shape"] if rng and rng.integers(2) else []
        return call(postprocess.main, "--input", work / "d", "--output", work / "n", *options)

    def png(self, rng, work):
        shutil.copytree(self.keep / "data", work / "d")
        path = next((work / "d" / "mosaics").iterdir())
        path.write_bytes(mutate_png(path.read_bytes(), rng))
        return call(postprocess.main, "--input", work / "d", "--output", work / "n")

    def checkpoint(self, rng, work):
        path = work / "c.safetensors"
        if rng and rng.integers(3):
            with safe_open(self.keep / "c.safetensors", "pt") as f:
                meta = json.loads(f.metadata()["mosaicdit"])
            meta.pop("sha256", None)                           # a checksum would refuse most of what follows
            text = mutate_json(json.dumps(meta), rng).decode("utf-8", "replace")
            save_file(load_file(self.keep / "c.safetensors"), path, metadata={"mosaicdit": text})
        else:
            raw = (self.keep / "c.safetensors").read_bytes()
            n = int.from_bytes(raw[:8], "little") + 8
            path.write_bytes(mutate_bytes(raw[:n], rng) + raw[n:])
        return call(sample.main, "--ckpt", path, "--output", work / "s", "--num-samples", 1, "--sampler", "ddim", "--num-sampling-steps", 2,
                    "--precision", "fp32", "--device", "cpu")

    def weights(self, rng, work):
        if rng and rng.integers(2):
            (work / "w.pt").write_bytes(mutate_bytes((self.keep / "w.pt").read_bytes(), rng))
            return call(lambda: pretrained.load_weights(work / "w.pt") and None)
        shutil.copytree(self.vae, work / "vae")
        name = ("config.json", "diffusion_pytorch_model.safetensors")[rng.integers(2) if rng else 0]
        raw = (work / "vae" / name).read_bytes()
        (work / "vae" / name).write_bytes(mutate_bytes(raw[:4000], rng) + raw[4000:])
        return call(lambda: latents.load_vae(str(work / "vae")) and None)


KINDS = dict(scan=0.5, manifest=0.14, png=0.08, mask=0.06, table=0.08, checkpoint=0.08, weights=0.06)  # of the cases


def call(main, *args):
    """Runs a script's main() as the script does, through errors.run_script. Returns its exit code and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["script.py", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            errors.run_script(main)
    except SystemExit as e:
        return e.code or 0, err.getvalue()
    finally:
        sys.argv = before


def judge(code, said):
    """How a case ended. Raises AssertionError when it should not have ended so."""
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert "Traceback" not in said and "out of memory" not in said, said[-500:]
    assert code in (0, 1, 2), (code, said[-500:])
    assert len(errors) == (code == 2), said[-500:]
    return {0: "used", 1: "skipped", 2: "refused"}[code]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="run this case alone")
    args = p.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        cases = Cases(root)
        Image.init()
        with open("/proc/self/statm") as f:
            have = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + BYTES, have + BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        numbers = range(args.cases) if args.only is None else [args.only]
        for i, kind in [(-1, kind) for kind in KINDS] + [(i, None) for i in numbers]:
            rng = np.random.default_rng([args.seed, i]) if i >= 0 else None
            kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
            work = root / "work"
            work.mkdir()
            print(json.dumps({"case": i, "kind": kind}), end=" ", flush=True)
            signal.alarm(SECONDS)
            code, said = None, ""
            try:
                code, said = getattr(cases, kind)(rng, work)
                ended = judge(code, said)
            except Exception as e:  # what would have been a traceback
                ended = f"FAILED {type(e).__name__}: {e}"
            signal.alarm(0)
            line = [x for x in said.splitlines() if ": error: " in x or x.startswith("skipped: ")][:1]
            print(json.dumps({"ended": ended, "said": line[0][:300].replace(str(root), "") if line else ""}), flush=True)
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
