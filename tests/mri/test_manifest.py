"""A manifest written and read, and which key of which volume is named when one is damaged."""
import json

import numpy as np
import pytest

from mri import manifest
from utils.errors import UserError

HEADER = {
    "size": 16, "layout": "rgb", "grid": 3, "fit": "stretch", "window_percentiles": [0.0, 99.9],
    "affine": np.eye(4).tolist(), "source_shape": [20, 26, 22], "source_affine": np.eye(4).tolist(),
    "classes": ["a", "b"]}


def entry(**values):
    return {"id": "s1", "subject": "p1", "source": "/x/s1.nii", "shape": [20, 26, 22],
            "affine": np.eye(4).tolist(), "window": [0.0, 1.5], "class": 1, "split": "train",
            **values}


def test_written_is_read(tmp_path):
    entries = [entry(), entry(id="s2", codes=[4, 2], crop=[[0, 2], [3, 26], [0, 20]], outside=-1.5,
                              n4=False, warnings=["x"], mask="/m.nii", volume=2)]
    manifest.write_manifest(tmp_path, HEADER, entries)
    assert manifest.read_manifest(tmp_path) == (HEADER, entries)
    assert manifest.read_manifest(tmp_path / "manifest.json") == (HEADER, entries)
    prepared = {**HEADER, "preparation": {"crop": "brain"}}
    manifest.write_manifest(tmp_path, prepared, entries)
    assert manifest.read_manifest(tmp_path) == (prepared, entries)


@pytest.mark.parametrize("key, values", [
    ("id", ["../x", None, "s1", ["a"], ""]),
    ("subject", ["", 3, None]),
    ("split", ["all", None, []]),
    ("class", [2, -1, True, "1", 10 ** 30]),
    ("shape", [[1, 9, 9], [20, 26], [20, 26, 22, 1], [10 ** 4] * 3, ["a", "b", "c"], 7, None]),
    ("affine", [np.zeros((4, 4)).tolist(), np.eye(3).tolist(), [[1] * 4] * 4, None, 3, "abcd"]),
    ("window", [[1, 1], [2, 1], [0, float("nan")], [-3e38, 3e38], [0], 5, "ab"]),
    ("codes", [[1], [1, 6], [0, 1], [1.0, 1], 3]),
    ("warnings", [[1], 4]),
    ("n4", [1, "yes", None]),
    ("crop", [[[0, 5]] * 2, [[0, 27]] * 3, [[3, 4]] * 3, [[-1, 5]] * 3, "abc", None]),
    ("outside", [None, "0", float("inf"), True]),
])
def test_a_damaged_entry_is_named_with_its_key(tmp_path, key, values):
    for value in values:
        content = {"format": "mosaicdit-data", "version": 1, **HEADER,
                   "volumes": [entry(id="s1"), entry(**{"id": "s2", key: value})]}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"its volume 2 is damaged .*`{key}`"):
            manifest.read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["id", "subject", "split", "class", "shape", "affine", "window"])
def test_a_missing_key_is_named(tmp_path, key):
    broken = entry()
    del broken[key]
    manifest.write_manifest(tmp_path, HEADER, [broken])
    with pytest.raises(UserError, match=f"its volume 1 is damaged .*`{key}`"):
        manifest.read_manifest(tmp_path)


def test_entries_that_are_no_dicts(tmp_path):
    for value in (None, 3, "id", [], [["id", "a"]]):
        manifest.write_manifest(tmp_path, HEADER, [value])
        with pytest.raises(UserError, match="its volume 1 is damaged"):
            manifest.read_manifest(tmp_path)


@pytest.mark.parametrize("key, value, words", [
    ("size", 2 ** 13, "damaged header \\(bad `size`\\)"),
    ("size", True, "damaged header \\(bad `size`\\)"),
    ("layout", ["rgb"], "damaged header \\(bad `layout`\\)"),
    ("fit", "cover", "damaged header \\(bad `fit`\\)"),
    ("source_shape", [1, 2, 3], "damaged header \\(bad `source_shape`\\)"),
    ("classes", [], "damaged header \\(bad `classes`\\)"),
    ("classes", ["a", 1], "damaged header \\(bad `classes`\\)"),
    ("grid", 4, "contradict each other \\(bad `grid`\\)"),
    ("affine", [[1] * 4] * 4, "contradict each other \\(bad `affine`\\)"),
    ("source_affine", [[1e300] * 4] * 4, "contradict each other \\(bad `source_affine`\\)"),
    ("window_percentiles", None, "has no window_percentiles"),
])
def test_a_damaged_header_is_named_with_its_key(tmp_path, key, value, words):
    manifest.write_manifest(tmp_path, {**HEADER, key: value}, [entry()])
    with pytest.raises(UserError, match=words):
        manifest.read_manifest(tmp_path)


def test_splits(tmp_path):
    entries = [entry(), entry(id="s2", split="test")]
    assert manifest.select_split(entries, "test", tmp_path) == entries[1:]
    assert manifest.select_split(entries, "all", tmp_path) == entries
    assert manifest.select_split(entries, None, tmp_path) == entries
    with pytest.raises(UserError, match="has no volumes in the split 'test'"):
        manifest.select_split(entries[:1], "test", tmp_path)
