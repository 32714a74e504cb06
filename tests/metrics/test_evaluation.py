"""What metrics.json says, and whether it is still so."""
import dataclasses
import hashlib
import json

import numpy as np
import pytest

from metrics import evaluation, inception, resampling, statistic
from metrics.volume_sets import VolumeSet
from utils.errors import UserError

SETTINGS = {"seed": 0, "pairs": None, "output": "a", "device": "cpu", "memory_gb": 4.0}


def description(ids=("a", "b"), **made_by):
    found = VolumeSet("--synthetic", "folder", None, list(ids), list(ids), 2, np.ones(3), None,
                      made_by=made_by)
    return {"synthetic": evaluation.describe_set(found)}


@pytest.fixture
def existing():
    return {"format": evaluation.FORMAT, "sets": description(recipe={"seed": 1}),
            "settings": SETTINGS}


def test_the_same_evaluation(existing, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(existing))
    assert evaluation.is_evaluation(tmp_path) and not evaluation.is_evaluation(tmp_path / "x")
    other = {**SETTINGS, "output": "b", "device": "cuda", "memory_gb": 8.0, "update": True}
    assert evaluation.differences(existing, description(recipe={"seed": 1}), other) == []


@pytest.mark.parametrize("sets, settings, expected", [
    (description(("a", "b", "c"), recipe={"seed": 1}), {}, ["synthetic: 2 volumes, now 3"]),
    (description(("a", "c"), recipe={"seed": 1}), {}, ["synthetic: 2 volumes, now 2 others"]),
    (description(recipe={"seed": 2}), {}, ["synthetic: another recipe"]),
    (description(recipe={"seed": 1}), {"pairs": 3}, ["--pairs"]),
    ({**description(recipe={"seed": 1}), "train": {"n": 3, "ids": ["x"]}}, {},
     ["train: 0 volumes, now 3"])])
def test_what_differs(existing, sets, settings, expected):
    assert evaluation.differences(existing, sets, {**SETTINGS, **settings}) == expected


def test_files_that_are_no_evaluation(tmp_path):
    for text in ("{}", "[]", "{", '{"format": "mosaicdit-data"}'):
        (tmp_path / "metrics.json").write_text(text)
        assert not evaluation.is_evaluation(tmp_path)


def test_nothing_of_what_was_named():
    evaluation.require_some({}, [], {"FID": "no weights"})
    evaluation.require_some({"--metrics fid mmd": ["fid", "mmd"]}, ["mmd"], {"FID": "no weights"})
    with pytest.raises(UserError, match="--metrics fid kid: nothing can be computed; FID: no "
                       "weights; KID: none"):
        evaluation.require_some({"--metrics fid kid": ["fid", "kid"]}, [],
                                {"FID": "no weights", "KID": "none"})


def a_set(voxels, subjects=None):
    ids = [f"v{i}" for i in range(len(voxels))]
    return VolumeSet("--real", "folder", None, ids, subjects or ids, 2, np.ones(3),
                     lambda i: voxels[i])


def test_other_voxels_in_volumes_of_the_same_names(tmp_path):
    voxels = np.arange(16, dtype=np.uint8).reshape(2, 2, 2, 2)
    found = {"real": a_set(voxels)}
    pool = statistic.Pool(found["real"], found["real"])
    pool.load(1, tmp_path)
    sets = evaluation.describe_sets(found, pool)
    assert sets["real"]["sha256"] == hashlib.sha256(bytes(range(16))).hexdigest()

    def changes(voxels, sets, skipped_then, skipped_now=()):
        content = {"format": evaluation.FORMAT, "sets": sets, "settings": SETTINGS,
                   "skipped": dict.fromkeys(skipped_then, "")}
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        return evaluation.changes(tmp_path, {"real": a_set(voxels)}, SETTINGS,
                                  dict.fromkeys(skipped_now, ""))

    assert changes(voxels, sets, ["FID", "p"], ["FID"]) == []
    assert changes(voxels, sets, ["FID", "p"]) == ["FID can be computed now"]
    assert changes(voxels[::-1], sets, []) == [
        "real: different voxels in volumes of the same names"]
    del sets["real"]["sha256"]
    assert changes(voxels, sets, []) == [
        "real: its voxels were not recorded by the earlier version"]


def test_what_was_named_and_is_not_computed():
    evaluation.require_named({}, {"FID": "no weights"}, "e")
    evaluation.require_named({"--metrics mmd": ["mmd"]}, {"FID": "no weights", "p": "none"}, "e")
    with pytest.raises(UserError, match="--metrics mmd kid fid: not all could be computed; FID: no "
                       "weights; KID: none. The others are in e"):
        evaluation.require_named({"--metrics mmd kid fid": ["mmd", "kid", "fid"]},
                                 {"KID": "none", "FID": "no weights"}, "e")
    with pytest.raises(UserError, match="^--utility age: could not be computed; utility: none. "):
        evaluation.require_named({"--utility age": ["utility"]}, {"utility": "none"}, "e")


def test_fid_infinity_where_halves_are_too_small():
    """Four subjects, one of whom has 57 of the 60 volumes: half of the halves hold 2 volumes."""
    features = np.random.default_rng(0).normal(size=(120, 20))
    subjects = ["a"] * 57 + ["b", "c", "d"]
    pool = statistic.Pool(a_set(np.zeros(60), subjects), a_set(np.zeros(60)))
    found = inception._infinity_statistic(pool, features @ features.T,
                                          {"view": "axial", "slices": 1}, seed=0)
    entry = statistic.summarize(found, pool, resampling.resamples(pool, 0, 0))
    assert "floor" in entry and entry["floor"] is None      # any two halves: one is too small
    assert np.isfinite(entry["value"])


def test_fid_infinity_of_a_set_against_its_copy_is_not_negative(tmp_path):
    """It is extrapolated, so it can come out below 0, where no distance is."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 20))
    products = np.concatenate([features, features]) @ np.concatenate([features, features]).T

    pool = statistic.Pool(a_set(np.zeros(60)), a_set(np.zeros(60)))
    found = inception._infinity_statistic(pool, products, {"view": "axial", "slices": 1}, seed=0)
    nothing = resampling.Resamples(
        **{field.name: None for field in dataclasses.fields(resampling.Resamples)})
    entry = statistic.summarize(found, pool, nothing)
    assert found.value < 0 and entry["value"] == 0
    assert entry["n"][-1] == 60 and len(entry["fid"]) == len(entry["n"])
