"""Which volumes are flagged as copies, and the table of what each matches best."""
import numpy as np
import pytest
from scipy import ndimage

from metrics import copies, copy_search, statistic
from metrics.options import MetricOptions
from metrics.volume_sets import VolumeSet


def smooth_volumes(n, seed):
    noise = np.random.default_rng(seed).normal(size=(n, 16, 16, 16))
    x = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    return np.clip(128 + 40 * x / x.std(), 0, 255).astype(np.uint8)


def a_pool(real, synthetic, train):
    """Of volumes r0, r1, …, s0, … and t0, …"""
    def a_set(volumes, letter):
        ids = [f"{letter}{i}" for i in range(len(volumes))]
        return VolumeSet("--real", "folder", None, ids, ids, 16, np.ones(3), volumes.__getitem__)

    pool = statistic.Pool(a_set(real, "r"), a_set(synthetic, "s"), a_set(train, "t"))
    pool.load(1, None)
    return pool


@pytest.mark.parametrize("trained_on", [0, 2, 6])
def test_real_volumes_that_were_trained_on_are_named_and_hide_no_copy(trained_on):
    """Mirrored ones too, which no comparison of voxels finds."""
    train, real, synthetic = smooth_volumes(8, 0), smooth_volumes(6, 1), smooth_volumes(6, 2)
    real[:trained_on] = train[:trained_on, ::-1]
    synthetic[3] = np.roll(train[7, :, ::-1], 2, axis=2)
    found = copies.copies_statistic(a_pool(real, synthetic, train), MetricOptions()).details
    (copy,) = found["flagged"]
    assert (copy["volume"], copy["source"], copy["shift"]) == ("s3", "t7", [0, 0, 2])
    moved = np.roll(np.flip(train[7], copy["mirrored_axes"]), copy["shift"], (0, 1, 2))
    assert copy["mirrored"] == "anterior-posterior" and np.array_equal(moved, synthetic[3])
    assert found["threshold"] > 0.4 and found["planted_found"] == found["planted"] == 8
    if trained_on == 0:
        assert found["warnings"] == []
        return
    (warning,) = found["warnings"]
    assert warning.startswith(f"{trained_on} of 6 real volumes match a training volume as only a "
                              "copy or another scan of the same person does: r0, r1")
    assert ("takes its highest threshold, 0.6" in warning) == (trained_on == 6)


def test_the_table_of_what_each_volume_matches():
    train, real, synthetic = smooth_volumes(8, 0), smooth_volumes(6, 1), smooth_volumes(6, 2)
    synthetic[3] = np.roll(train[7, :, ::-1], 2, axis=2)
    pool = a_pool(real, synthetic, train)
    found = copies.copies_statistic(pool, MetricOptions()).details
    text = copies.copies_table(pool, MetricOptions())["copies.tsv"]
    head, *rows = [line.split("\t") for line in text.splitlines()]
    assert tuple(head) == copies.COLUMNS and [row[1] for row in rows] == [
        *(f"r{i}" for i in range(6)), *(f"s{i}" for i in range(6))]
    assert [row[0] for row in rows] == ["real"] * 6 + ["synthetic"] * 6
    copy = dict(zip(head, rows[9]))
    assert float(copy.pop("ratio")) == pytest.approx(0, abs=1e-4)
    assert float(copy.pop("ratio_of_features")) == 0
    assert copy == {"set": "synthetic", "id": "s3", "source": "t7", "flagged": "yes",
                    "mirrored": "anterior-posterior", "shift": "0,0,2",
                    "source_by_features": "t7"}
    assert [row[4] for row in rows].count("yes") == 1
    ratios = found["ratios"]["real"] + found["ratios"]["synthetic"]
    of_features = found["feature_ratios"]["real"] + found["feature_ratios"]["synthetic"]
    for row, ratio, of_feature in zip(rows, ratios, of_features):
        assert float(row[3]) == pytest.approx(ratio, rel=1e-3, abs=1e-4)
        assert float(row[8]) == pytest.approx(of_feature, rel=1e-3)
    assert found["planted_auc"]["correlation"] == 1
    assert 0.5 < found["planted_auc"]["features"] <= 1      # noise moves features more


def test_names_in_the_table_are_no_formulas_and_no_lines():
    train, real, synthetic = smooth_volumes(4, 0), smooth_volumes(4, 1), smooth_volumes(4, 2)
    pool = a_pool(real, synthetic, train)
    pool.sets["synthetic"].ids[1] = "=1+1\n\tx"
    pool.train.ids[:] = [f"@{i}\x1b" for i in range(4)]
    copies.copies_statistic(pool, MetricOptions())
    rows = copies.copies_table(pool, MetricOptions())["copies.tsv"].splitlines()
    assert len(rows) == 1 + 8 and {row.count("\t") for row in rows} == {8}
    name, source = rows[6].split("\t")[1:3]
    assert name == "'=1+1 x" and source.startswith("'@") and source.endswith("\\x1b")


def test_what_is_not_known_is_left_open():
    """Of one training subject there is no second nearest; below 16 voxels there are no features."""
    train, real, synthetic = smooth_volumes(3, 0), smooth_volumes(4, 1), smooth_volumes(4, 2)
    pool = a_pool(real, synthetic, train)
    pool.train.subjects[:] = ["t"] * 3
    found = copies.copies_statistic(pool, MetricOptions()).details
    assert found["flagged"] == [] and found["feature_ratios"]["real"] == [None] * 4
    assert found["planted_auc"]["features"] is None
    row = copies.copies_table(pool, MetricOptions())["copies.tsv"].splitlines()[1]
    assert row.split("\t") == ["real", "r0"] + ["n/a"] * 7
    assert copies.copies_table(a_pool(real, synthetic, train), MetricOptions()) == {}


def test_area_under_the_curve_of_planted_copies():
    """By hand: of 2 × 2 pairs of a copy and a held-out volume, 3 are in the right order."""
    ratios = {"planted": np.array([0.3, 0.6]), "real": np.array([0.1, 0.5, 0.9])}
    assert copy_search.is_real_copy(ratios["real"]).tolist() == [True, False, False]
    nothing = {"planted": [None] * 2, "real": [None] * 3}
    assert copies._planted_auc(ratios, nothing) == {"correlation": 0.75, "features": None}
