"""The cache of latents: the VAE's moments of every mosaic, encoded once and read from disk.

    latents-NAME-1b4f0e9851971998.safetensors    moments of up to VOLUMES_PER_SHARD mosaics
    latents-NAME.safetensors                     all of them, as version 0.5 and before wrote it

Each row of a shard is known by its VAE and by the mosaic's bytes, so a stale one is never used:
what is not there is encoded. A shard is written as soon as it is encoded, so that an interrupted
encoding resumes, and scans that are added to a data folder are encoded alone.
"""
import glob
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusion import vae as vae_module
from diffusion.foreground import touched_latents
from mri.augmentation import Augmentation, augmented_mosaic
from mri.mosaic_files import mosaic_path, read_mosaic
from utils import distributed
from utils.errors import UserError, shorten
from utils.files import atomic_file, remove_leftovers, sha256_of_file
from utils.progress import progress
from utils.safetensors_files import Place, read_places

VOLUMES_PER_SHARD = 16
HASHING_THREADS = 4     # that read mosaics: most of the time goes into waiting for the disk


@dataclass(frozen=True)
class Row:
    """Where what is known of one mosaic is: in a shard on disk, or in memory.

    :param index: row of the tensors
    :param tensors: {name: Place in a shard} or {name: tensor}
    """
    index: int
    tensors: dict

    def read(self, name):
        """This row of the tensor `name`; from disk by an ordinary read.

        Pages of a mapped file would count as our memory, and end the process if it became shorter.
        """
        tensor = self.tensors[name]
        if not isinstance(tensor, Place):
            return tensor[self.index]
        try:
            return torch.from_numpy(tensor.read_row(self.index))
        except OSError as e:
            raise UserError(f"{tensor.path}: was removed or damaged ({shorten(e)}); the same "
                            "command encodes it again") from None


class Latents:
    """Moments of N mosaics, (N, 2C, h, w) float32. Each is read when it is asked for.

    :param rows: list of N Rows
    :param read_touched: index -> (h, w) bool, for rows without it; None: they have it
    """

    def __init__(self, rows, read_touched=None):
        self._rows = rows
        self._read_touched = read_touched
        self.shape = (len(rows), *rows[0].read("moments").shape)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        """Moments of some volumes, (n, 2C, h, w).

        :param index: (n,) int64
        """
        return torch.stack([self._rows[i].read("moments") for i in index.tolist()])

    def touched(self):
        """The latents that are not black in all of the mosaics, (h, w) bool."""
        union = np.zeros(self.shape[2:], bool)
        for i, row in enumerate(self._rows):
            if self._read_touched:
                union |= self._read_touched(i)
            else:
                union |= row.read("touched").bool().numpy()
        return union

    def checksum_and_mean(self, labels):
        """SHA-256 of all moments, then all labels, in hex; and the mean moments, (2C, h, w).

        A volume that is not finite, which training names and can skip, does not count in the mean.

        :param labels: (N,) int64
        """
        digest = hashlib.sha256()
        total, count = np.zeros(self.shape[1:], np.float64), 0
        for row in self._rows:
            moments = row.read("moments").numpy()
            digest.update(moments)
            if np.isfinite(moments).all():
                total += moments
                count += 1
        digest.update(labels.numpy().tobytes())
        return digest.hexdigest(), torch.from_numpy(total / max(1, count)).float()


# ---------------------------------------------------------------------------------------- encoding

@dataclass(frozen=True)
class Variants:
    """What is encoded of each volume: itself, and `count` - 1 variants."""
    count: int = 1
    augmentation: Augmentation = Augmentation()


def cached_latents(folder, header, entries, vae, name, variants=Variants()):
    """Latents of the mosaics of these entries, encoded where the cache lacks them.

    Of several processes each encodes its share.

    :param folder: data folder
    :param header, entries: of its manifest
    :param name: the VAE's name, for the file names
    :param variants: Variants
    :return: Latents of all variants of the first volume, itself first, then of the second, …
    :raises UserError: a mosaic is missing or damaged, or the VAE cannot divide its size
    """
    folder = Path(folder)
    factor = _downsampling_factor(folder, header, vae)
    side = header["grid"] * header["size"] // factor
    store = _Store(folder, name, vae_module.fingerprint(vae),
                   (2 * vae.config.latent_channels, side, side))
    plan = None
    if distributed.is_main():
        remove_leftovers(folder, (folder, None))
        checksums = [_checksum_of_variant(checksum, variants, k)
                     for checksum in _checksums(folder, entries) for k in range(variants.count)]
        known = store.rows(report=True)
        plan = {"checksums": checksums, "is_writable": os.access(folder, os.W_OK),
                "lacking": [i for i, checksum in enumerate(checksums) if checksum not in known]}
    plan = distributed.broadcast_json(plan)
    checksums, lacking = plan["checksums"], plan["lacking"]

    former = store.rows_of_version_05(entries, checksums) if variants.count == 1 else None
    if former:
        return Latents(former, lambda i: _read_touched(folder, header, entries[i], factor))

    parts = [lacking[i:i + VOLUMES_PER_SHARD] for i in range(0, len(lacking), VOLUMES_PER_SHARD)]
    if plan["is_writable"]:
        parts = parts[distributed.rank()::distributed.world_size()]
    elif parts and distributed.is_main():
        print(f"{folder}: cannot be written to; the latents of {len(lacking)} mosaics are encoded "
              "by every process and stay in its memory", file=sys.stderr)
    in_memory = {}
    for part in progress(parts, f"parts of {VOLUMES_PER_SHARD} VAE encodings"):
        # a volume's variant 0 is the mosaic itself: its checksum seeds the other variants
        wanted = [(entries[i // variants.count], i % variants.count,
                   checksums[i - i % variants.count]) for i in part]
        tensors = _encode(vae, folder, header, wanted, factor, variants.augmentation)
        encoded = [checksums[i] for i in part]
        if plan["is_writable"]:
            store.write(encoded, tensors)
        else:
            in_memory |= {checksum: Row(k, tensors) for k, checksum in enumerate(encoded)}
    distributed.barrier()
    rows = store.rows() | in_memory
    absent = sum(checksum not in rows for checksum in checksums)
    if absent:
        raise UserError(f"{folder}: lacks the latents of {absent} mosaics that were there or were "
                        "just encoded; do all processes see the same folder? The same command "
                        "encodes what is missing")
    return Latents([rows[checksum] for checksum in checksums])


def _downsampling_factor(folder, header, vae):
    side = header["grid"] * header["size"]
    factor = vae_module.downsampling_factor(vae)
    if side % factor:
        raise UserError(f"{folder}: mosaics of {side} pixels cannot be divided by the VAE's "
                        f"downsampling factor {factor}; preprocess with another --size")
    return factor


def _checksums(folder, entries):
    """SHA-256 of each mosaic's file, in hex."""
    def checksum(entry):
        path = mosaic_path(folder, entry["id"])
        try:
            return sha256_of_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run preprocess.py again") from None

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(checksum, entries))


def _checksum_of_variant(checksum, variants, k):
    """Names variant k of a mosaic; variant 0 is the mosaic itself."""
    if k == 0:
        return checksum
    text = f"{checksum} {variants.augmentation.key} {k}"
    return hashlib.sha256(text.encode()).hexdigest()


def _encode(vae, folder, header, wanted, factor, augmentation):
    """The tensors of a shard.

    :param wanted: list of (entry of the manifest, number of the variant, checksum of the mosaic)
    """
    moments, touched = [], []
    for entry, k, checksum in wanted:
        mosaic = read_mosaic(mosaic_path(folder, entry["id"]), header)
        if k:
            seed = [int(checksum[:16], 16), k]
            mosaic = augmented_mosaic(mosaic, header, augmentation, seed)
        moments.append(vae_module.encode_moments(vae, mosaic[None]))
        touched.append(torch.from_numpy(touched_latents(mosaic, factor)))
    return {"moments": torch.cat(moments), "touched": torch.stack(touched).byte()}


def _read_touched(folder, header, entry, factor):
    return touched_latents(read_mosaic(mosaic_path(folder, entry["id"]), header), factor)


def touched_by(folder, header, entries, vae):
    """The latents that are not black in all of the mosaics, (h, w) bool; nothing is encoded.

    :param folder: data folder
    :param header, entries: of its manifest
    """
    factor = vae_module.downsampling_factor(vae)
    side = header["grid"] * header["size"] // factor
    union = np.zeros((side, side), bool)
    for entry in progress(entries, "mosaics read"):
        union |= _read_touched(folder, header, entry, factor)
    return union


# ----------------------------------------------------------------------------------------- on disk

class _Store:
    """The shards of a VAE in a data folder.

    :param folder: data folder
    :param name: the VAE's name
    :param fingerprint: of the VAE's weights
    :param shape: of the moments of one mosaic, (2C, h, w)
    """

    def __init__(self, folder, name, fingerprint, shape):
        self.folder = folder
        self.name = name
        self.fingerprint = fingerprint
        self.shape = list(shape)
        self._headers = {}      # {path: metadata and Places} of shards that were read

    def write(self, checksums, tensors):
        """Writes a shard, whose name tells what is in it: another job writes the same.

        :param checksums: of the mosaics, in hex
        :param tensors: {"moments": (n, 2C, h, w) float32, "touched": (n, h, w) uint8}
        """
        content = hashlib.sha256(" ".join([self.fingerprint, *checksums]).encode()).hexdigest()
        metadata = {"latents": json.dumps({
            "vae": self.name, "fingerprint": self.fingerprint, "mosaics": checksums})}
        path = self.folder / f"latents-{self.name}-{content[:16]}.safetensors"
        with atomic_file(path) as temporary:
            try:
                save_file(tensors, temporary, metadata=metadata)
            except SafetensorError as e:
                raise OSError(None, str(e), str(path)) from None

    def rows(self, report=False):
        """{checksum of a mosaic: Row} of all shards of this VAE that can be read.

        The header of a shard is read once, as its name tells what is in it.

        :param report: name what cannot be used
        """
        rows, of_others = {}, []
        for path in sorted(self.folder.glob(f"latents-{glob.escape(self.name)}-*.safetensors")):
            try:
                if path not in self._headers:
                    self._headers[path] = self._read_header(path)
                metadata, places = self._headers[path]
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
                if report:
                    print(f"warning: {path}: damaged ({shorten(e)}), its mosaics are encoded again",
                          file=sys.stderr)
                continue
            if metadata["fingerprint"] != self.fingerprint:
                of_others.append(path)
                continue
            rows |= {checksum: Row(k, places) for k, checksum in enumerate(metadata["mosaics"])}
        if report and of_others:
            size = sum(path.stat().st_size for path in of_others)
            print(f"note: {self.folder}: {len(of_others)} files latents-{self.name}-*.safetensors "
                  f"({size / 1e6:.0f} MB) are of another VAE; remove them if no run needs them",
                  file=sys.stderr)
        return rows

    def rows_of_version_05(self, entries, checksums):
        """Rows of the one file that version 0.5 and before wrote, if it is of these mosaics.

        :return: list of Rows, or None
        """
        digest = hashlib.sha256(self.fingerprint.encode())
        for entry, checksum in zip(entries, checksums):
            digest.update(f"{entry['id']} {checksum}\n".encode())
        path = self.folder / f"latents-{self.name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as f:
                is_theirs = (f.metadata() or {}).get("key") == digest.hexdigest()
                if is_theirs and self._is_moments(f.get_slice("moments"), len(entries)):
                    places = read_places(path)
                    return [Row(k, places) for k in range(len(entries))]
        except (SafetensorError, OSError):
            pass
        return None

    def _is_moments(self, tensor, count):
        return tensor.get_shape() == [count, *self.shape] and tensor.get_dtype() == "F32"

    def _read_header(self, path):
        """The metadata of a shard, and where its tensors are; checked if it is of this VAE.

        :raises ValueError, KeyError, TypeError: they do not belong together
        """
        if not path.is_file():
            raise ValueError("not a regular file")
        with safe_open(path, "pt") as f:
            metadata = json.loads(f.metadata()["latents"])
            moments, touched = f.get_slice("moments"), f.get_slice("touched")
        mosaics, fingerprint = metadata["mosaics"], metadata["fingerprint"]
        if not isinstance(fingerprint, str) or not all(isinstance(name, str) for name in mosaics):
            raise ValueError("its header holds no checksums")
        if fingerprint == self.fingerprint and not (
                self._is_moments(moments, len(mosaics)) and touched.get_dtype() == "U8"
                and touched.get_shape() == [len(mosaics), *self.shape[1:]]):
            raise ValueError("its header does not fit its tensors")
        return metadata, read_places(path)
