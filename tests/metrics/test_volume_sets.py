import errno
import json
import shutil

import numpy as np
import pytest
from helpers import GOLDEN

from metrics import volume_sets
from mri import geometry, nifti
from utils import leftovers
from utils.errors import UserError

AFFINE = np.array([[0, 3.0, 0, 0], [-2, 0, 0, 8], [0, 0, 2.5, 0], [0, 0, 0, 1]])  # axes P, R, S


def cubes(folder, volumes):
    """Writes (N, D, D, D) uint8 or float as NIfTIs."""
    folder.mkdir()
    for i, volume in enumerate(volumes):
        nifti.write_nifti(folder / f"v{i}.nii.gz", volume, AFFINE)
    return folder


def test_nifti_cubes_are_read_in_ras(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 6)).astype(np.uint8)
    found = volume_sets.find_set(cubes(tmp_path / "n", volumes), None, "--real")
    assert found.ids == ["v0", "v1", "v2"] and len(found) == 3 and found.side == 6
    assert np.allclose(found.voxel_sizes, [3, 2, 2.5])  # right, anterior, superior
    assert np.array_equal(found.read(1), geometry.to_ras(volumes[1], AFFINE)[0])


def test_data_folder_and_its_splits(data):
    real = volume_sets.find_set(data, None, "--real")
    assert real.split == "test" and real.side == 16 and real.read(0).shape == (16, 16, 16)
    train = volume_sets.find_set(data, "train", "--train")
    everything = volume_sets.find_set(data, "all", "--real")
    assert sorted(everything.ids) == sorted(real.ids + train.ids)
    assert not set(real.subjects) & set(train.subjects)


def test_room_in_memory_or_in_a_file(tmp_path):
    small = volume_sets.allocate(4, 8, memory_gb=1, folder=tmp_path)
    assert type(small) is np.ndarray and small.shape == (4, 8, 8, 8) and small.dtype == np.uint8
    large = volume_sets.allocate(4, 8, memory_gb=1e-6, folder=tmp_path)
    assert isinstance(large, np.memmap) and large.shape == small.shape
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_room_is_taken_where_the_system_cannot_reserve_it(tmp_path, monkeypatch):
    monkeypatch.delattr(volume_sets.os, "posix_fallocate")
    monkeypatch.setattr(volume_sets, "BLOCK_BYTES", 1000)
    large = volume_sets.allocate(4, 8, memory_gb=1e-6, folder=tmp_path)
    assert large.shape == (4, 8, 8, 8) and not large.any()
    large[3] = 7
    assert large.sum() == 7 * 8 ** 3


def test_a_disk_without_room(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(volume_sets.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room for a temporary file of 4.1e-06 GB, for 8 "
                                        "volumes of 8 voxels a side .No space left on device.; "):
        volume_sets.allocate(8, 8, memory_gb=1e-6, folder=tmp_path)


def test_hidden_files_are_no_samples(tmp_path):
    """Such as what a killed sample.py was writing."""
    shutil.copytree(GOLDEN / "v2" / "samples", tmp_path / "s")
    mosaics = tmp_path / "s" / "mosaics"
    expected = sorted(path.stem for path in mosaics.iterdir())
    (mosaics / f"{leftovers.prefix_of('000009.png')}x.png").write_bytes(b"half")
    assert volume_sets.find_set(tmp_path / "s", None, "--synthetic").ids == expected


def test_refusals(tmp_path):
    cube = np.linspace(0, 1, 4 ** 3, dtype=np.float32).reshape(4, 4, 4)
    with pytest.raises(UserError, match="--real .*: no such folder"):
        volume_sets.find_set(tmp_path / "none", None, "--real")
    one = cubes(tmp_path / "one", [cube])
    with pytest.raises(UserError, match="holds 1 volumes; at least 2"):
        volume_sets.find_set(one, None, "--real")
    with pytest.raises(UserError, match="not a data folder and has no splits"):
        volume_sets.find_set(one, "test", "--real")
    for wrong in (cube + 0.5, cube - 0.5, cube[:3]):
        folder = cubes(tmp_path / f"wrong{len(list(tmp_path.iterdir()))}", [wrong] * 2)
        with pytest.raises(UserError, match="not (within 0 … 1|a cube); .*`python preprocess.py"):
            volume_sets.find_set(folder, None, "--real")


# ------------------------------------------------------------------- folders that say what they are

V2 = GOLDEN / "v2"


def test_all_volumes_or_the_test_split_by_default():
    real = volume_sets.find_set(V2 / "data", None, "--real")
    synthetic = volume_sets.find_set(V2 / "data", None, "--synthetic", default_split="all")
    assert (real.split, synthetic.split) == ("test", "all") and len(real) < len(synthetic) == 5


def test_classes_and_recipe_of_samples():
    found = volume_sets.find_set(V2 / "samples", None, "--synthetic")
    assert found.classes == ["AD", "AD"] and found.made_by["recipe"]["sampler"] == "ddim"
    assert found.warnings == []
    niftis = volume_sets.find_set(V2 / "samples" / "nifti", None, "--synthetic")
    assert niftis.made_by == found.made_by and niftis.classes == found.classes
    assert np.array_equal(niftis.read(1), found.read(1))


def test_samples_that_are_missing(tmp_path):
    folder = shutil.copytree(V2 / "samples", tmp_path / "s")
    content = json.loads((folder / "samples.json").read_text())
    content["samples"] = [{"id": f"{i:06d}", "index": i, "class": 0} for i in range(12)]
    (folder / "samples.json").write_text(json.dumps(content))
    shutil.copy(folder / "mosaics" / "000000.png", folder / "mosaics" / "extra.png")
    found = volume_sets.find_set(folder, None, "--synthetic")
    assert len(found) == 3 and found.classes is None
    few, extra = found.warnings
    assert few.startswith(f"--synthetic {folder} holds 2 of the 12 samples that its samples.json "
                          "lists, without 000002, 000003, 000004, 000005, 000006 and 5 more")
    assert extra.endswith("1 mosaics that its samples.json does not list: extra")


def test_flags_that_mosaics_do_not_need():
    with pytest.raises(UserError, match="--synthetic-range: .*holds mosaics"):
        volume_sets.find_set(V2 / "samples", None, "--synthetic", value_range=(-1, 1))
    with pytest.raises(UserError, match="--synthetic-axes: .*holds mosaics"):
        volume_sets.find_set(V2 / "samples", None, "--synthetic", axes="zyx")


def test_files_that_are_left_out_are_counted(tmp_path):
    cube = np.linspace(0, 1, 4 ** 3, dtype=np.float32).reshape(4, 4, 4)
    folder = cubes(tmp_path / "n", [cube, cube])
    (folder / "notes.txt").write_text("")
    (line,) = volume_sets.find_set(folder, None, "--real").warnings
    assert line.startswith(f"--real {folder}: left out 1 ") and ".txt" in line


def test_volumes_of_another_size_and_constant_ones_are_refused():
    cube = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    for second, words in ((np.zeros((8, 8, 8), np.uint8), r"v1 is .8, 8, 8., v0 is .4, 4, 4."),
                          (np.full((4, 4, 4), 7, np.uint8), "v1 is constant, 7; remove it")):
        ids = ["v0", "v1"]
        found = volume_sets.VolumeSet(
            "--real", "folder", None, ids, ids, 4, np.ones(3), read=[cube, second].__getitem__)
        with pytest.raises(UserError, match=f"--real folder: {words}"):
            volume_sets.load(found, np.empty((2, 4, 4, 4), np.uint8))


def test_digests_tell_volumes_by_their_voxels():
    volumes = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 4)).astype(np.uint8)
    volumes[2] = volumes[0]
    a, b, c = volume_sets.digests(volumes)
    assert a == c != b and volume_sets.digests(volumes[:, ::-1, ::-1, ::-1])[0] != a
