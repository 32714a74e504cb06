#!/usr/bin/env python3
"""Public weights -> weights/, where the other commands look for them.

    python download.py all
    python download.py sd-vae-ft-mse --output /scratch/weights

A download that was cut short goes on where it stopped, from FILE.part. A file gets its name only after it was checked:
against its published SHA-256 where there is one, else for its size and for being whole. Files that are there already
are checked again and left alone, so this also checks what was copied by hand.

A node without internet: run it on a login node and copy the folder; or fetch the addresses that the error names.
A mirror: HF_ENDPOINT=https://... stands in for https://huggingface.co (sd-vae-ft-*); MOSAICDIT_MIRROR=https://... is a
folder that holds the other files under the same names. Only https, and http on this machine itself (localhost).
"""
import fcntl
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import requests

from utils.errors import UserError, run_script
from utils.files import WEIGHTS_DIR, sha256_of_file
from utils.flags import make_parser
from utils.progress import progress

HUB = "https://huggingface.co"
EMA, MSE, VAE = "sd-vae-ft-ema", "sd-vae-ft-mse", "diffusion_pytorch_model.safetensors"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
# {name: {file under --output: (address, SHA-256 or as much of its beginning as is published)}}. Empty: none is published,
# or the hub states it with the file, as it does for large ones. Sources: INCEPTION, its own name, by torch.hub's custom;
# MSE, github.com/finegrain-ai/refiners, src/refiners/conversion/models/autoencoder_sd15.py, and the Git LFS pointer
# github.com/workmusicalflow/CatVTON, sd-vae-ft-mse/diffusion_pytorch_model.safetensors.
FILES = {
    "dit-xl-2-512": {"DiT-XL-2-512x512.pt": ("https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt", "")},
    EMA: {f"{EMA}/{file}": (f"{HUB}/stabilityai/{EMA}/resolve/main/{file}", "") for file in ("config.json", VAE)},
    MSE: {f"{MSE}/{file}": (f"{HUB}/stabilityai/{MSE}/resolve/main/{file}", sha256) for file, sha256 in (
        ("config.json", ""), (VAE, "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"))},
    "inception": {INCEPTION: (f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}", "6726825d")},
}
SECURE = re.compile(r"https://|http://(localhost|127\.0\.0\.1)(:\d+)?(/|$)")
MIB, RETRIES = 2 ** 20, 3  # retries in a row, without a new byte between them


def address(url):
    """Where a file is fetched from: its public address, or the mirror's that the environment names."""
    variable = "HF_ENDPOINT" if (hub := url.startswith(HUB)) else "MOSAICDIT_MIRROR"
    mirror = os.environ.get(variable, "").rstrip("/")
    if mirror and not SECURE.match(mirror):
        raise UserError(f"{variable}={mirror}: must begin with https:// (http:// for localhost alone); mend or unset it")
    return mirror + (url.removeprefix(HUB) if hub else "/" + url.rsplit("/", 1)[1]) if mirror else url


def check(path, sha256, suffix):
    """Says what a file was checked for; raises ValueError when it is damaged. `sha256` may be a beginning, or empty."""
    digest = sha256_of_file(path)
    if not digest.startswith(sha256):
        raise ValueError(f"its SHA-256 is {digest}, published is {sha256:.<11}")
    whole, size = True, path.stat().st_size
    try:
        if suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif suffix == ".pt":  # torch.save's zip archive ends in its table of contents, and each member has a CRC-32
            with zipfile.ZipFile(path) as z:
                whole = z.testzip() is None
        elif suffix == ".safetensors":  # 8 bytes: length of the header; the header: where each tensor begins and ends
            with open(path, "rb") as f:
                n = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(min(n, size)))
            whole = size == 8 + n + max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
    except Exception:  # a damaged file may make its reader raise anything
        whole = False
    if not whole:
        raise ValueError(f"it is not a whole {suffix} file")
    if sha256:
        return f"SHA-256 {digest}, {'as published' if len(sha256) == 64 else f'beginning with {sha256} as published'}"
    return f"whole, {size} bytes; no published checksum is known to compare with its SHA-256 {digest}"


def begin(r, f, target, elsewhere):
    """Judges a response by its headers, and empties `f` if its body does not begin where `f` ends. Returns size, SHA-256."""
    if not all(SECURE.match(hop.url) for hop in (*r.history, r)):
        raise UserError(f"{target}: leads to {r.url}, which is not https; {elsewhere}")
    if r.status_code == 429 or r.status_code >= 500:
        raise requests.ConnectionError(f"{r.status_code} {r.reason}")
    if r.status_code not in (200, 206, 416):
        raise UserError(f"{target}: {(*r.history, r)[0].url} answers {r.status_code} {r.reason}; {elsewhere}")
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", r.headers.get("Content-Range", ""))
    start, size = (int(span[1] or span[2]), int(span[2])) if span else (0, int(r.headers.get("Content-Length", 0)))
    if start != f.tell() or r.status_code == 416 and not span:  # 416 "*/SIZE": nothing comes after SIZE
        f.seek(f.truncate(0))
        if r.status_code != 200:
            raise requests.ConnectionError("the file there is not the one begun, which is dropped")
        print(f"{target}: the server cannot resume; starts over", flush=True)
    lacks, free = size - f.tell(), shutil.disk_usage(target.parent).free
    if lacks > free:
        raise UserError(f"{target}: needs {lacks / 1e9:.3g} GB more, its disk has {free / 1e9:.3g} GB free; make room, or "
                        "name another folder with --output")
    # The hub redirects to storage elsewhere; only what it says itself counts, hence the first.
    stated = [hop.headers["X-Linked-Etag"].strip('"') for hop in (*r.history, r) if "X-Linked-Etag" in hop.headers]
    return size, stated[0] if stated and re.fullmatch("[0-9a-f]{64}", stated[0]) else ""


def receive(url, f, target, elsewhere):
    """Appends to `f` what it lacks, and again after a dropped connection. Returns the SHA-256 that the server states."""
    failures, most, reached = 0, 0, False
    while True:
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if (have := f.seek(0, os.SEEK_END)) else {})}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=(15, 60)) as r:
                reached = True
                size, sha256 = begin(r, f, target, elsewhere)
                blocks = r.iter_content(MIB) if r.status_code != 416 else []
                for block in progress(blocks, f"{target.name}, MiB", total=-(-(size - f.tell()) // MIB)):
                    f.write(block)
            f.flush()
            if size and f.tell() != size:
                raise ValueError(f"{f.tell()} bytes, the server announces {size}")
            return sha256
        except requests.RequestException as e:
            failures = 1 if f.tell() > most else failures + 1
            most = max(most, f.tell())
            reason = "timed out" if isinstance(e, requests.Timeout) else re.split("['\"][,)]", str(e).rsplit(": ", 1)[-1])[0]
            if failures > RETRIES or not reached:
                raise UserError(f"{target}: cannot be had from {url} ({reason}); {elsewhere}") from None
            print(f"{target}: {reason}; goes on", flush=True)
            time.sleep(2 ** (failures - 1))


def fetch(url, target, sha256, elsewhere):
    """One file, whole and checked, or UserError and no file of that name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    print(f"{url} -> {target}", flush=True)
    with open(part, "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part}: another download.py is writing it; wait for that one to end") from None
        try:
            stated = receive(url, f, target, elsewhere)
            said = check(part, sha256 or stated, target.suffix)
        except ValueError as e:
            f.truncate(0)
            raise UserError(f"{target}: the download was damaged and is removed: {e}; run again, or try a mirror") from None
        finally:
            if os.fstat(f.fileno()).st_size == 0:
                part.unlink()
        os.replace(part, target)
    print(f"{target}: {said}", flush=True)


def main():
    p = make_parser(__doc__)
    p.add_argument("weights", choices=[*FILES, "all"], help="dit-xl-2-512: the model to finetune, 2.7 GB; sd-vae-ft-*: "
                   "its autoencoder, 0.3 GB each; inception: for FID and KID, 0.1 GB")
    p.add_argument("--output", type=Path, default=WEIGHTS_DIR, help="folder")
    args = p.parse_args()

    missing = {}
    for name in FILES if args.weights == "all" else [args.weights]:
        for file, (url, sha256) in FILES[name].items():
            target = args.output / file
            if not target.exists():
                missing[target] = address(url), sha256
                continue
            try:
                print(f"{target}: is there already; {check(target, sha256, target.suffix)}", flush=True)
            except ValueError as e:
                raise UserError(f"{target}: is there, but damaged: {e}; remove it and run this again") from None
    for target, (url, sha256) in missing.items():
        fetch(url, target, sha256, "where there is no internet, run this on a login node and copy the folder, or fetch "
              "elsewhere " + ", ".join(f"{url} as {file}" for file, (url, _) in missing.items() if not file.exists()))


if __name__ == "__main__":
    run_script(main)
