"""Structures of a brain: the network's grid, labels in place, entropy, and which networks do."""
import json

import numpy as np
import pytest
import torch
from helpers import SHARED
from small_meshnets import brightness_network, random_meshnet, write_meshnet

from mri import geometry, meshnet, structures
from utils.errors import UserError

NETWORK = SHARED / "meshnet" / "model18cls"
needs_shared = pytest.mark.skipif(not NETWORK.is_dir(), reason=f"needs {NETWORK}")


@pytest.fixture
def plain_dtype(monkeypatch):
    monkeypatch.setattr(structures, "compute_dtype", lambda device: torch.float32)


def test_labels_lie_where_the_volume_is_bright(tmp_path, plain_dtype):
    network = meshnet.load(brightness_network(tmp_path))
    volume = np.zeros((16, 16, 16), np.uint8)
    volume[2:6, 3:5, 4:12] = 255            # a box, off the center along every axis
    affine = np.diag([2.0, 3.0, 1.0, 1])
    found = structures.segment(volume, affine, network)
    assert found.labels.shape == (32, 48, 16) and found.labels.dtype == np.uint8
    assert np.allclose(found.voxel_sizes, 1)
    where = np.argwhere(found.labels)
    assert np.abs(where.min(0) - (4, 9, 4)).max() <= 1
    assert np.abs(where.max(0) - (11, 14, 11)).max() <= 1
    expected = 4 * 2 * 8 * 6                # mm^3
    assert abs(np.count_nonzero(found.labels) / expected - 1) < 0.35


def test_voxel_sizes_are_exact_where_the_grid_is_rounded(tmp_path, plain_dtype):
    network = meshnet.load(brightness_network(tmp_path))
    volume = np.zeros((10, 10, 10), np.uint8)
    volume[3:7, 3:7, 3:7] = 200
    found = structures.segment(volume, np.diag([1.13, 1.38, 0.96, 1]), network)
    assert found.labels.shape == (11, 14, 10)
    assert np.allclose(found.voxel_sizes * found.labels.shape, (11.3, 13.8, 9.6))


def test_entropy_and_labels_are_those_of_the_plain_network(tmp_path, plain_dtype):
    random_meshnet(tmp_path, "elu", False, classes=5)
    network = meshnet.load(tmp_path)
    volume = np.random.default_rng(0).integers(100, 255, (9, 8, 7)).astype(np.uint8)
    volume[0, 0, 0], volume[-1, -1, -1] = 0, 255
    found = structures.segment(volume, np.eye(4), network)
    scaled = np.ascontiguousarray(meshnet.to_lia(volume.astype(np.float32) / 255))
    with torch.inference_mode():
        scores = network(torch.from_numpy(scaled)[None, None])[0]
    labels = scores.argmax(0).numpy()
    assert np.array_equal(found.labels, meshnet.from_lia(labels))
    p = scores.softmax(0).numpy()
    entropy = -(p * np.log2(p)).sum(0)[labels > 0].mean()
    assert 0 < entropy < np.log2(5) and abs(found.entropy - entropy) < 1e-4


def test_without_a_brain_entropy_is_unknown(tmp_path, plain_dtype):
    kernel = np.zeros((3, 3, 3, 1, 1))
    bias = np.array([1.0, 0.0])
    write_meshnet(tmp_path, [("conv_0", 1, "relu"), ("output", 1, None)],
                  {"conv_0": (kernel, np.zeros(1)), "output": (np.zeros((1, 1, 1, 1, 2)), bias)})
    volume = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    found = structures.segment(volume, np.eye(4), meshnet.load(tmp_path))
    assert not found.labels.any() and np.isnan(found.entropy)
    constant = structures.segment(np.full((4, 4, 4), 9, np.uint8), np.eye(4), network=None)
    assert constant.labels.shape == (4, 4, 4) and not constant.labels.any()


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no network for structures; run download.py meshnet"):
        structures.find_network(tmp_path / "none")
    random_meshnet(tmp_path / "two")
    with pytest.raises(UserError, match="a network of 2 classes, not of background and the 17"):
        structures.find_network(tmp_path / "two")
    folder = eighteen_classes(tmp_path / "eighteen")
    assert structures.find_network(folder) == folder
    content = json.loads((folder / "colormap.json").read_text())
    content["labels"][3] = "Tumor"
    (folder / "colormap.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="give model18cls by --meshnet"):
        structures.find_network(folder)


def eighteen_classes(folder):
    """A random network whose classes are called as those of model18cls."""
    random_meshnet(folder, "elu", False, classes=18)
    names = [name.replace("_", "-").title() for name in structures.STRUCTURES]
    names[names.index("Ventral-Dc")] = "VentralDC"
    (folder / "colormap.json").write_text(json.dumps({"labels": ["Unknown", *names]}))
    return folder


@needs_shared
def test_the_published_network_is_accepted():
    assert structures.find_network(NETWORK) == NETWORK


def test_the_foreground_box_has_a_margin():
    scaled = np.zeros((30, 20, 10), np.float32)
    scaled[10:20, 1:19, 5] = 0.5
    margin = structures.MARGIN
    assert structures._foreground_box(scaled) == (
        slice(10 - margin, 20 + margin), slice(0, 20), slice(5 - margin, min(10, 6 + margin)))
    assert geometry.voxel_sizes(np.eye(4)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name, text", [
    ("ventral_dc", "ventral DC"), ("csf", "CSF"), ("3rd_ventricle", "3rd ventricle"),
    ("cerebral_white_matter", "cerebral white matter")])
def test_names_in_texts(name, text):
    assert structures.name_in_text(name) == text
