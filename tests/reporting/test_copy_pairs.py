"""Copies beside their sources."""
import numpy as np
import pytest

from metrics import statistic
from metrics.volume_sets import VolumeSet
from reporting import copy_pairs


def a_set(flag, volumes):
    ids = [f"{flag[2]}{i}" for i in range(len(volumes))]
    return VolumeSet(flag, "folder", None, ids, ids, 8, np.ones(3), volumes.__getitem__)


def test_the_source_is_moved_as_it_matches():
    train = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8), np.uint8)
    copied = np.roll(train[1, :, :, ::-1], (1, -2), (0, 1))
    synthetic = np.stack([train[0], copied])
    pool = statistic.Pool(a_set("--real", train), a_set("--synthetic", synthetic),
                          a_set("--train", train))
    pool.load(1, None)
    found = {"volume": "s1", "source": "t1", "mirrored": "inferior-superior",
             "mirrored_axes": [2], "shift": [1, -2, 0]}
    volume, source = copy_pairs.copy_and_source(pool, found)
    assert np.array_equal(volume, copied) and np.array_equal(source, copied)


@pytest.mark.parametrize("mirrored, shift, words", [
    ("", [0, 0, 0], ""),
    ("left-right", [0, 0, 0], ", mirrored left-right"),
    ("left-right", [1, 0, -2], ", mirrored left-right, moved by +1, +0, -2 voxels"),
    ("", [0, 3, 0], ", moved by +0, +3, +0 voxels")])
def test_how_it_was_moved(mirrored, shift, words):
    assert copy_pairs.how_moved({"mirrored": mirrored, "shift": shift}) == words
