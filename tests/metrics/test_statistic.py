"""Pool, resamples and summarize, on sets whose volumes are numbers."""
import numpy as np
import pytest

from metrics import resampling, statistic
from metrics.volume_sets import VolumeSet


def a_set(flag, values, subjects=None):
    """A set of 2 x 2 x 2 cubes; cube i is values[i], but for one voxel that is one more."""
    def read(i):
        cube = np.full((2, 2, 2), values[i], np.uint8)
        cube[1, 1, 1] += 1
        return cube

    ids = [f"v{i}" for i in range(len(values))]
    return VolumeSet(flag, "folder", None, ids, subjects or ids, 2, np.ones(3), read)


@pytest.fixture
def pool(tmp_path):
    made = statistic.Pool(
        a_set("--real", [10, 20, 30, 40, 50], ["a", "a", "b", "c", "d"]),
        a_set("--synthetic", [11, 22, 33, 44, 55, 66]), a_set("--train", [1, 2]), ["rgb"])
    made.load(memory_gb=4, folder=tmp_path)
    made.part("vae rgb")[:] = made.part("real") + 1
    return made


def mean_of(pool, weights):
    return weights @ pool.compared[:, 0, 0, 0] / weights.sum(1)


def difference(pool):
    return lambda real, other: mean_of(pool, other) - mean_of(pool, real)


def test_pool_holds_the_sets_one_after_another(pool):
    assert list(pool.sets) == ["real", "synthetic", "vae rgb"] and pool.size == 16
    assert pool.volumes[:, 0, 0, 0].tolist() == [
        10, 20, 30, 40, 50, 11, 22, 33, 44, 55, 66, 11, 21, 31, 41, 51, 1, 2]
    assert pool.index("synthetic").tolist() == [5, 6, 7, 8, 9, 10]
    assert pool.index("train").tolist() == [16, 17] and pool.part("train")[1, 0, 0, 0] == 2
    assert len(pool.compared) == 16
    weights = pool.weights("synthetic", np.array([[2, 0, 0, 1, 0, 0]]))
    assert weights.tolist() == [[0] * 5 + [2, 0, 0, 1, 0, 0] + [0] * 5]
    assert pool.weights("real").tolist() == [[1] * 5 + [0] * 11]
    # one group per subject of a set: two of one subject only in the real set and its copy
    assert pool.groups[0] == pool.groups[1] and pool.groups[11] == pool.groups[12]
    assert len(set(pool.groups)) == 4 + 6 + 4


def test_summary_by_hand(pool):
    resampled = resampling.resamples(pool, replicates=50, seed=0)
    entry = statistic.summarize(
        statistic.Statistic("d", "difference", "of means", "0", difference(pool),
                            details={"unit": "gray levels"}), pool, resampled)
    assert list(entry) == ["name", "aim", "how", "value", "unit", "interval", "floor",
                           "at_floor_n", "vae"]
    assert entry["name"] == "difference" and entry["how"] == "of means" and entry["aim"] == "0"
    assert entry["value"] == pytest.approx(38.5 - 30) and entry["unit"] == "gray levels"
    assert entry["interval"][0] < entry["value"] < entry["interval"][1]
    first, second = resampled.halves
    halves = mean_of(pool, second) - mean_of(pool, first)
    assert entry["floor"] == pytest.approx(
        {"mean": halves.mean(), "low": halves.min(), "high": halves.max()})
    assert entry["vae"] == {"rgb": pytest.approx(1)}


def test_halves_are_of_subjects_and_matched_in_size(pool):
    resampled = resampling.resamples(pool, replicates=0, seed=0)
    assert resampled.bootstrap is None and resampled.missing == {}
    first, second = resampled.halves
    assert len(first) == resampling.SPLITS and np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first + second, np.repeat(pool.weights("real"), len(first), axis=0))
    assert np.array_equal(resampled.matched[0], first)
    # real subject "a" has two volumes: the synthetic sets have as many subjects, not volumes
    subjects = second[:, [0, 2, 3, 4]].sum(1)
    assert np.array_equal(resampled.matched[1].sum(1), subjects)
    assert not np.array_equal(subjects, second.sum(1))
    assert (resampled.matched[1][:, :5] == 0).all() and resampled.matched[1].max() == 1


def test_targets_and_limits(pool):
    resampled = resampling.resamples(pool, replicates=20, seed=0)

    def summary(target, compute, **fields):
        return statistic.summarize(
            statistic.Statistic("k", "n", "d", target, compute, **fields), pool, resampled)

    low = summary("low", lambda real, other: difference(pool)(real, other) - 9)
    assert low["value"] == 0 and low["interval"][0] == 0  # not below 0, as a distance
    real = summary("real", lambda real, other: mean_of(pool, other))
    assert real["value"] == pytest.approx(38.5) and real["target"]["value"] == pytest.approx(30)
    assert real["target"]["interval"][0] < 30 < real["target"]["interval"][1]
    unsure = summary("real", lambda real, other: mean_of(pool, other), has_interval=False)
    assert unsure["target"] == {"value": pytest.approx(30)} and "interval" not in unsure
    unknown = summary("real", lambda real, other: np.where(
        (real == other).all(1), np.nan, mean_of(pool, other)))
    assert unknown["value"] == pytest.approx(38.5) and unknown["target"] == {"value": None}
    share = summary("0.1", lambda real, other: np.zeros(len(other)), is_share=True,
                    has_ceiling=False)
    # (1 - F(x)) of 0 of 6 below a threshold of 4 subjects is 2.5% at x = 0.635
    assert share["interval"] == [0, pytest.approx(0.635, abs=1e-3)] and "vae" not in share
    given = summary("0", None, value=7.0)
    assert list(given) == ["name", "aim", "how", "value"] and given["value"] == 7
    undefined = summary("0", lambda real, other: np.full(len(real), np.nan))
    assert undefined["value"] is None and "floor" not in undefined


def test_p_by_permutation_of_subjects_and_by_t(pool):
    resampled = resampling.resamples(pool, replicates=20, seed=0, permutations=99)
    own, other = resampled.permuted
    assert own.shape == (100, pool.size) and (own.sum(1) == 4).all() and (other.sum(1) == 6).all()
    assert own[0, [0, 1]].sum() == 1                       # one of the two scans of subject "a"

    def summary(**fields):
        return statistic.summarize(
            statistic.Statistic("k", "n", "d", "0", difference(pool), **fields), pool, resampled)

    upper = summary(test="upper")
    values = difference(pool)(own, other)
    assert upper["p"] == np.mean(values >= values[0] - 1e-6)
    assert upper["p_method"] == "99 permutations of subjects, upper tail"
    assert summary()["p"] == pytest.approx(min(1, 2 * min(upper["p"], np.mean(
        values <= values[0] + 1e-6))))
    assert "p" not in summary(test=None) and "interval" not in summary(has_interval=False)
    by_t = summary(test="t")
    low, high = by_t["interval"]
    assert by_t["p_method"].startswith("t,") and (by_t["p"] < 0.05) == (low > 0 or high < 0)
    entries = {"a": upper, "b": {"p": 0.01}, "c": {"value": 1}}
    statistic.add_adjusted_p(entries)
    assert entries["b"]["p_adjusted"] == 0.02 and "p_adjusted" not in entries["c"]
    assert entries["a"]["p_adjusted"] == max(0.02, upper["p"])
    assert resampling.resamples(pool, 0, 0, permutations=0).permuted is None


def test_too_few_subjects(tmp_path):
    def missing(real, synthetic, replicates=10):
        pool = statistic.Pool(a_set("--real", *real), a_set("--synthetic", *synthetic))
        resampled = resampling.resamples(pool, replicates, seed=0)
        assert (resampled.bootstrap is None) == (replicates == 0 or len(resampled.missing) > 0)
        assert (resampled.halves is None) == ("the floor" in resampled.missing)
        return resampled.missing

    many, few = ([1, 2, 3, 4],), ([1, 2, 3, 4], ["a", "a", "b", "b"])
    assert missing(many, many) == {}
    assert missing(many, few) == {"intervals": "--synthetic has 2 subjects; at least 4 are needed"}
    why = "--real has 2 subjects; at least 4 are needed"
    assert missing(few, many) == missing(few, few) == {"intervals": why, "the floor": why}
    assert missing(few, many, replicates=0) == {"the floor": why}
    two = statistic.Pool(a_set("--real", *few), a_set("--synthetic", *many))
    found = resampling.resamples(two, 0, seed=0, permutations=19)
    assert found.permuted is None and found.missing["p"] == why
    assert missing(([1, 2], ["a", "a"]), many)["the floor"].startswith("--real has 1 subject;")


def test_only_volumes_with_a_value_are_drawn(pool):
    counted = np.arange(pool.size) != 10                        # 5 of 6 synthetic volumes
    counted[[0, 1]] = False                                     # and no subject "a"
    found = resampling.resamples(pool, 20, seed=0, permutations=19, counted=counted)
    assert found.missing == {
        "intervals": "--real has 3 subjects with a value; at least 4 are needed",
        "p": "--real has 3 subjects with a value; at least 4 are needed",
        "the floor": "--real has 3 subjects with a value; at least 4 are needed"}
    counted[1] = True
    found = resampling.resamples(pool, 20, seed=0, permutations=19, counted=counted)
    assert found.missing == {} and found.subjects == (4, 5)
    assert [len(without) for without in found.left_out] == [4, 5]
    for first, second in (found.bootstrap, found.left_out, found.halves, found.matched,
                          found.permuted):
        assert not first[:, ~counted].any() and not second[:, ~counted].any()
    assert (found.permuted[0].sum(1) == 4).all() and (found.permuted[1].sum(1) == 5).all()


def test_another_synthetic_set_takes_the_place_of_the_first(pool, tmp_path):
    """The other sets keep their volumes, and what is known of them alone; whatever its size."""
    computed = []

    def first_voxels(volumes, callback):
        computed.append(len(volumes))
        callback(len(volumes))
        return volumes[:, 0, 0, 0].astype(int)

    def known():
        return pool.of_volumes("first voxel", "voxels", first_voxels).tolist()

    real, decoded = [10, 20, 30, 40, 50], [11, 21, 31, 41, 51]
    assert known() == [*real, 11, 22, 33, 44, 55, 66, *decoded] and computed == [5, 6, 5]
    assert pool.once("mixed", ("real", "synthetic"), lambda: 1) == 1
    assert pool.once("train alone", ("train",), lambda: 2) == 2
    for values in ([70, 80, 90, 71, 81, 91], [99, 98]):
        before = pool.volumes
        pool.replace_synthetic(a_set("--synthetic", values), 4, tmp_path)
        assert (pool.volumes is before) == (len(values) == 6)
        assert not pool.knows("mixed", ("real", "synthetic"))
        assert pool.once("train alone", ("train",), lambda: 3) == 2
        computed.clear()
        assert known() == [*real, *values, *decoded] and computed == [len(values)]
        assert pool.volumes[:, 0, 0, 0].tolist() == [*real, *values, *decoded, 1, 2]
        assert pool.size == 10 + len(values) == len(pool.groups)
        assert pool.weights("synthetic").sum() == len(values)
