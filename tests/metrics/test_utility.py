import numpy as np
import pytest
from helpers import related
from scipy import stats

from metrics import resampling, small_network, statistic, utility
from metrics.options import MetricOptions, NotComputed
from metrics.volume_sets import VolumeSet


def a_pool(real_classes, synthetic_classes, volumes=None, side=16):
    """A pool of sets whose volumes have these classes; one subject each."""
    sets = []
    for flag, classes in (("--real", real_classes), ("--synthetic", synthetic_classes)):
        ids = [f"{flag[2:]}{i}" for i in range(len(classes))]
        sets.append(VolumeSet(flag, flag[2:], None, ids, ids, side, np.ones(3), read=None,
                              classes=classes))
    pool = statistic.Pool(*sets)
    pool.volumes = volumes
    return pool


def marked_volumes(classes, seed=0, strength=80):
    """Volumes whose class "b" has a brighter corner."""
    volumes = (related(len(classes), 16, seed) * 170).astype(np.uint8)
    for volume, name in zip(volumes, classes):
        if name == "b":
            volume[:6, :6, :6] += strength
    return volumes


def test_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert utility.area_under_curve(scores, positive) == pytest.approx(np.mean(pairs))


def test_scores():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    found = utility.class_scores(probabilities, np.array([0, 0, 1, 0]))
    assert found == {"AUC": pytest.approx(2 / 3), "balanced accuracy": pytest.approx(2 / 3)}
    found = utility.number_scores(np.array([1.0, 2, 4]), np.array([1.0, 2, 3]))
    assert found == {"R²": pytest.approx(1 - 1 / 2), "MAE": pytest.approx(1 / 3)}


def test_corrected_interval_by_hand():
    low, high = utility.corrected_interval([0.6, 0.7, 0.8], 0.5)
    half = stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + 0.5) * 0.01)
    assert (low, high) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))


def test_splits_are_by_subject_and_hold_each_class():
    subjects = np.array([f"s{i // 2}" for i in range(24)])
    targets = np.repeat([0, 0, 0, 1], 6)
    for seed in range(20):
        trained, tested = utility.split_subjects(subjects, targets, True, seed)
        assert len(trained) + len(tested) == 24
        assert not set(subjects[trained]) & set(subjects[tested])
        assert set(targets[trained]) == set(targets[tested]) == {0, 1}
        assert len(tested) == 2 * (3 + 1)


@pytest.mark.parametrize("real, synthetic, message", [
    ("aaaaaa", "ababab", "--real real has one class only, a; nothing can be learned"),
    ("aaabbb", "aaaaaa", "--synthetic synthetic has one class only, a"),
    ("aaabbbccc", "ababab", "--synthetic synthetic has no volume of class c"),
    ("aaaabb", "ababab", "--real has 2 subjects of class b; at least 3"),
])
def test_labels_that_cannot_be_learned(real, synthetic, message):
    with pytest.raises(NotComputed, match=message):
        utility.check_label(a_pool(list(real), list(synthetic)), MetricOptions(utility="class"))


def test_a_label_that_is_not_there():
    pool = a_pool(list("aaabbb"), list("ababab"))
    with pytest.raises(NotComputed, match="--real real does not record age of its volumes"):
        utility.check_label(pool, MetricOptions(utility="age"))
    with pytest.raises(NotComputed, match="name one with --utility LABEL"):
        utility.check_label(pool, MetricOptions())


def test_subjects_to_test_who_do_not_show_every_class():
    """Two volumes each; class "b" is the second scan of three subjects, so not in each third."""
    pool = a_pool(list("ab" * 3 + "aa" * 9), list("ab" * 4), np.zeros((32, 16, 16, 16), np.uint8))
    pool.sets["real"].subjects[:] = [f"s{i // 2}" for i in range(24)]
    with pytest.raises(NotComputed, match="does not have a volume of every class"):
        list(utility.utility_statistics(pool, MetricOptions(utility="class")))


def test_numbers_that_are_rarely_different():
    """One of 24 subjects has another value: a third of the others has no variance to explain."""
    pool = a_pool([1.0] * 23 + [2.0], [1.0, 2.0], np.zeros((26, 16, 16, 16), np.uint8))
    with pytest.raises(NotComputed, match="does not have two values to be tested on"):
        list(utility.utility_statistics(pool, MetricOptions(utility="class")))


def entries_of(pool, **options):
    found = utility.utility_statistics(pool, MetricOptions(utility="class", **options))
    resampled = resampling.resamples(pool, 0, 0)
    return {s.key: statistic.summarize(s, pool, resampled) for s in found}


def test_what_synthetic_volumes_teach(monkeypatch):
    """Synthetic volumes that carry the class teach it; those that swap it teach the opposite."""
    monkeypatch.setattr(utility, "SPLITS", 2)
    monkeypatch.setattr(small_network, "STEPS", 40)
    real, synthetic = list("ab" * 6), list("ab" * 6)
    volumes = np.concatenate([marked_volumes(real), marked_volumes(synthetic, seed=1)])
    right = entries_of(a_pool(real, synthetic, volumes))
    assert list(right) == ["utility_real", "utility_synthetic", "utility_both",
                           "utility_gap_synthetic", "utility_gap_both"]
    assert right["utility_real"]["value"] > 0.9 and right["utility_synthetic"]["value"] > 0.9
    swapped = entries_of(a_pool(real, list("ba" * 6), volumes))
    assert swapped["utility_synthetic"]["value"] < 0.1
    gap = swapped["utility_gap_synthetic"]
    splits = {name: swapped[f"utility_{name}"]["splits"] for name in ("real", "synthetic")}
    assert gap["splits"] == pytest.approx(np.subtract(splits["synthetic"], splits["real"]))
    assert gap["interval"][1] < 0
    assert gap["interval"] == utility.corrected_interval(gap["splits"], 4 / 8)


def test_numbers_are_predicted(monkeypatch):
    monkeypatch.setattr(utility, "SPLITS", 2)
    monkeypatch.setattr(utility, "TRAINED_ON", ("real", "synthetic"))
    monkeypatch.setattr(small_network, "STEPS", 60)
    marks = list("ab" * 6)
    volumes = np.concatenate([marked_volumes(marks), marked_volumes(marks, seed=1)])
    pool = a_pool(marks, marks, volumes)
    ages = [70.0 if mark == "a" else 50.0 for mark in marks]
    monkeypatch.setattr("metrics.labels.labels_of", lambda volume_set, label: ages)
    found = entries_of(pool)
    assert found["utility_real"]["name"] == "utility, R² of class, trained on real"
    assert found["utility_real"]["value"] > 0.6 and found["utility_real"]["MAE"]["value"] < 6


@pytest.mark.slow
def test_labels_without_meaning_give_one_half():
    """AUC over many label draws; the interval of each holds 0.5 as often as it says."""
    rng = np.random.default_rng(0)
    inside, values = [], []
    for draw in range(10):
        real, synthetic = (list(rng.permutation(list("ab" * 16))) for _ in range(2))
        volumes = (related(64, 16, seed=100 + draw) * 255).astype(np.uint8)
        found = entries_of(a_pool(real, synthetic, volumes), seed=draw)
        for name in utility.TRAINED_ON:
            low, high = found[f"utility_{name}"]["interval"]
            inside.append(low <= 0.5 <= high)
            values.append(found[f"utility_{name}"]["value"])
    print(f"\nmean AUC {np.mean(values):.3f}, intervals that hold 0.5: {np.mean(inside):.3f}")
    assert abs(np.mean(values) - 0.5) < 0.06
    assert np.mean(inside) >= 0.8


def test_the_network_is_named_in_the_report():
    pool = a_pool(list("aaabbb"), list("ababab"))
    scores = {name: {"AUC": [0.5, 0.7], "balanced accuracy": [0.5, 0.6]}
              for name in utility.TRAINED_ON}
    known = utility.read_labels(pool, "class")
    (first, *_) = utility._statistics(known, scores, 0.5, "class", side=128)
    assert small_network.DESCRIPTION in first.definition and "down to 32³" in first.definition
