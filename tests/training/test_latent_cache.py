"""The cache of latents: used when it can be, never stale."""
import shutil

import torch
from helpers import random_vae
from safetensors import safe_open

from diffusion import vae as vae_module
from mri import manifest, mosaic_files
from training import latent_cache


def test_cache_is_used_and_never_stale(data, vae_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns("latents-*"))
    header, entries = manifest.read_manifest(folder)
    vae = vae_module.load_vae(vae_folder)
    encoded = []
    encode = vae_module.encode_moments
    monkeypatch.setattr(
        vae_module, "encode_moments", lambda v, m: encoded.append(len(m)) or encode(v, m)
    )

    def moments(vae=vae, entries=entries):
        encoded.clear()
        return latent_cache.cached_moments(folder, header, entries, vae, "small"), len(encoded)

    first, n = moments()
    assert n == 6 and torch.equal(
        first, encode(vae, mosaic_files.read_mosaics(folder, header, entries))
    )
    again, n = moments()
    assert n == 0 and torch.equal(first, again)
    _, n = moments(entries=entries[:2])  # other volumes
    assert n == 2
    another = vae_module.load_vae(random_vae(tmp_path / "v2", seed=9))  # of the same name
    other, n = moments(vae=another)
    assert n == 6 and not torch.allclose(first, other)
    moments()
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, entries[0]["id"]), header)
    path = mosaic_files.mosaic_path(folder, entries[0]["id"])
    mosaic_files.write_mosaic(path, 255 - pixels)  # a mosaic changed
    changed, n = moments()
    assert (
        n == 6 and not torch.allclose(first[0], changed[0]) and torch.equal(first[1:], changed[1:])
    )
    path = folder / "latents-small.safetensors"
    path.write_bytes(path.read_bytes()[:-10])  # cut short
    recovered, n = moments()
    assert n == 6 and torch.equal(recovered, changed)
    with safe_open(path, "pt") as f:
        assert f.get_tensor("moments").dtype == torch.float32
