"""The cache of latents: used when it can be, never stale, and resumed where it was interrupted."""
import hashlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import random_vae
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion import vae as vae_module
from diffusion.foreground import touched_latents
from mri import manifest, mosaic_files
from mri.augmentation import Augmentation, augmented_mosaic
from training import latent_cache
from utils.errors import UserError
from utils.files import sha256_of_file

ALL = slice(None)


@pytest.fixture
def cache(data, vae_folder, tmp_path, monkeypatch):
    """A copy of the data folder without latents, and how it is encoded."""
    monkeypatch.setattr(latent_cache, "VOLUMES_PER_SHARD", 2)
    folder = shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns("latents-*"))
    return Cache(folder, vae_module.load_vae(vae_folder), monkeypatch)


class Cache:

    def __init__(self, folder, vae, monkeypatch):
        self.folder = folder
        self.vae = vae
        self.header, self.entries = manifest.read_manifest(folder)
        self.encoded = 0
        self.encode = vae_module.encode_moments
        monkeypatch.setattr(vae_module, "encode_moments", self.count)

    def count(self, vae, mosaics):
        self.encoded += len(mosaics)
        return self.encode(vae, mosaics)

    def latents(self, part=ALL, vae=None):
        """Latents of a part of the entries; `encoded` is then how many were encoded for it."""
        self.encoded = 0
        return latent_cache.cached_latents(self.folder, self.header, self.entries[part],
                                           vae or self.vae, "small")

    def moments(self, part=ALL, vae=None):
        latents = self.latents(part, vae)
        return latents[torch.arange(len(latents))]

    def mosaics(self, part=ALL):
        return mosaic_files.read_mosaics(self.folder, self.header, self.entries[part])

    def change_mosaic(self, i):
        path = mosaic_files.mosaic_path(self.folder, self.entries[i]["id"])
        mosaic_files.write_mosaic(path, 255 - mosaic_files.read_mosaic(path, self.header))

    def shards(self):
        return sorted(self.folder.glob("latents-small*"))


def test_moments_are_the_encoders_and_are_encoded_once(cache):
    first = cache.moments()
    assert cache.encoded == 6 and len(cache.shards()) == 3
    assert torch.equal(first, cache.encode(cache.vae, cache.mosaics()))
    assert torch.equal(cache.moments(), first) and cache.encoded == 0
    latents = cache.latents()
    assert latents.shape == tuple(first.shape) and len(latents) == 6
    assert torch.equal(latents[torch.tensor([4, 0, 4])], first[[4, 0, 4]])
    with safe_open(cache.shards()[0], "pt") as f:
        assert f.get_tensor("moments").dtype == torch.float32


def test_what_changed_or_was_added_is_encoded_alone(cache):
    first = cache.moments(slice(3))
    assert cache.encoded == 3
    whole = cache.moments()
    assert cache.encoded == 3 and torch.equal(whole[:3], first)
    cache.change_mosaic(1)
    changed = cache.moments()
    assert cache.encoded == 1 and not torch.allclose(changed[1], whole[1])
    assert torch.equal(changed[[0, 2, 3, 4, 5]], whole[[0, 2, 3, 4, 5]])


def test_another_vae_of_the_same_name_has_shards_of_its_own(cache, tmp_path, capsys):
    first = cache.moments()
    another = vae_module.load_vae(random_vae(tmp_path / "v2", seed=9))
    other = cache.moments(vae=another)
    assert cache.encoded == 6 and not torch.allclose(first, other)
    assert "3 files latents-small-*.safetensors" in capsys.readouterr().err
    assert torch.equal(cache.moments(), first) and cache.encoded == 0


def test_an_interrupted_encoding_resumes(cache, monkeypatch):
    whole = cache.moments()
    for path in cache.shards():
        path.unlink()

    def interrupted(vae, mosaics):
        if cache.encoded == 3:
            raise KeyboardInterrupt
        return cache.count(vae, mosaics)

    monkeypatch.setattr(vae_module, "encode_moments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.moments()
    monkeypatch.setattr(vae_module, "encode_moments", cache.count)
    assert torch.equal(cache.moments(), whole) and cache.encoded == 4


@pytest.mark.parametrize("damage", ["cut", "no safetensors", "metadata"])
def test_a_damaged_shard_is_encoded_again(cache, damage, capsys):
    whole = cache.moments()
    path = cache.shards()[1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "no safetensors":
        path.write_bytes(b"{")
    else:
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
        save_file({"moments": torch.zeros(2, 4, 2, 2), "touched": torch.zeros(2, 2, 2).byte()},
                  path, metadata)
    again = cache.moments()
    assert torch.equal(again, whole) and cache.encoded == 2
    assert f"warning: {path}: damaged" in capsys.readouterr().err


def test_a_shard_that_disappears_is_an_error_that_names_it(cache):
    latents = cache.latents()
    for path in cache.shards():
        path.unlink()
    with pytest.raises(UserError, match="latents-small-.* was removed or damaged"):
        latents[torch.tensor([5])]


def test_a_shard_that_others_do_not_see_is_an_error(cache, monkeypatch):
    """Such as one that another process wrote into a folder of its own machine."""
    monkeypatch.setattr(latent_cache.distributed, "barrier", lambda: cache.shards()[0].unlink())
    with pytest.raises(UserError, match="lacks the latents of 2 mosaics .* see the same folder"):
        cache.latents()


def test_a_shard_that_becomes_shorter_is_an_error_that_names_it(cache):
    """Through a mapped file, it would end the process (SIGBUS)."""
    latents = cache.latents()
    for path in cache.shards():
        os.truncate(path, 1000)
    with pytest.raises(UserError, match="latents-small-.* was removed or damaged .*are missing"):
        latents[torch.tensor([5])]


def test_a_header_is_read_once(cache, monkeypatch):
    """Also by the process that looks first what is there, and then encodes what is not."""
    cache.moments(slice(4))
    read, paths = latent_cache._Store._read_header, []

    def count(store, path):
        paths.append(path)
        return read(store, path)

    monkeypatch.setattr(latent_cache._Store, "_read_header", count)
    cache.moments()
    assert cache.encoded == 2 and sorted(paths) == cache.shards() and len(paths) == 3


def test_a_folder_that_cannot_be_written_keeps_latents_in_memory(cache, monkeypatch, capsys):
    whole = cache.moments()
    for path in cache.shards():
        path.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    latents = cache.latents()
    assert torch.equal(latents[torch.arange(6)], whole) and not cache.shards()
    assert "cannot be written to; the latents of 6 mosaics" in capsys.readouterr().err
    assert latents.touched().any()


def test_the_file_of_version_05_is_read(cache):
    """Its values may differ from what is encoded here, and a run that was begun with it resumes."""
    moments = torch.randn(cache.moments().shape)
    for path in cache.shards():
        path.unlink()
    digest = hashlib.sha256(vae_module.fingerprint(cache.vae).encode())
    for entry in cache.entries:
        checksum = sha256_of_file(mosaic_files.mosaic_path(cache.folder, entry["id"]))
        digest.update(f"{entry['id']} {checksum}\n".encode())
    save_file({"moments": moments}, cache.folder / "latents-small.safetensors",
              {"key": digest.hexdigest(), "vae": "small"})
    latents = cache.latents()
    assert cache.encoded == 0 and torch.equal(latents[torch.arange(6)], moments)
    assert latents.touched().any()
    cache.moments(slice(3))
    assert cache.encoded == 3      # it is of other mosaics


def test_touched_is_the_union_over_the_mosaics(cache):
    factor = vae_module.downsampling_factor(cache.vae)
    own = [touched_latents(mosaic, factor) for mosaic in cache.mosaics()]
    union = np.logical_or.reduce(own)
    assert not union.all() and union.any()
    assert np.array_equal(cache.latents().touched(), union)
    assert np.array_equal(cache.latents(slice(1)).touched(), own[0])
    assert np.array_equal(
        latent_cache.touched_by(cache.folder, cache.header, cache.entries, cache.vae), union)


def test_checksum_and_mean_are_those_of_all_moments(cache):
    moments, labels = cache.moments(), torch.tensor([0, 1, 0, 1, 0, 1])
    checksum, mean = cache.latents().checksum_and_mean(labels)
    assert checksum == hashlib.sha256(moments.numpy().tobytes()
                                      + labels.numpy().tobytes()).hexdigest()
    assert torch.allclose(mean, moments.mean(0), rtol=1e-6, atol=1e-7)


def test_a_volume_that_is_not_finite_is_not_in_the_mean(cache):
    moments = cache.moments()
    path = cache.shards()[0]
    with safe_open(path, "pt") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    bad = next(i for i in range(6) if torch.equal(moments[i], tensors["moments"][0]))
    tensors["moments"][0, 0, 0, 0] = torch.nan
    save_file(tensors, path, metadata)
    _, mean = cache.latents().checksum_and_mean(torch.zeros(6, dtype=torch.long))
    rest = [i for i in range(6) if i != bad]
    assert torch.allclose(mean, moments[rest].mean(0), rtol=1e-6, atol=1e-7)


def test_processes_encode_a_share_each(cache, monkeypatch):
    """Two threads stand for two processes."""
    whole = cache.moments()
    for path in cache.shards():
        path.unlink()
    own, shared, meeting = threading.local(), {}, threading.Barrier(2)
    encoded = {0: [], 1: []}

    def broadcast(value):
        if own.rank == 0:
            shared["value"] = value
        meeting.wait(60)
        return shared["value"]

    def encode(vae, mosaics):
        encoded[own.rank].append(mosaics[0].tobytes())
        return cache.encode(vae, mosaics)

    def run(rank):
        own.rank = rank
        latents = cache.latents()
        return latents[torch.arange(6)]

    monkeypatch.setattr(latent_cache.distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(latent_cache.distributed, "is_main", lambda: own.rank == 0)
    monkeypatch.setattr(latent_cache.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(latent_cache.distributed, "broadcast_json", broadcast)
    monkeypatch.setattr(latent_cache.distributed, "barrier", lambda: meeting.wait(60))
    monkeypatch.setattr(vae_module, "encode_moments", encode)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(run, (0, 1)))
    assert all(torch.equal(moments, whole) for moments in both)
    assert [len(encoded[rank]) for rank in (0, 1)] == [4, 2]      # shards 1 and 3, shard 2
    assert not set(encoded[0]) & set(encoded[1])


def test_variants_are_encoded_beside_their_volume(cache):
    """Volume by volume, itself first; another range encodes the variants alone again."""
    originals = cache.moments()
    ranges = Augmentation(flip=1.0, shift=1.0)

    def variants(count, augmentation):
        cache.encoded = 0
        latents = latent_cache.cached_latents(cache.folder, cache.header, cache.entries, cache.vae,
                                              "small", latent_cache.Variants(count, augmentation))
        return latents[torch.arange(len(latents))]

    three = variants(3, ranges)
    assert cache.encoded == 12 and len(three) == 18
    assert torch.equal(three[::3], originals)
    entry = cache.entries[4]
    path = mosaic_files.mosaic_path(cache.folder, entry["id"])
    pixels = mosaic_files.read_mosaic(path, cache.header)
    for k in (1, 2):
        expected = augmented_mosaic(pixels, cache.header, ranges,
                                    [int(sha256_of_file(path)[:16], 16), k])
        assert torch.equal(three[4 * 3 + k], cache.encode(cache.vae, expected[None])[0])
    assert torch.equal(variants(2, ranges)[1::2], three[1::3]) and cache.encoded == 0
    variants(2, Augmentation(flip=1.0))
    assert cache.encoded == 6
