"""A data folder of format version 2 gives the numbers that the code of that time computed."""
import json

import pytest
from helpers import GOLDEN, script

V2 = GOLDEN / "v2"


def numbers(value, path=()):
    """(path, number) of everything in a nested value that is not a text; NaN for null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif not isinstance(value, str):
        yield path, float("nan") if value is None else value


def test_numbers_of_version_2(tmp_path):
    old = json.loads((V2 / "evaluation" / "metrics.json").read_text())
    script("evaluate.py", "--real", "data", "--synthetic", "data", "--synthetic-split", "train",
           "--output", tmp_path / "e", "--metrics", "ms-ssim", "mmd", "smoothness", "histogram",
           "--device", "cpu", cwd=V2)
    new = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert set(new["metrics"]) == set(old["metrics"]) | {"mean_pair_distance"}
    expected = dict(numbers(old["metrics"]))
    assert len(expected) > 30
    found = dict(numbers({key: new["metrics"][key] for key in old["metrics"]}))
    assert all("available_pairs" in path for path in found.keys() - expected.keys())
    kept = {path: found[path] for path in expected}
    assert kept == pytest.approx(expected, rel=1e-6, nan_ok=True)
    checksums = {name: described.pop("sha256") for name, described in new["sets"].items()}
    assert new["sets"] == old["sets"] and set(map(len, checksums.values())) == {64}
    assert new["skipped"] == {**old["skipped"], "p": old["skipped"]["intervals"]}
    assert set(new) == set(old) | {"mosaicdit_version", "git_commit", "date"}
    assert set(new["settings"]) >= set(old["settings"])
