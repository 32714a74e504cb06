"""Sets of one class."""
import dataclasses

import numpy as np
import pytest

from metrics import by_class, evaluation, registry
from metrics.options import MetricOptions
from metrics.statistic import Pool
from metrics.volume_sets import VolumeSet
from utils.errors import UserError


def a_set(flag, values, classes):
    def read(i):
        cube = np.full((2, 2, 2), values[i], np.uint8)
        cube[0, 0, 0] = 255
        return cube

    ids = [f"{flag[2]}{i}" for i in range(len(values))]
    return VolumeSet(flag, "folder", None, ids, [f"sub-{i}" for i in ids], 2, np.ones(3), read,
                     classes=classes)


@pytest.fixture
def pool(tmp_path):
    made = Pool(a_set("--real", [1, 2, 3, 4, 5], ["AD", "CN", "AD", "CN", "CN"]),
                a_set("--synthetic", [11, 12, 13], ["CN", "CN", "MCI"]),
                a_set("--train", [21, 22], None), ["rgb"])
    made.load(1, tmp_path)
    made.part("vae rgb")[:] = made.part("real") + 100
    return made


def levels(volumes):
    return volumes[:, 1, 1, 1].tolist()


def test_the_volumes_of_a_class(pool, tmp_path):
    assert by_class.class_names(pool.sets["real"], pool.sets["synthetic"]) == ["AD", "CN", "MCI"]
    assert by_class.counts(pool, "CN") == {"real": 3, "synthetic": 2}
    for names in (("train",), ("real",), ("real", "train")):
        pool.once("sum", names, lambda: 1)
    own = by_class.class_pool(pool, "CN", 1, tmp_path)
    assert own.knows("sum", ("train",))     # as the training set is the same, and the others not
    assert not own.knows("sum", ("real",)) and not own.knows("sum", ("real", "train"))
    assert levels(own.part("real")) == [2, 4, 5] and levels(own.part("synthetic")) == [11, 12]
    assert levels(own.part("vae rgb")) == [102, 104, 105] and levels(own.part("train")) == [21, 22]
    assert own.sets["real"].ids == ["r1", "r3", "r4"]
    assert own.sets["real"].subjects == ["sub-r1", "sub-r3", "sub-r4"] and own.size == 8
    assert levels(pool.part("real")) == [1, 2, 3, 4, 5]


def test_affines_of_a_class_are_read_when_they_are_asked_for(pool, tmp_path):
    """Those of NIfTI cubes are read with their voxels."""
    read = []

    def affine_of(i):
        read.append(i)
        return np.diag([i, 1, 1, 1])

    pool.sets["real"] = dataclasses.replace(pool.sets["real"], affine_of=affine_of)
    own = by_class.class_pool(pool, "CN", 1, tmp_path)
    assert read == []
    assert own.sets["real"].grid_of(1)[0, 0] == 3 and read == [3]


def test_classes_that_are_too_small():
    assert by_class.reason_to_skip({"real": 2, "synthetic": 2}, None) is None
    assert by_class.reason_to_skip({"real": 5, "synthetic": 1}, None) == (
        "5 real and 1 synthetic volumes; at least 2 of each are needed")
    assert "at least 4" in by_class.reason_to_skip({"real": 5, "synthetic": 3}, 4)


def test_sets_without_classes(pool):
    with pytest.raises(UserError, match="--by-class: --train folder does not say the classes"):
        by_class.class_names(pool.sets["real"], pool.train)


def test_classes_cannot_be_told_apart_within_a_class(pool, tmp_path, capsys):
    """Said once, before; another label is tried in each class."""
    names = ("histogram", "utility")
    metrics = [metric for metric in registry.METRICS if metric.chosen(names)]

    def of_classes(label):
        return evaluation.measure_classes(["CN", "MCI"], metrics, pool, MetricOptions(
            names=names, utility=label), replicates=0, permutations=0, folder=tmp_path)

    found = of_classes("class")
    line = "utility: not computed by class, as it needs volumes of two classes"
    assert capsys.readouterr().out.count(line) == 1
    assert list(found["CN"]["metrics"]) == ["histogram", "histogram_foreground"]
    assert found["CN"]["skipped"]["utility"].startswith("as it needs volumes of two")
    assert list(found["MCI"]["skipped"]) == ["everything"]
    found = of_classes("age")
    assert line not in capsys.readouterr().out
    assert "does not record age" in found["CN"]["skipped"]["utility"]
