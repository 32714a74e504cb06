"""Scores of reader studies, against numbers computed by hand and scikit-learn's."""
import numpy as np
import pytest

from metrics import reader_scores


def counts(ratings):
    return [ratings.count(level) for level in range(1, 6)]


def test_auc_by_hand():
    real, synthetic = [1, 2, 3, 4], [3, 4, 5]
    # pairs in which the synthetic case is rated higher: 3 beats 1, 2; 4 beats 1, 2, 3; 5 beats all
    # = 2 + 3 + 4; equal: 3 and 3, 4 and 4 = 2 halves; of 12 pairs
    assert reader_scores.auc(counts(real), counts(synthetic)) == pytest.approx(10 / 12)
    assert reader_scores.auc(counts([1, 1]), counts([5])) == 1
    assert reader_scores.auc(counts([3, 3]), counts([3])) == 0.5
    assert np.isnan(reader_scores.auc(counts([]), counts([3])))


def test_cohen_kappa_by_hand():
    # Cohen's own kind of table: both yes 20, both no 15, yes-no 5, no-yes 10 of 50
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    (kappa,) = reader_scores.cohen_kappa(first, second, 2)
    assert kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    # cases that count twice are as twice the cases
    weights = np.full((1, 50), 2.0)
    assert reader_scores.cohen_kappa(first, second, 2, weights)[0] == pytest.approx(kappa)
    assert np.isnan(reader_scores.cohen_kappa([1, 1], [1, 1], 2)[0])


def test_weighted_kappa_counts_squared_distances():
    # ratings 0, 1, 2 against 0, 2, 1: observed cost (0 + 1 + 1) / 3; by chance, all 9 pairs of
    # the marginals: (0 + 1 + 4 + 1 + 0 + 1 + 4 + 1 + 0) / 9
    (kappa,) = reader_scores.cohen_kappa([0, 1, 2], [0, 2, 1], 3, quadratic=True)
    assert kappa == pytest.approx(1 - (2 / 3) / (12 / 9))


def test_fleiss_kappa_of_the_published_example():
    # Fleiss 1971, as reprinted in textbooks: 10 cases, 14 readers, 5 categories: 0.21
    table = np.array([[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0],
                      [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2],
                      [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]])
    ratings = np.array([np.repeat(np.arange(5), row) for row in table]).T
    (kappa,) = reader_scores.fleiss_kappa(ratings, 5)
    assert kappa == pytest.approx(0.2099, abs=5e-5)


def test_as_scikit_learn_computes_them():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.5
    first, second = (np.clip(3 + truth + rng.integers(-2, 2, 60), 1, 5) for _ in range(2))
    found = reader_scores.auc(counts(first[~truth].tolist()), counts(first[truth].tolist()))
    assert found == pytest.approx(metrics.roc_auc_score(truth, first))
    for quadratic, weights in ((False, None), (True, "quadratic")):
        expected = metrics.cohen_kappa_score(first, second, weights=weights)
        kappa = reader_scores.cohen_kappa(first - 1, second - 1, 5, quadratic=quadratic)
        assert kappa[0] == pytest.approx(expected)


TRUTH = {f"case-{k:03d}": k > 4 for k in range(1, 9)}     # four real, then four synthetic
GOOD = dict(zip(TRUTH, [1, 2, 2, 4, 5, 4, 5, 3]))
WILD = dict(zip(TRUTH, [5, 1, 4, 2, 1, 5, 2, 4]))


def test_a_study():
    found = reader_scores.score(TRUTH, {"good": GOOD, "wild": WILD}, 200, 999, seed=0)
    assert found["cases"] == {"real": 4, "synthetic": 4}
    good, wild = found["readers"]
    # of 16 pairs: 5 beats 4 (twice 4), 4 beats 3 and ties 1, 3 beats 3: 4 + 3.5 + 4 + 3
    assert good["auc"]["value"] == pytest.approx(14.5 / 16)
    assert good["sensitivity"]["value"] == 0.75 and good["specificity"]["value"] == 0.75
    assert good["sensitivity"]["interval"] == pytest.approx([0.1941, 0.9937], abs=1e-4)
    assert good["undecided"] == 1 and good["rated"] == 8
    low, high = good["auc"]["interval"]
    assert 0.5 < low < 14.5 / 16 < high <= 1
    assert 0.02 < good["auc"]["p"] < 0.12 and wild["auc"]["p"] > 0.5
    assert found["mean_auc"]["value"] == pytest.approx((14.5 / 16 + wild["auc"]["value"]) / 2)
    assert found["agreement"]["cases"] == 8
    calls = [[rating >= 4 for rating in reader.values()] for reader in (GOOD, WILD)]
    expected = reader_scores.cohen_kappa(*np.array(calls, int), 2)[0]
    assert found["agreement"]["calls"]["value"] == pytest.approx(expected)


def test_cases_that_are_not_rated_are_left_out():
    half = dict(list(GOOD.items())[2:6])
    found = reader_scores.score(TRUTH, {"half": half, "good": GOOD}, 50, 99, seed=0)
    assert found["readers"][0]["rated"] == 4 and found["agreement"]["cases"] == 4
    # 2 and 4 against 5 and 4
    assert found["readers"][0]["auc"]["value"] == pytest.approx((2 + 1.5) / 4)
    only_real = dict(list(GOOD.items())[:2])
    (one,) = reader_scores.score(TRUTH, {"one": only_real}, 50, 99, seed=0)["readers"]
    assert one["auc"]["value"] is None and one["auc"]["p"] is None
    assert one["sensitivity"] == {"value": None, "interval": None}


def test_perfect_readers_have_no_bootstrap_interval():
    perfect = {case: 5 if synthetic else 1 for case, synthetic in TRUTH.items()}
    found = reader_scores.score(TRUTH, {"a": perfect, "b": perfect, "c": perfect}, 50, 999, 0)
    auc = found["readers"][0]["auc"]
    assert auc["value"] == 1 and auc["interval"] is None
    assert auc["p"] == pytest.approx(2 / 70, abs=0.02)      # 2 of 70 ways are as extreme
    assert found["agreement"]["calls"]["value"] == 1


def test_replicates_keep_the_number_of_each_kind():
    truth = np.array(list(TRUTH.values()))
    weights = reader_scores.case_weights(truth, 30, seed=1)
    assert np.all(weights[:, truth].sum(1) == 4) and np.all(weights[:, ~truth].sum(1) == 4)
    assert len({tuple(row) for row in weights}) > 20


def test_coverage_of_the_interval_of_auc():
    """Readers whose ratings overlap: the 95% interval holds the true AUC in 88 to 99% of studies
    with 30 cases of each kind."""
    shares = np.array([[0.3, 0.25, 0.2, 0.15, 0.1], [0.1, 0.15, 0.2, 0.25, 0.3]])
    true = reader_scores.auc(*shares)
    rng = np.random.default_rng(3)
    truth = {f"c{k}": k >= 30 for k in range(60)}
    inside = 0
    for seed in range(200):
        ratings = np.concatenate([rng.choice(5, 30, p=row) + 1 for row in shares])
        (found,) = reader_scores.score(truth, {"r": dict(zip(truth, ratings))}, 300, 0,
                                       seed)["readers"]
        low, high = found["auc"]["interval"]
        inside += low <= true <= high
    assert 0.88 * 200 <= inside <= 0.99 * 200
