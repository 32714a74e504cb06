"""Zip archives of arrays: those that our libraries write pass, those that unpack to more do not."""
import zipfile

import numpy as np
import torch

from utils import archives


def test_what_our_libraries_write_passes(tmp_path):
    torch.save({"w": torch.zeros(10_000)}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", w=np.zeros(10_000))
    for path in tmp_path.iterdir():
        assert archives.claims_more_than_it_holds(path) == ""


def test_a_compressed_archive_does_not(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(1_000_000))
    size = path.stat().st_size
    assert size < 2000
    assert archives.claims_more_than_it_holds(path) == (
        f"claims to unpack to 1,000,000 bytes, the file has {size:,}")
