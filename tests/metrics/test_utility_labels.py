import json

import numpy as np
import pytest

from metrics import labels
from metrics.volume_sets import VolumeSet
from mri import manifest, samples_folder
from utils.errors import UserError


def a_set(path, ids, classes=None):
    return VolumeSet("--real", str(path), None, ids, ids, 16, np.ones(3), read=None,
                     classes=classes)


def samples(folder, rows):
    """A samples folder, with what each sample was asked to have."""
    content = {"samples": [{"id": name, **({} if row is None else {"condition": row})}
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


def test_covariates_that_samples_were_asked_to_have(tmp_path):
    """As the samples folder itself is written."""
    asked = [{"age": 71.5}, {"age": 60.0, "sex": "M"}]
    header = dict.fromkeys(manifest.HEADER_KEYS)
    samples_folder.begin(tmp_path / "s", 2, {}, defaults={}, header=header, class_of=lambda i: 0,
                         made_by={}, condition_of=asked.__getitem__,
                         condition_names=("age", "sex"))
    found = a_set(tmp_path / "s", ["000000", "000001"])
    assert labels.labels_of(found, "age") == [71.5, 60.0]
    assert labels.labels_of(found, "sex") == [None, "M"]


def test_damaged_covariates(tmp_path):
    samples(tmp_path, {"a": [1]})
    with pytest.raises(UserError, match="its covariates are damaged"):
        labels.labels_of(a_set(tmp_path, ["a"]), "age")


def test_numbers():
    assert labels.are_numbers([1, 2.5]) and not labels.are_numbers([1, "2"])
    assert not labels.are_numbers([True, False]) and not labels.are_numbers([1.0, float("nan")])
