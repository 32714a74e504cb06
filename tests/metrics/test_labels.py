import json

import numpy as np
import pytest

from metrics import labels
from metrics.volume_sets import VolumeSet
from utils.errors import UserError


def a_set(path, ids, classes=None):
    return VolumeSet("--real", str(path), None, ids, ids, 16, np.ones(3), read=None,
                     classes=classes)


def samples(folder, rows):
    content = {"samples": [{"id": name, **({} if row is None else {"covariates": row})}
                           for name, row in rows.items()]}
    (folder / "samples.json").write_text(json.dumps(content))


def test_class(tmp_path):
    assert labels.labels_of(a_set(tmp_path, ["a", "b"], ["AD", "CN"]), "class") == ["AD", "CN"]
    assert labels.labels_of(a_set(tmp_path, ["a", "b"]), "class") is None


def test_covariates_by_id_with_what_is_missing(tmp_path):
    samples(tmp_path, {"b": {"age": 71.5, "sex": "F"}, "a": {"sex": "M"}, "c": None})
    found = a_set(tmp_path, ["a", "b", "c"])
    assert labels.labels_of(found, "sex") == ["M", "F", None]
    assert labels.labels_of(found, "age") == [None, 71.5, None]
    assert labels.labels_of(found, "site") is None
    assert labels.labels_of(a_set(tmp_path / "none", ["a"]), "age") is None


def test_damaged_covariates(tmp_path):
    samples(tmp_path, {"a": [1]})
    with pytest.raises(UserError, match="its `covariates` are damaged"):
        labels.labels_of(a_set(tmp_path, ["a"]), "age")


def test_numbers():
    assert labels.are_numbers([1, 2.5]) and not labels.are_numbers([1, "2"])
    assert not labels.are_numbers([True, False]) and not labels.are_numbers([1.0, float("nan")])
