"""Volumes of structures: counted by hand, kept beside the set, and measured again when needed."""
import json

import numpy as np
import pytest

from metrics import structure_volumes
from metrics.structure_volumes import COLUMNS
from mri import structures
from mri.structures import STRUCTURES, Segmentation

SIDE = 12


def values_of(labels, sizes=(1.0, 1.0, 1.0), entropy=0.5):
    found = structure_volumes.measure(Segmentation(labels, np.array(sizes), entropy))
    return dict(zip(COLUMNS, found))


def test_numbers_of_a_small_brain():
    labels = np.zeros((SIDE,) * 3, np.uint8)
    labels[1:11, 1:11, 1:11] = 1                       # white matter, 1000 voxels
    thalamus, stem = STRUCTURES.index("thalamus") + 1, STRUCTURES.index("brain_stem") + 1
    labels[2:4, 3:5, 3:5] = thalamus                   # left, 8 voxels
    labels[8, 3:5, 3:5] = thalamus                     # right, 4 voxels
    labels[6, 6, 6] = thalamus                         # a third piece
    labels[5, 2, 2] = labels[5, 9, 9] = stem           # two pieces of one
    labels[5, 5, 5] = 0                                # a cavity
    found = values_of(labels, (1, 2, 3))
    assert found["thalamus"] == pytest.approx(13 * 6 / 1000)
    assert found["cerebral_white_matter"] == pytest.approx((1000 - 13 - 2 - 1) * 6 / 1000)
    assert found["brain_stem"] == pytest.approx(2 * 6 / 1000) and found["putamen"] == 0
    assert found["largest_piece"] == 1 and found["cavities"] == pytest.approx(1 / 999)
    assert found["loose"] == pytest.approx(2 / 999) and found["entropy"] == 0.5
    left = 500 - 8 - 3                                 # white matter left of the middle plane
    right = 500 - 4 - 1
    asymmetry = [(8 - 5) / 13, (right - left) / (left + right)]
    assert found["asymmetry"] == pytest.approx(np.mean(asymmetry))


def test_pieces_apart_and_no_brain():
    labels = np.zeros((SIDE,) * 3, np.uint8)
    labels[0:4, 0:4, 0:3] = 1                          # 48 voxels
    labels[8:10, 8:10, 8:11] = 1                       # 12 voxels
    assert values_of(labels)["largest_piece"] == pytest.approx(0.8)
    nothing = values_of(np.zeros((SIDE,) * 3, np.uint8))
    assert nothing["largest_piece"] == 0 and np.isnan(nothing["entropy"])
    assert all(nothing[name] == 0 for name in STRUCTURES)


@pytest.fixture
def segmenter(tmp_path, monkeypatch):
    """A Segmenter that labels what is bright, and counts how often it is asked."""
    monkeypatch.setattr(structure_volumes.meshnet, "fingerprint", lambda folder: "net abc123")
    monkeypatch.setattr(structure_volumes, "_measured", {})
    found = structure_volumes.Segmenter(tmp_path, "cpu")
    found.asked = []

    def segment(volume, affine):
        found.asked.append(int(volume.sum()))
        return Segmentation((volume > 100).astype(np.uint8), np.ones(3), 0.25)

    found.segment = segment
    return found


def some_volumes(n=3):
    volumes = np.zeros((n, 6, 6, 6), np.uint8)
    for i in range(n):
        volumes[i, :2 + i, 1:5, 1:5] = 200
    return volumes


def test_volumes_are_measured_once(tmp_path, segmenter, monkeypatch, capsys):
    volumes, affines, ids = some_volumes(), [np.eye(4)] * 3, ["a", "b", "c"]
    first = segmenter.measure_all(volumes[:2], affines[:2], ids[:2], tmp_path, "real")
    assert len(segmenter.asked) == 2 and first[:, 0].tolist() == [0.032, 0.048]
    content = json.loads((tmp_path / "anatomy-abc123.json").read_text())
    assert [row[0] for row in content["volumes"].values()] == ["a", "b"]

    monkeypatch.setattr(structure_volumes, "_measured", {})      # another process
    again = segmenter.measure_all(volumes, affines, ids, tmp_path, "real")
    assert len(segmenter.asked) == 3 and np.allclose(again[:2], first, equal_nan=True)
    assert "real: 2 of 3 volumes are segmented already" in capsys.readouterr().out


def test_what_is_read_again_is_exactly_what_was_measured(tmp_path, segmenter, monkeypatch):
    """However many digits the volume of a voxel has: an evaluation that resumes is the same."""
    affines = [np.diag([1.1, 1.37, 1.13, 1.0])] * 3
    first = segmenter.measure_all(some_volumes(), affines, "abc", tmp_path, "real")
    monkeypatch.setattr(structure_volumes, "_measured", {})      # another process
    again = segmenter.measure_all(some_volumes(), affines, "abc", tmp_path, "real")
    assert np.array_equal(again, first, equal_nan=True) and len(segmenter.asked) == 3


def test_other_voxels_and_other_voxel_sizes_are_measured_again(tmp_path, segmenter):
    volumes = some_volumes(1)
    segmenter.measure_all(volumes, [np.eye(4)], ["a"], tmp_path, "real")
    segmenter.measure_all(volumes, [np.diag([2.0, 1, 1, 1])], ["a"], tmp_path, "real")
    volumes[0, 5, 5, 5] = 1
    segmenter.measure_all(volumes, [np.eye(4)], ["a"], tmp_path, "real")
    assert len(segmenter.asked) == 3
    turned = np.eye(4)[[1, 0, 2, 3]]                               # the same sizes
    segmenter.measure_all(volumes, [turned], ["a"], tmp_path, "real")
    assert len(segmenter.asked) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "another"}',
                                  '{"format": 1, "columns": 2}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, segmenter, capsys, text):
    path = tmp_path / "anatomy-abc123.json"
    path.write_text(text)
    found = segmenter.measure_all(some_volumes(), [np.eye(4)] * 3, "abc", tmp_path, "real")
    assert found.shape == (3, len(COLUMNS)) and path.read_text() == text
    assert capsys.readouterr().out.count("not used") == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, segmenter, capsys, monkeypatch):
    def refuse(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(structure_volumes, "write_text", refuse)
    found = segmenter.measure_all(some_volumes(), [np.eye(4)] * 3, "abc", tmp_path, "real")
    assert found.shape == (3, len(COLUMNS))
    assert capsys.readouterr().out.count("cannot be written (Read-only file system)") == 1
    segmenter.measure_all(some_volumes(), [np.eye(4)] * 3, "abc", tmp_path, "real")
    assert len(segmenter.asked) == 3        # this process remembers
    assert structures.STRUCTURES[0] == "cerebral_white_matter"
