#!/usr/bin/env python3
"""Downloads public weights into weights/, where the other commands look for them.

    python download.py all
    python download.py sd-vae-ft-mse --output /scratch/weights

An interrupted download resumes from FILE.part. A file gets its name only after it was checked:
against its published SHA-256 if there is one, otherwise for its size and for being complete. Files
that exist already, also those copied by hand, are checked again and left as they are.

For a node without internet, run this on a login node and copy the folder, or download the
addresses that the error names. HF_ENDPOINT=https://... replaces https://huggingface.co, where
sd-vae-ft-* are; MOSAICDIT_MIRROR=https://... is a folder with the other files, laid out as
weights/. Only https is accepted, and http on this machine itself.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import fcntl
import json
import os
import re
import shutil
import time
import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import requests

from utils.files import WEIGHTS_DIR, make_folder, sha256_of_file
from utils.flags import make_parser
from utils.progress import progress
from utils.shared_folders import open_own

HUB = "https://huggingface.co"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
SECURE_URL = re.compile(r"https://|http://(localhost|127\.0\.0\.1)(:\d+)?(/|$)")
BLOCK_BYTES = 2 ** 20
RETRIES = 3             # in a row, without a new byte between them
TIMEOUT = (15, 60)      # seconds to connect, and between two blocks
# published in github.com/finegrain-ai/refiners (autoencoder_sd15.py), workmusicalflow/CatVTON (LFS)
MSE_SHA256 = "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"
# MeshNets of neuroneural/brainchop, MIT License, at one commit; of the files as they are there
BRAINCHOP = ("https://raw.githubusercontent.com/neuroneural/brainchop/"
             "4c87885f3a2a8835e260d521dcec922b58d91d41/public/models")
MESHNET_SHA256 = {
    "mindgrab/colormap.json": "b29809105747c752c889036bb953744cbd63b67f25b9c1b0657eaf00841fd1bf",
    "mindgrab/model.bin": "c9a01490fe2d13acc1515fd019b69db176ebe6f40c9b84aeb77f25acbc2ee0f3",
    "mindgrab/model.json": "24d1bcccba736a83c80b336ca349297f4839ae08b8ec92ec72c5d6adb9afe76e",
    "model18cls/colormap.json": "10ebff5980dd2afe1a1407dd951d1258dfc95fec51641bab9b4a9b88d76808c5",
    "model18cls/model.bin": "725096439f64ece1ca45ec3c5115c9fa6004f6538cac3032b85966d3772b605e",
    "model18cls/model.json": "57346ac8b66ebe8d92296b1cf9988143be4949b6ef9695a790ef3d7fba3fb81b"}


@dataclass(frozen=True)
class PublicFile:
    """A file of public weights."""
    path: str           # under --output
    url: str            # public address
    sha256: str = ""    # as published, or its beginning; empty: not published, or only by the hub


def dit_files():
    file = "DiT-XL-2-512x512.pt"
    return [PublicFile(file, f"https://dl.fbaipublicfiles.com/DiT/models/{file}")]


def vae_files(name, sha256=""):
    url = f"{HUB}/stabilityai/{name}/resolve/main"
    return [PublicFile(f"{name}/config.json", f"{url}/config.json"),
            PublicFile(f"{name}/{VAE_WEIGHTS}", f"{url}/{VAE_WEIGHTS}", sha256)]


def inception_files():
    from metrics.inception import WEIGHTS_FILE  # here, as it imports PyTorch, which takes seconds

    url = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
    sha256 = Path(WEIGHTS_FILE).stem.rsplit("-", 1)[1]  # its beginning, by torch.hub's convention
    return [PublicFile(WEIGHTS_FILE, url, sha256)]


def meshnet_files():
    return [PublicFile(f"meshnet/{path}", f"{BRAINCHOP}/{path}", sha256)
            for path, sha256 in MESHNET_SHA256.items()]


PUBLIC_WEIGHTS = {  # name: function that lists its files
    "dit-xl-2-512": dit_files,
    "sd-vae-ft-ema": partial(vae_files, "sd-vae-ft-ema"),
    "sd-vae-ft-mse": partial(vae_files, "sd-vae-ft-mse", MSE_SHA256),
    "inception": inception_files,
    "meshnet": meshnet_files,
}


def mirrored(file):
    """The address of a PublicFile: the public one, or on the mirror that the environment names."""
    url = file.url
    on_hub = url.startswith(HUB)
    variable = "HF_ENDPOINT" if on_hub else "MOSAICDIT_MIRROR"
    mirror = os.environ.get(variable, "").rstrip("/")
    if not mirror:
        return url
    if not SECURE_URL.match(mirror):
        raise UserError(f"{variable}={mirror}: must begin with https:// (http:// only for "
                        "localhost); correct or unset it")
    return mirror + (url.removeprefix(HUB) if on_hub else "/" + file.path)


# ----------------------------------------------------------------------------------------- checks

def check_file(path, sha256, suffix):
    """Checks a file against its published SHA-256, and that it is complete.

    :param sha256: as in PublicFile
    :param suffix: suffix of the file's final name
    :return: what it was checked for, to tell the user
    :raises ValueError: it is damaged
    """
    digest = sha256_of_file(path)
    if not digest.startswith(sha256):
        dots = "" if len(sha256) == 64 else "..."
        raise ValueError(f"its SHA-256 is {digest}, published is {sha256}{dots}")
    if not is_complete(path, suffix):
        raise ValueError(f"it is not a complete {suffix} file")
    if sha256:
        beginning = "" if len(sha256) == 64 else f"beginning with {sha256} "
        return f"SHA-256 {digest}, {beginning}as published"
    return (f"complete, {path.stat().st_size} bytes; no published checksum is known to compare "
            f"with its SHA-256 {digest}")


def is_complete(path, suffix):
    """Whether a .json, .pt or .safetensors file is complete; other files count as complete."""
    try:
        if suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif suffix == ".pt":  # a zip archive that ends in its table of contents, with CRC-32s
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif suffix == ".safetensors":
            return path.stat().st_size == safetensors_size(path)
        return True
    except Exception:  # a damaged file may make its reader raise anything
        return False


def safetensors_size(path):
    """Size of a .safetensors file by its header, bytes."""
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")  # of the header, which says where tensors end
        header = json.loads(f.read(min(length, path.stat().st_size)))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends)


def is_there(folder, file):
    """Whether a PublicFile is in the folder; raises UserError if it is, but damaged."""
    path = folder / file.path
    if not path.exists():
        return False
    try:
        checked = check_file(path, file.sha256, path.suffix)
    except ValueError as e:
        raise UserError(f"{path}: exists, but is damaged: {e}; remove it, run again") from None
    print(f"{path}: exists already; {checked}", flush=True)
    return True


# --------------------------------------------------------------------------------------- download

def fetch(url, target, sha256, advice):
    """Downloads one file and checks it.

    :param sha256: as in PublicFile
    :param advice: what to do if it cannot be downloaded here
    :raises UserError: it cannot be downloaded or is damaged; then no file has its name
    """
    make_folder(target.parent, f"--output {target.parent}")
    part = target.with_name(target.name + ".part")
    print(f"{url} -> {target}", flush=True)
    with open_own(part, "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part}: another download.py is writing it; wait for it") from None
        try:
            stated = receive(url, f, target, advice)
            checked = check_file(part, sha256 or stated, target.suffix)
        except ValueError as e:
            f.truncate(0)
            raise UserError(f"{target}: the download was damaged and is removed: {e}; run again, "
                            "or try a mirror") from None
        finally:
            if os.fstat(f.fileno()).st_size == 0:
                part.unlink()
        os.replace(part, target)
    print(f"{target}: {checked}", flush=True)


def receive(url, f, target, advice):
    """Appends to the open file what it lacks, and resumes after dropped connections.

    :return: the SHA-256 that the server states, or ""
    :raises ValueError: another size than the server announces
    :raises UserError: the server is out of reach, refuses, or drops too many connections
    """
    failures = 0        # in a row, without a new byte between them
    furthest = 0        # bytes received before any failure
    connected = False
    while True:
        try:
            with request_rest(url, f) as response:
                connected = True
                size, sha256 = begin(response, f, target, advice)
                # the body of 416 says only that nothing comes after the end of the file
                body = response.iter_content(BLOCK_BYTES) if response.status_code != 416 else []
                blocks = -(-(size - f.tell()) // BLOCK_BYTES)
                for block in progress(body, f"{target.name}, MiB", total=blocks):
                    f.write(block)
            f.flush()
            if size and f.tell() != size:
                raise ValueError(f"{f.tell()} bytes, the server announces {size}")
            return sha256
        except requests.RequestException as e:
            failures = 1 if f.tell() > furthest else failures + 1
            furthest = max(furthest, f.tell())
            reason = reason_of(e)
            if failures > RETRIES or not connected:
                raise UserError(f"{target}: no download from {url} ({reason}); {advice}") from None
            print(f"{target}: {reason}; resumes", flush=True)
            time.sleep(2 ** (failures - 1))


def request_rest(url, f):
    """Requests what comes after the end of the open file."""
    headers = {"Accept-Encoding": "identity"}
    have = f.seek(0, os.SEEK_END)
    if have:
        headers["Range"] = f"bytes={have}-"
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)


def reason_of(error):
    """The innermost reason of a failed request, without the objects that its text names."""
    if isinstance(error, requests.Timeout):
        return "timed out"
    return re.split("['\"][,)]", str(error).rsplit(": ", 1)[-1])[0]


def begin(response, f, target, advice):
    """Examines the headers of a response; empties the file if the body does not start at its end.

    :return: bytes of the whole file, or 0 if unknown; the SHA-256 that the server states, or ""
    :raises requests.ConnectionError: worth another request
    :raises UserError: an insecure address, a refusal, too little disk space
    """
    check_response(response, target, advice)
    # 206: "bytes START-END/SIZE"; 416, as nothing comes after the end: "bytes */SIZE"
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
    start = int(span[1] or span[2]) if span else 0
    size = int(span[2] if span else response.headers.get("Content-Length", 0))
    if start != f.tell() or (response.status_code == 416 and not span):
        f.truncate(0)
        f.seek(0)
        if response.status_code != 200:
            raise requests.ConnectionError("the part is of another file and is removed")
        print(f"{target}: the server cannot resume; starts over", flush=True)
    missing = size - f.tell()
    free = shutil.disk_usage(target.parent).free
    if missing > free:
        raise UserError(f"{target}: needs {missing / 1e9:.3g} GB more, its disk has "
                        f"{free / 1e9:.3g} GB free; make room, or name another --output")
    return size, stated_sha256(response)


def check_response(response, target, advice):
    """Raises an error for a response that is insecure or has nothing of the file."""
    hops = (*response.history, response)
    if not all(SECURE_URL.match(hop.url) for hop in hops):
        raise UserError(f"{target}: leads to {response.url}, which is not https; {advice}")
    status = f"{response.status_code} {response.reason}"
    if response.status_code == 429 or response.status_code >= 500:
        raise requests.ConnectionError(status)
    if response.status_code not in (200, 206, 416):
        raise UserError(f"{target}: {hops[0].url} answers {status}; {advice}")


def stated_sha256(response):
    """SHA-256 in the headers: the first, as the hub redirects to storage that it does not own."""
    hops = (*response.history, response)
    tags = [hop.headers["X-Linked-Etag"] for hop in hops if "X-Linked-Etag" in hop.headers]
    stated = tags[0].strip('"') if tags else ""
    return stated if re.fullmatch("[0-9a-f]{64}", stated) else ""


def main():
    parser = make_parser(__doc__)
    parser.add_argument("weights", choices=[*PUBLIC_WEIGHTS, "all"],
                        help="dit-xl-2-512: the model to finetune, 2.7 GB; sd-vae-ft-*: its "
                        "autoencoder, 0.3 GB each; inception: for FID and KID, 0.1 GB; meshnet: "
                        "for preprocess.py --skull-strip and anatomy in evaluate.py, 1 MB")
    parser.add_argument("--output", type=Path, default=WEIGHTS_DIR, help="folder of the weights")
    args = parser.parse_args()

    wanted = PUBLIC_WEIGHTS if args.weights == "all" else [args.weights]
    files = [file for name in wanted for file in PUBLIC_WEIGHTS[name]()]
    missing = [replace(file, url=mirrored(file)) for file in files
               if not is_there(args.output, file)]
    for i, file in enumerate(missing):
        rest = ", ".join(f"{other.url} as {args.output / other.path}" for other in missing[i:])
        advice = ("where there is no internet, run this on a login node and copy the folder, or "
                  f"download elsewhere {rest}")
        fetch(file.url, args.output / file.path, file.sha256, advice)


if __name__ == "__main__":
    run_script(main)
