import numpy as np

from metrics.overlap import overlap_warnings
from metrics.statistic import Pool
from metrics.volume_sets import VolumeSet


def a_set(flag, values, subjects=None, voxel_sizes=(1, 1, 1)):
    """A set whose cube i holds values[i] and one other value."""
    def read(i):
        cube = np.full((2, 2, 2), values[i], np.uint8)
        cube[0, 0, 0] = 255
        return cube

    ids = [f"{flag[2]}{i}" for i in range(len(values))]
    return VolumeSet(flag, "folder", None, ids, subjects or ids, 2, np.array(voxel_sizes), read)


def warnings(tmp_path, *sets):
    pool = Pool(*sets)
    pool.load(memory_gb=1, folder=tmp_path)
    return overlap_warnings(pool)


def test_different_volumes_give_no_warning(tmp_path):
    real, synthetic = a_set("--real", [1, 2]), a_set("--synthetic", [3, 4])
    assert warnings(tmp_path, real, synthetic) == []
    assert warnings(tmp_path, real, synthetic, a_set("--train", [5, 6])) == []


def test_the_same_volumes(tmp_path):
    real = a_set("--real", [1, 2])
    assert warnings(tmp_path, real, a_set("--synthetic", [2, 1, 1])) == [
        "the real and the synthetic set are the same volumes"]
    assert warnings(tmp_path, real, a_set("--synthetic", [3, 1])) == [
        "1 of 2 synthetic volumes are in the real set: s1"]


def test_training_volumes_and_subjects(tmp_path):
    real = a_set("--real", [1, 2, 3], ["x", "y", "z"])
    synthetic = a_set("--synthetic", list(range(10, 18)))
    train = a_set("--train", [1, *range(10, 17), 20], ["x"] + list("abcdefg") + ["y"])
    assert warnings(tmp_path, real, synthetic, train) == [
        "1 of 3 real volumes are in the training set, voxel for voxel: r0",
        "7 of 8 synthetic volumes are in the training set, voxel for voxel: s0, s1, s2, s3, s4 "
        "and 2 more",
        "1 of 3 real volumes are of subjects in the training set: r1"]


def test_a_file_name_is_no_subject(tmp_path):
    """Files of both sets are called t0, but nothing says that they are of one person."""
    real = a_set("--real", [1, 2], ["t0", "t1"])
    assert warnings(tmp_path, real, a_set("--synthetic", [3, 4]), a_set("--train", [5, 6])) == []


def test_voxel_sizes(tmp_path):
    real = a_set("--real", [1, 2], voxel_sizes=(1, 1.2, 1))
    close = a_set("--synthetic", [3, 4], voxel_sizes=(1, 1.205, 1))
    assert warnings(tmp_path, real, close) == []
    assert warnings(tmp_path, real, a_set("--synthetic", [3, 4])) == [
        "voxels are 1 × 1.2 × 1 mm in the real and 1 × 1 × 1 mm in the synthetic set"]
