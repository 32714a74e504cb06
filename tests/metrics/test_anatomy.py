"""Anatomy: where volumes come from, what cannot be computed, and what is found."""
import csv
import types

import numpy as np
import pytest
from helpers import GOLDEN, SHARED, script

from metrics import (
    anatomy,
    evaluation,
    permutation,
    registry,
    statistic,
    structure_statistics,
    structure_volumes,
    volume_sets,
)
from metrics.options import MetricOptions, NotComputed
from metrics.volume_sets import VolumeSet
from mri import structures
from mri.structures import STRUCTURES

NETWORK = SHARED / "meshnet" / "model18cls"
VENTRICLE = STRUCTURES.index("lateral_ventricle")


def a_set(flag, n, voxel_mm=1.0, path="folder"):
    ids = [f"{flag[2:]}-{i:02d}" for i in range(n)]
    return VolumeSet(flag, str(path), None, ids, ids, 8, np.full(3, voxel_mm), read=None)


def a_pool(n_real=6, n_synthetic=5, voxel_mm=1.0, layouts=()):
    pool = statistic.Pool(a_set("--real", n_real, voxel_mm),
                          a_set("--synthetic", n_synthetic, voxel_mm), layouts=layouts)
    rng = np.random.default_rng(0)
    pool.volumes = rng.integers(0, 255, (pool.size, 8, 8, 8)).astype(np.uint8)
    return pool


def write_table(path, ids, volumes, names=STRUCTURES):
    rows = ["\t".join(("id", *names))]
    rows += ["\t".join((name, *(f"{x:.4f}" for x in row))) for name, row in zip(ids, volumes)]
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def random_volumes(n, seed, count=17):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(1, 0.2, (n, count)))


def table_options(tmp_path, pool, change=None):
    """Options whose tables hold all volumes of a pool, and the volumes."""
    real, synthetic = random_volumes(6, 1), random_volumes(5, 2)
    if change:
        change(real, synthetic)
    return MetricOptions(
        anatomy_real=(write_table(tmp_path / "real.tsv", pool.sets["real"].ids, real),),
        anatomy_synthetic=(write_table(tmp_path / "synthetic.tsv", pool.sets["synthetic"].ids,
                                       synthetic),)), np.concatenate([real, synthetic])


def values_of(pool, options):
    found = anatomy.anatomy_statistics(pool, options)
    return {s.key: s.compute(pool.weights("real"), pool.weights("synthetic"))[0] for s in found}


# ----------------------------------------------------------------------------------------- tables

def test_numbers_from_tables(tmp_path):
    pool = a_pool()
    options, ml = table_options(tmp_path, pool)
    anatomy.check_anatomy(pool, options)
    found = values_of(pool, options)
    d = structure_statistics.cohens_d(pool.weights("real"), pool.weights("synthetic"), ml)[0]
    assert found["anatomy_volume_thalamus"] == pytest.approx(
        d[STRUCTURES.index("thalamus")], abs=1e-3)
    ventricles = [STRUCTURES.index(name) for name in STRUCTURES if "ventricle" in name]
    brain = np.delete(ml, ventricles, axis=1).sum(1)
    share = ml[:, :1] / brain[:, None]
    expected = structure_statistics.cohens_d(pool.weights("real"), pool.weights("synthetic"), share)
    assert found["anatomy_share_cerebral_white_matter"] == pytest.approx(expected[0, 0], abs=1e-3)
    assert found["anatomy_largest_effect"] >= np.abs(d).max() - 1e-3
    assert found["anatomy_reliable"] == 1 and "anatomy_asymmetry" not in found
    small = [abs(x) < 0.2 for key, x in found.items()
             if key.startswith(("anatomy_volume_", "anatomy_share_"))]
    assert len(small) == 34 and found["anatomy_small_effects"] == pytest.approx(np.mean(small))


def test_the_volumes_are_written(tmp_path):
    pool = a_pool()
    options, ml = table_options(tmp_path, pool)
    files = anatomy.tables_of(pool, options)
    rows = list(csv.reader(files["anatomy-synthetic.tsv"].splitlines(), delimiter="\t"))
    assert rows[0] == ["id", *STRUCTURES] and [r[0] for r in rows[1:]] == pool.sets["synthetic"].ids
    assert np.allclose(np.array([row[1:] for row in rows[1:]], float), ml[6:], atol=1e-3)
    pool.sets["real"].ids[0] = "=1\t\n2"
    lines = anatomy.tables_of(pool, options)["anatomy-real.tsv"].splitlines()
    assert len(lines) == 7 and lines[1].startswith("'=1 2\t") and lines[1].count("\t") == 17


def test_volumes_without_a_row_are_left_out(tmp_path, capsys):
    pool = a_pool()
    options, ml = table_options(tmp_path, pool)
    path = tmp_path / "synthetic.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]) + "\n")                 # 3 of 5
    found = values_of(pool, options)
    known = pool.weights("synthetic") * (np.arange(11) < 9)
    d = structure_statistics.cohens_d(pool.weights("real"), known, ml)[0]
    assert found["anatomy_volume_caudate"] == pytest.approx(d[STRUCTURES.index("caudate")],
                                                            abs=1e-3)
    assert "has no row of 2 of 5 volumes, which are left out" in capsys.readouterr().out
    assert anatomy.tables_of(pool, options)["anatomy-synthetic.tsv"].count("n/a") == 2 * 17


def test_a_set_half_segmented_is_as_uncertain_as_the_half(tmp_path):
    """Intervals, p and floors are those of an evaluation of the volumes that have a row."""
    metrics = [metric for metric in registry.METRICS if "anatomy" in metric.titles]
    ids = [f"synthetic-{i:02d}" for i in range(12)]
    tables = [(write_table(tmp_path / f"{k}.tsv", names, random_volumes(len(names), k)),)
              for k, names in enumerate(([f"real-{i:02d}" for i in range(8)], ids[:5]))]
    found = []
    for synthetic in (12, 5):
        options = MetricOptions(names=("anatomy",), anatomy_real=tables[0],
                                anatomy_synthetic=tables[1])
        found.append(evaluation.measure(metrics, a_pool(8, synthetic), options, 20, 99))
    for key, entry in found[1].entries.items():
        for part in ("value", "interval", "p", "floor", "at_floor_n", "target"):
            assert _flat(found[0].entries[key].get(part)) == pytest.approx(
                _flat(entry.get(part)), rel=1e-6, abs=1e-12, nan_ok=True), (key, part)
    assert found[0].skipped == found[1].skipped == {}
    write_table(tmp_path / "1.tsv", ids[:3], random_volumes(3, 1))
    few = evaluation.measure(metrics, a_pool(8, 12), options, 20, 99)
    reason = "--synthetic has 3 subjects with a value; at least 4 are needed"
    assert few.skipped == {"intervals of anatomy": reason, "p of anatomy": reason}
    assert few.entries["anatomy_volume_thalamus"]["value"] is not None


def test_structures_that_only_others_lack_stay(tmp_path, capsys):
    """A row of no volume of the set does not decide which structures are compared."""
    pool = a_pool()
    options, _ = table_options(tmp_path, pool)
    for text in ("elsewhere" + "\t5.0" * 3 + "\tn/a" * 14, "real-00" + "\tn/a" * 17):
        path = tmp_path / "real.tsv"
        path.write_text("\n".join(line for line in path.read_text().splitlines()
                                  if not line.startswith("real-00")) + f"\n{text}\n")
    found = values_of(pool, options)
    assert sum(key.startswith("anatomy_volume_") for key in found) == 17
    assert "has no row of 1 of 6 volumes, which are left out" in capsys.readouterr().out


def _flat(found):
    """The numbers of a part of an entry, as a list."""
    if isinstance(found, dict):
        return [x for value in found.values() for x in _flat(value)]
    return [np.nan if x is None else x for x in (found if isinstance(found, list) else [found])]


def test_missing_structures_are_left_out(tmp_path, capsys):
    pool = a_pool()
    options, _ = table_options(tmp_path, pool)
    names = STRUCTURES[:-2]
    write_table(tmp_path / "real.tsv", pool.sets["real"].ids, random_volumes(6, 1, 15), names)
    found = values_of(pool, options)
    assert "anatomy_volume_ventral_dc" not in found and "anatomy_volume_thalamus" in found
    assert ("2 of 17 structures are missing in some row of the tables, and left out: "
            "accumbens_area, ventral_dc") in capsys.readouterr().out


def test_tables_that_do_not_fit_are_not_computed(tmp_path):
    pool = a_pool()
    options, _ = table_options(tmp_path, pool)
    write_table(tmp_path / "real.tsv", ["x", "y", "z"], random_volumes(3, 1))
    with pytest.raises(NotComputed, match="its rows .x, y, z. are of fewer than 2 volumes of "
                                          "--real .real-00, real-01"):
        anatomy.check_anatomy(pool, options)
    one = MetricOptions(anatomy_real=options.anatomy_real)
    with pytest.raises(NotComputed, match="--anatomy-real and --anatomy-synthetic go together"):
        anatomy.check_anatomy(pool, one)


def test_an_outlier_is_not_reliable(tmp_path):
    def shrink(real, synthetic):
        synthetic[0, 7] /= 50

    pool = a_pool()
    options, _ = table_options(tmp_path, pool, shrink)
    assert values_of(pool, options)["anatomy_reliable"] == pytest.approx(0.8)
    reliable = next(s for s in anatomy.anatomy_statistics(pool, options)
                    if s.key == "anatomy_reliable")
    assert reliable.details["unreliable"] == {"real": [], "synthetic": ["synthetic-00"]}


def test_agreement_that_is_unusually_good_is_no_difference(tmp_path):
    """The tail of each test: few small effects, large effects, covariances that disagree."""
    pool = a_pool()
    options, _ = table_options(tmp_path, pool)
    tails = {found.key: found.test for found in anatomy.anatomy_statistics(pool, options)}
    assert tails["anatomy_small_effects"] == tails["anatomy_covariance"] == "lower"
    assert tails["anatomy_largest_effect"] == tails["anatomy_wasserstein"] == "upper"


def test_scores_of_synthseg_count(tmp_path):
    pool = a_pool()
    options, _ = table_options(tmp_path, pool)
    head = "subject,general white matter,thalamus,hippocampus+amygdala"
    more = {}
    for name in ("real", "synthetic"):
        rows = [f"{key},0.9,0.9,{0.6 if i == 1 and name == 'synthetic' else 0.7}"
                for i, key in enumerate(pool.sets[name].ids)]
        (tmp_path / f"qc-{name}.csv").write_text("\n".join((head, *rows)) + "\n")
        more[f"anatomy_{name}"] = (str(tmp_path / f"{name}.tsv"), str(tmp_path / f"qc-{name}.csv"))
    assert values_of(pool, MetricOptions(**more))["anatomy_reliable"] == pytest.approx(0.8)


# ---------------------------------------------------------------------------------------- network

def test_weights_that_are_absent_or_damaged(tmp_path):
    pool = a_pool()
    with pytest.raises(NotComputed, match="holds no network for structures; run download.py"):
        anatomy.check_anatomy(pool, MetricOptions(meshnet=tmp_path))
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(NotComputed, match="model.json: not valid JSON .*; download it again"):
        anatomy.check_anatomy(pool, MetricOptions(meshnet=tmp_path))
    anatomy.check_anatomy(a_pool(voxel_mm=2.5), MetricOptions(meshnet=tmp_path))


def test_coarse_volumes_have_tissues_alone(capsys):
    pool = a_pool(voxel_mm=4.0)
    found = values_of(pool, MetricOptions())
    assert "voxels of 4 mm are too coarse for structures" in capsys.readouterr().out
    assert {key.split("_", 2)[2] for key in found if key.startswith("anatomy_volume_")} == {
        "csf", "gray_matter", "white_matter"}
    assert "anatomy_reliable" not in found


def test_segmented_volumes_and_what_is_reliable(monkeypatch, tmp_path):
    pool = a_pool(layouts=["rgb"])
    rows = np.zeros((pool.size, len(structure_volumes.COLUMNS)))
    rows[:, :17] = random_volumes(pool.size, 3)
    quality = {name: 17 + k for k, name in enumerate(structure_volumes.QUALITIES)}
    rows[:, quality["largest_piece"]] = 1
    rows[:, quality["entropy"]] = np.random.default_rng(4).normal(0.7, 0.01, pool.size)
    rows[:, quality["asymmetry"]] = np.linspace(0.01, 0.02, pool.size)
    synthetic = pool.index("synthetic")
    rows[synthetic[0], quality["largest_piece"]] = 0.9
    rows[synthetic[1], quality["cavities"]] = 0.2
    rows[synthetic[2], quality["entropy"]] = 2.0
    rows[synthetic[3], quality["entropy"]] = 0.1            # surer than real ones
    by_name = {"real": rows[:6], "synthetic": rows[6:11], "vae rgb": rows[11:]}

    def measure_all(self, volumes, affines, ids, folder, label):
        assert len(affines) == len(ids) == len(volumes)
        return by_name[label]

    monkeypatch.setattr(structures, "find_network", lambda folder: tmp_path)
    monkeypatch.setattr(structure_volumes.meshnet, "fingerprint", lambda folder: "net abc")
    monkeypatch.setattr(structure_volumes.Segmenter, "measure_all", measure_all)
    labels = types.SimpleNamespace(labels=np.zeros((8, 8, 8), np.uint8))
    monkeypatch.setattr(structure_volumes.Segmenter, "segment", lambda self, v, affine: labels)
    found = values_of(pool, MetricOptions())
    assert found["anatomy_reliable"] == pytest.approx(2 / 5)
    assert found["anatomy_asymmetry"] == pytest.approx(rows[6:11, quality["asymmetry"]].mean())
    assert len(pool.results[anatomy.OUTLINES]) == 2
    reliable = next(s for s in anatomy.anatomy_statistics(pool, MetricOptions())
                    if s.key == "anatomy_volume_putamen")
    ceiling = reliable.compute(pool.weights("real"), pool.weights("vae rgb"))[0]
    k = STRUCTURES.index("putamen")
    expected = structure_statistics.cohens_d(pool.weights("real"), pool.weights("vae rgb"),
                                             rows[:, k:k + 1])[0, 0]
    assert ceiling == pytest.approx(expected) and reliable.family == "volume"


# ------------------------------------------------------------------------------- what is found

def grown_volumes():
    """(112, 17) ml: 14 brains of the shared cohort, segmented at 128³ and deformed eight times."""
    with open(GOLDEN / "grown_volumes.tsv") as f:
        rows = list(csv.reader(f, delimiter="\t"))
    assert rows[0][1:] == list(STRUCTURES)
    return np.array([row[1:] for row in rows[1:]], float)


def p_of_structures(ml, permutations, seed):
    """p of each structure of two halves, {family: (17,)}, and of the numbers of all structures."""
    n = len(ml) // 2
    a, b = permutation.permuted_sets(np.arange(n), n + np.arange(n), 2 * n, permutations, seed)
    effects = {"volume": structure_statistics.cohens_d(a, b, ml),
               "conditional": structure_statistics.d_given_the_others(a, b, np.log(ml))}
    found = {family: np.array([permutation.p_value(d[:, k], "both") for k in range(d.shape[1])])
             for family, d in effects.items()}
    found["largest"] = permutation.p_value(np.abs(effects["volume"]).max(1), "upper")
    found["wasserstein"] = permutation.p_value(structure_statistics.wasserstein(a, b, ml), "upper")
    found["covariance"] = permutation.p_value(
        structure_statistics.covariance_agreement(a, b, ml), "both")
    return found


def halves_of_64(volumes, draw, gain=1.0):
    """64 of the volumes in random order; in the last 32 the lateral ventricles are enlarged."""
    ml = volumes[np.random.default_rng([1, draw]).permutation(len(volumes))[:64]].copy()
    ml[32:, VENTRICLE] *= gain
    return ml


def test_a_planted_enlargement_is_the_one_that_is_shown():
    volumes = grown_volumes()
    a, b = np.zeros((2, 1, 2 * len(volumes)))
    a[0, :len(volumes)] = b[0, len(volumes):] = 1
    larger = volumes.copy()
    larger[:, VENTRICLE] *= 1.1
    both = np.concatenate([volumes, larger])
    d = structure_statistics.cohens_d(a, b, both)[0]
    given = structure_statistics.d_given_the_others(a, b, np.log(both))[0]
    assert np.abs(given).argmax() == VENTRICLE and given[VENTRICLE] > 2 * d[VENTRICLE] > 0.3
    assert np.count_nonzero(d) == 1


@pytest.mark.slow
def test_false_alarms_and_power_at_32_against_32():
    """Prints the numbers of docs/anatomy.md."""
    volumes = grown_volumes()
    alike = [p_of_structures(halves_of_64(volumes, 1000 + r), 199, r) for r in range(1000)]
    for key in ("largest", "wasserstein", "covariance"):
        share = np.mean([found[key] <= 0.05 for found in alike])
        print(f"{key}: p <= 0.05 in {share:.3f} of 1,000 random halves")
        assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    for family in ("volume", "conditional"):
        share = np.mean([found[family] <= 0.05 for found in alike])
        print(f"{family}: p <= 0.05 of {share:.3f} of the structures")
        assert share <= 0.065
    power = {}
    for gain in (1.1, 1.2):
        found = [p_of_structures(halves_of_64(volumes, r, gain), 199, r) for r in range(50)]
        for family in ("volume", "conditional"):
            power[family, gain] = np.mean([p[family][VENTRICLE] <= 0.05 for p in found])
            print(f"ventricles x {gain}, {family}: found in {power[family, gain]:.2f}")
    assert power["conditional", 1.2] >= 0.7 > 0.5 >= power["volume", 1.2]
    assert power["conditional", 1.1] >= 0.2


@pytest.mark.slow
@pytest.mark.skipif(not (NETWORK.is_dir() and (SHARED / "cohort").is_dir()),
                    reason=f"needs {NETWORK} and the cohort beside it")
def test_volumes_follow_the_true_ones_over_subjects(tmp_path):
    """Through preprocess.py, so the 8-bit grid of 128³: 14 brains, about a minute each."""
    script("preprocess.py", "--input", SHARED / "cohort", "--output", tmp_path / "data",
           "--size", 128, "--split", "14:0", "--workers", 1)
    found = volume_sets.find_set(tmp_path / "data", None, "--real", default_split="all")
    segmenter = structure_volumes.Segmenter(NETWORK, "cpu")
    volumes = [found.read(i) for i in range(len(found))]
    ml = segmenter.measure_all(volumes, [found.grid_of(i) for i in range(len(found))], found.ids,
                               tmp_path, "cohort")[:, :17]
    with open(SHARED / "cohort" / "volumes_ml.tsv") as f:
        true = {row["id"]: row for row in csv.DictReader(f, delimiter="\t")}
    truth = np.array([[float(true[name][key]) for key in STRUCTURES] for name in found.ids])
    r = {key: np.corrcoef(ml[:, k], truth[:, k])[0, 1] for k, key in enumerate(STRUCTURES)}
    ratio = dict(zip(STRUCTURES, ml.mean(0) / truth.mean(0)))
    print({key: (round(r[key], 2), round(ratio[key], 2)) for key in STRUCTURES})
    least = {"lateral_ventricle": 0.99, "brain_stem": 0.94, "thalamus": 0.94,
             "cerebellum_white_matter": 0.93, "cerebral_white_matter": 0.92,
             "cerebral_cortex": 0.90, "putamen": 0.90, "amygdala": 0.87,
             "inferior_lateral_ventricle": 0.75, "cerebellum_cortex": 0.83, "caudate": 0.83,
             "hippocampus": 0.82, "accumbens_area": 0.72}
    assert {key for key, lowest in least.items() if r[key] < lowest} == set()
    assert 0.9 <= min(ratio.values()) and max(ratio.values()) <= 1.5
