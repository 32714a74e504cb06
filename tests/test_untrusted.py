"""Files from strangers: code in a pickle never runs, and a claim to be huge takes no memory."""
import gzip
import json
import os
import shutil
import struct
import time
import tracemalloc
import zlib
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import AFFINE, TRAIN, brain, error_line, save_nifti, script, train_flags
from mutations import png_chunk
from PIL import Image

from diffusion import vae as vae_module
from mri import manifest, mosaic, mosaic_files, scan_formats, scans
from training import latent_cache
from utils.errors import UserError

# ------------------------------------------------------------------------------- code in pickles


class Evil:
    """Leaves a file behind when it is unpickled carelessly."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def evil(tmp_path):
    """A function that writes a malicious pickle to a path; at the end, none may have run."""
    marker = tmp_path / "it-ran"

    def put(path):
        torch.save({"pos_embed": Evil(marker), "state": torch.zeros(2)}, path)
        return path

    torch.load(put(tmp_path / "proof.pt"), weights_only=False)  # the careless way runs it
    assert marker.exists()
    marker.unlink()
    yield put
    assert not marker.exists()


def test_in_place_of_the_official_weights(data, vae_folder, evil, tmp_path):
    path = evil(tmp_path / "DiT-XL-2-512x512.pt")
    done = script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                  tmp_path / "r", "--max-steps", 2, *train_flags(path), expect=2)
    line = error_line(done)
    assert str(path) in line and "pickle" in line and "could run code" in line


def test_in_place_of_a_vae(data, vae_folder, evil, tmp_path):
    words = "AutoencoderKL with safetensors weights"
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(vae_folder / "config.json", folder)
        evil(folder / name)
        with pytest.raises(UserError, match=words):
            vae_module.load_vae(str(folder))
    done = script("train.py", "--data-path", data, "--vae",
                  tmp_path / "diffusion_pytorch_model.bin", "--results-dir", tmp_path / "r",
                  "--max-steps", 2, "--tune", "full", *TRAIN, expect=2)
    assert words in error_line(done)


def test_in_place_of_the_inception_weights(data, evil, tmp_path):
    path = evil(tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    done = script("evaluate.py", "--real", data, "--real-split", "train", "--synthetic", data,
                  "--synthetic-split", "all", "--metrics", "fid", "--inception-weights", path,
                  "--output", tmp_path / "e", "--device", "cpu", expect=2)
    assert str(path) in error_line(done) and "weights" in error_line(done)


def test_in_place_of_a_state_or_a_checkpoint(data, vae_folder, pretrained, evil, tmp_path):
    run = tmp_path / "r" / pretrained.name
    shutil.copytree(pretrained, run)
    files = list((run / "checkpoints").iterdir())
    assert [path for path in files if ".state." in path.name]
    for path in files:
        evil(path)
    done = script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                  tmp_path / "r", "--tune", "full", "--max-steps", 4, *TRAIN, "--lr", 1e-2,
                  "--resume", run, expect=2)
    assert str(run) in error_line(done)
    done = script("sample.py", "--ckpt", run / "checkpoints" / "0000002.safetensors", "--output",
                  tmp_path / "s", "--device", "cpu", expect=2)
    assert "0000002.safetensors" in error_line(done) and not (tmp_path / "s").exists()


def test_in_place_of_the_latent_cache(data, vae_folder, evil, tmp_path):
    """The cache is a convenience: one that cannot be read is computed again."""
    shutil.copytree(data, tmp_path / "d")
    evil(tmp_path / "d" / f"latents-{vae_folder.name}.safetensors")
    evil(tmp_path / "d" / f"latents-{vae_folder.name}-0123456789abcdef.safetensors")
    header, entries = manifest.read_manifest(tmp_path / "d")
    vae = vae_module.load_vae(str(vae_folder))
    latents = latent_cache.cached_latents(tmp_path / "d", header, entries, vae, vae_folder.name)
    assert len(latents) == len(entries)
    assert latents[torch.arange(len(entries))].isfinite().all()


# ---------------------------------------------------------------------- claims of size, and paths

@contextmanager
def frugal(words, megabytes=64, seconds=10):
    """The body must raise a UserError with these words, having taken little memory and time."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UserError) as e:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    elapsed = time.monotonic() - start
    assert words in str(e.value) and "\n" not in str(e.value), e.value
    assert peak < megabytes * 2 ** 20 and elapsed < seconds, (peak, elapsed)


def scan_of(shape, version=1):
    """A header that claims this shape, 8 bits per voxel, and a few voxels."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_dtype(np.uint8)
    header.set_sform(AFFINE, 1)
    header["dim"][:len(shape) + 1] = [len(shape), *shape]
    header["vox_offset"] = 352 if version == 1 else 544
    return header.binaryblock + bytes(4) + bytes(1000)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape, version, words", [
    ((10 ** 4,) * 3, 1, "claims 10000 x 10000 x 10000 voxels, more than"),
    ((10 ** 6,) * 3, 2, "claims 1000000 x 1000000 x 1000000 voxels, more than"),
    ((2, 2, 2 ** 40), 2, "more than"),
    ((800, 800, 800), 1, "its header claims 512000352 bytes, the file has"),
    ((256, 256, 256, 32767), 1, "4D with shape"),
])
def test_a_header_that_claims_too_much(tmp_path, shape, version, words, packed):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    raw = scan_of(shape, version)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with frugal(words):
        scan_formats.read_scan(path)
    if len(shape) == 4:
        with frugal("GB, more than the"):
            scan_formats.read_scan(path, 5)


def test_a_gzip_bomb_after_a_good_scan(tmp_path):
    good = save_nifti(tmp_path / "a.nii", brain(), AFFINE).read_bytes()
    zeros = gzip.compress(bytes(2 ** 24), 9)
    path = tmp_path / "after.nii.gz"
    path.write_bytes(gzip.compress(good) + zeros * 1024)  # 16 GiB
    with frugal("holds more than the 23232 bytes that its header claims"):
        scan_formats.read_scan(path)
    script("preprocess.py", "--input", path, "--output", tmp_path / "d", expect=2)


@pytest.mark.parametrize("offset, words", [
    (2 ** 33, "its voxels begin at byte 8589934592"), (2 ** 25, "holds more than")])
def test_a_gzip_bomb_that_claims_to_be_a_header_extension(tmp_path, offset, words):
    good = save_nifti(tmp_path / "a.nii", brain(), AFFINE).read_bytes()
    raw = bytearray(good[:348] + b"\1\0\0\0" + struct.pack("<2i", 2 ** 31 - 16, 6))
    raw[108:112] = struct.pack("<f", offset)
    path = tmp_path / "extension.nii.gz"
    zeros = gzip.compress(bytes(2 ** 24), 9)
    path.write_bytes(gzip.compress(bytes(raw)) + zeros * 1024)
    with frugal(words):
        scan_formats.read_scan(path)


def test_a_gzip_bomb_that_its_header_announces(tmp_path):
    path = tmp_path / "large.nii.gz"
    zeros = gzip.compress(bytes(2 ** 24), 9)
    path.write_bytes(gzip.compress(scan_of((1000, 1000, 1000))[:352]) + zeros * 60)
    with frugal("claims 1000 x 1000 x 1000 voxels, more than"):
        scan_formats.read_scan(path)


def test_png_bombs(data, tmp_path):
    header, entries = manifest.read_manifest(data)
    good = mosaic_files.mosaic_path(data, entries[0]["id"]).read_bytes()
    side = mosaic.mosaic_side(header["size"], header["layout"])
    bomb = zlib.compress(bytes(2 ** 28), 9)
    path = tmp_path / "a.png"

    def of_size(side):
        size = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
        return good[:8] + png_chunk(b"IHDR", size) + good[33:]

    def check_refused(raw, words):
        path.write_bytes(raw)
        with frugal(words):
            mosaic_files.read_mosaic(path, header)

    check_refused(of_size(60000), "cannot be read as PNG")  # 3.6 gigapixels
    check_refused(of_size(9000), f"9000 x 9000 RGB, but the manifest says {side} x {side}")
    check_refused(good[:33] + png_chunk(b"zTXt", b"k\0\0" + bomb) + good[33:],
                  "cannot be read as PNG")
    image = Image.open(mosaic_files.mosaic_path(data, entries[0]["id"]))
    image.save(tmp_path / "b.tiff")
    check_refused((tmp_path / "b.tiff").read_bytes(), "cannot be read as PNG")

    # more pixels than its header says: the others are not decoded
    path.write_bytes(good[:33] + png_chunk(b"IDAT", bomb) + png_chunk(b"IEND", b""))
    tracemalloc.start()
    assert mosaic_files.read_mosaic(path, header).shape == (side, side, 3)
    assert tracemalloc.get_traced_memory()[1] < 2 ** 24
    tracemalloc.stop()

    shutil.copytree(data, tmp_path / "d")
    mosaic_files.mosaic_path(tmp_path / "d", entries[0]["id"]).write_bytes(of_size(9000))
    done = script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n",
                  expect=2)
    assert "9000 x 9000" in error_line(done)


# ------------------------------------------------------------------------------------- manifests

def altered(data, tmp_path, change):
    """The data folder's manifest after `change`, which gets its content."""
    content = json.loads((data / "manifest.json").read_text())
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path / "manifest.json"


PATHS = ["../evil", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", ".hidden",
         "x" * 300, 7, None, ["a"]]


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_ids_that_are_paths(data, tmp_path, name):
    def change(content):
        content["volumes"][1]["id"] = name

    with pytest.raises(UserError, match="its volume 2 is damaged or names a path"):
        manifest.read_manifest(altered(data, tmp_path, change))


EYE = np.eye(4).tolist()
SINGULAR = np.zeros((4, 4)).tolist()
BAD_VOLUMES = [
    dict(shape=[10 ** 4] * 3), dict(shape=[20, 26]), dict(shape=[20.5, 26, 22]),
    dict(shape=["20", 26, 22]), dict(window=[1, 1]), dict(window=["0", "1"]),
    dict(window=[0, 10 ** 400]), dict(window=[0, float("nan")]), dict(affine=SINGULAR),
    dict(affine=EYE[:3]), dict(crop=[[0, 5], [0, 5]]), dict(crop=[[0, 99], [0, 5], [0, 5]]),
    dict(crop=[[3, 3], [0, 5], [0, 5]]), dict(crop=[[-1, 5]] * 3), dict(codes=[1, 9]),
    dict(outside=None), {"class": -1}, {"class": 10 ** 30}, dict(split="other"),
    dict(subject=""), dict(n4="yes"), dict(warnings=[1])]
BAD_HEADERS = [
    dict(size=10 ** 9), dict(size=2 ** 12), dict(size="16"), dict(source_shape=[10 ** 4] * 3),
    dict(classes=[]), dict(classes=7), dict(fit="x"), dict(layout=3)]
CONTRADICTIONS = [
    dict(affine=SINGULAR), dict(grid=4), dict(source_affine=[[1e300] * 4] * 4)]


@pytest.mark.parametrize("values", BAD_VOLUMES, ids=lambda values: f"{values}"[:40])
def test_damaged_volumes_in_a_manifest(data, tmp_path, values):
    def change(content):
        content["volumes"][0].update(values)

    with pytest.raises(UserError, match="its volume 1 is damaged"):
        manifest.read_manifest(altered(data, tmp_path, change))


@pytest.mark.parametrize("values, words", [
    *((values, "damaged header") for values in BAD_HEADERS),
    *((values, "contradict each other") for values in CONTRADICTIONS)])
def test_damaged_headers_of_a_manifest(data, tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        manifest.read_manifest(altered(data, tmp_path, lambda content: content.update(values)))


def test_the_same_id_twice_in_a_manifest(data, tmp_path):
    def change(content):
        content["volumes"][1]["id"] = content["volumes"][0]["id"]

    with pytest.raises(UserError, match="its volume 2 is damaged"):
        manifest.read_manifest(altered(data, tmp_path, change))


def test_every_key_of_a_manifest_is_read(data, tmp_path):
    def change(content):
        content["volumes"][0].update(
            shape=[20, 26, 22], crop=[[0, 20], [0, 26], [0, 22]], outside=-3.5, codes=[4, 2],
            n4=False, mask="m", warnings=["x"])
        content["preparation"] = {"crop": "brain"}

    header, entries = manifest.read_manifest(altered(data, tmp_path, change))
    assert header["preparation"] == {"crop": "brain"} and entries[0]["codes"] == [4, 2]


def test_a_crop_larger_than_its_scan(data, tmp_path):
    """Within the scan's largest axis, but not within its own: known once the axes are."""
    def change(content):
        content["volumes"][0]["crop"] = [[0, 26], [0, 26], [0, 22]]

    altered(data, tmp_path, change)
    shutil.copytree(data / "mosaics", tmp_path / "mosaics")
    done = script("postprocess.py", "--input", tmp_path, "--output", tmp_path / "n", expect=2)
    assert "sub-00_ses-1_T1w: " in error_line(done) and "cropped" in error_line(done)
    assert not (tmp_path / "n").exists()


def test_manifests_of_a_million_entries(data, tmp_path):
    content = json.loads((data / "manifest.json").read_text())
    content["volumes"] = []
    before, after = json.dumps(content).split('"volumes": []')
    path = tmp_path / "manifest.json"
    one = ('{"id":"a","subject":"a","shape":[9,9,9],"window":[0,1],"split":"train","class":0,'
           '"x":[],"y":[],"z":[]}')

    def check_refused(text, words, megabytes):
        path.write_text(text)
        with frugal(words, megabytes):
            manifest.read_manifest(path)

    def of_volumes(volume, n):
        return f'{before}"volumes": [{",".join([volume] * n)}]{after}'

    check_refused(of_volumes("{}", 10 ** 6), "1000000 volumes, more than the 200000", 512)
    check_refused(of_volumes(one, 10 ** 6), "holds more than 10000000 values", 256)
    check_refused(of_volumes("[]", 10 ** 7), "holds more than 10000000 values", 256)
    check_refused("[" * 100_000, "nested too deeply", 64)
    check_refused('{"format": "mosaicdit-data", "version": ' + "9" * 100_000 + "}",
                  "not valid JSON", 64)


def test_files_of_a_terabyte(tmp_path):
    """On paper: they take no room on the disk."""
    with open(tmp_path / "manifest.json", "wb") as f:
        f.truncate(2 ** 40)
    with frugal("1099511627776 bytes, more than the"):
        manifest.read_manifest(tmp_path / "manifest.json")
    os.rename(tmp_path / "manifest.json", tmp_path / "a.tsv")
    with frugal("larger than the 64 MiB that are read"):
        scans.search(tmp_path / "a.tsv")
