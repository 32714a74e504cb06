import numpy as np
import pytest

from metrics import registry, statistic
from metrics.options import MetricOptions, NotComputed
from metrics.registry import Metric
from metrics.volume_sets import VolumeSet
from utils.errors import UserError


def a_pool(side=16, train=None):
    ids = ["a", "b"]
    found = VolumeSet("--real", "folder", None, ids, ids, side, np.ones(3), read=None)
    return statistic.Pool(found, found, train and found)


def test_names_and_help_follow_from_the_registry():
    assert registry.NAMES == (
        "ms-ssim", "mmd", "fid", "kid", "coverage-2d", "smoothness", "histogram",
        "frechet-3d", "mmd-3d", "coverage", "memorization", "anatomy", "utility")
    text = registry.help_text()
    for metric in registry.METRICS:
        assert metric.help in text and all(name in text for name in metric.titles)
    for former, name in registry.FORMER_NAMES.items():
        assert registry.metric_name(former) == name in registry.NAMES
    assert registry.metric_name("fid") == "fid" and registry.metric_name("x") == "x"


def test_what_is_computed_on_request():
    without = [name for name in registry.NAMES if name != "utility"]
    nothing = {flag: None for metric in registry.METRICS for flag in metric.flags}
    assert registry.default_names(nothing) == without
    assert registry.default_names({**nothing, "utility": "class"}) == list(registry.NAMES)


def test_what_was_asked_for_by_name():
    nothing = {"metrics": None, **{flag: None for m in registry.METRICS for flag in m.flags}}
    assert registry.requested(nothing) == {}
    tables = {"anatomy_real": ["a", "b"], "anatomy_synthetic": ["c"]}
    assert registry.requested({**nothing, **tables}) == {
        "--anatomy-real a b --anatomy-synthetic c": ["anatomy"]}
    assert registry.requested({**nothing, "utility": "sex"}) == {"--utility sex": ["utility"]}
    given = {**nothing, "metrics": ["fid", "utility"], "utility": "sex"}
    assert registry.requested(given) == {"--metrics fid utility": ["fid", "utility"]}


def test_checks_come_before_any_volume_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("metrics.inception.find_weights", lambda folder: None)
    monkeypatch.setattr("mri.meshnet.weights_path", lambda name: tmp_path / name)
    names = ("ms-ssim", "kid", "histogram", "memorization")
    found, skipped = registry.checked(names, a_pool(side=8), MetricOptions(names=names))
    assert [list(metric.titles) for metric in found] == [["histogram"]]
    assert list(skipped) == ["MS-SSIM", "KID", "memorization"]
    assert "volumes of 8 voxels a side are too small" in skipped["MS-SSIM"]
    assert "download.py inception" in skipped["KID"] and "--train" in skipped["memorization"]
    found, skipped = registry.checked(registry.NAMES, a_pool(train=True), MetricOptions())
    assert list(skipped) == [
        "FID", "KID", "coverage of Inception features", "anatomy", "utility"]
    assert [name for metric in found for name in metric.titles] == [
        "ms-ssim", "mmd", "smoothness", "histogram", "frechet-3d", "mmd-3d", "coverage",
        "memorization"]


def test_damaged_weights_are_an_error(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"junk")
    options = MetricOptions(names=("fid",), inception_weights=tmp_path / "w.pth")
    with pytest.raises(UserError, match="--inception-weights .*w.pth: not a file of weights"):
        registry.checked(options.names, a_pool(), options)


def test_damaged_weights_that_nobody_named_leave_the_other_numbers(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"junk")
    monkeypatch.setattr("metrics.inception.find_weights", lambda folder: tmp_path / "w.pth")
    names = ("fid", "coverage-2d", "histogram")
    found, skipped = registry.checked(names, a_pool(), MetricOptions(names=names))
    assert [list(metric.titles) for metric in found] == [["histogram"]]
    assert list(skipped) == ["FID", "coverage of Inception features"]
    assert "w.pth: not a file of weights alone" in skipped["FID"]
    assert "remove it, and `python download.py inception`" in skipped["FID"]


def test_a_metric_is_one_entry(monkeypatch):
    def refuse(pool, options):
        raise NotComputed("no luck")

    added = Metric({"sharpness": "sharpness"}, "sharpness of edges", statistics=None, check=refuse)
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, added))
    assert registry.help_text().endswith("sharpness (sharpness of edges)")
    found, skipped = registry.checked(("sharpness",), a_pool(), MetricOptions())
    assert found == [] and skipped == {"sharpness": "no luck"}
