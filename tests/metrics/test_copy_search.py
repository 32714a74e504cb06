"""The search for copies, on blobs that are easily confused with each other when blurred."""
import numpy as np
import pytest
from scipy import ndimage

from metrics import copy_search

SIDE = 32


def blobs(n, seed):
    """(N, 32, 32, 32) uint8, smooth and empty at the border, all with a common part."""
    rng = np.random.default_rng(seed)
    own = ndimage.gaussian_filter(rng.normal(size=(n, SIDE, SIDE, SIDE)), (0, 2, 2, 2))
    common = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=(SIDE,) * 3), 3)
    volumes = own / own.std() + 2 * common / common.std() + 5
    mask = np.zeros((SIDE,) * 3)
    mask[6:-6, 6:-6, 6:-6] = 1
    return np.clip(25 * volumes * ndimage.gaussian_filter(mask, 1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def search():
    return copy_search.CopySearch(blobs(10, seed=0), [f"s{i // 2}" for i in range(10)])


def best_match(search, volume):
    return search.best_matches([volume])[0]


@pytest.mark.parametrize("flip, axis", [("", None), ("left-right", 0), ("inferior-superior", 2)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -2, 1), (-1, 3, -3)])
def test_copies_are_found_however_they_are_moved(search, flip, axis, shift):
    source = search.volumes[7]
    mirrored = source if axis is None else np.flip(source, axis)
    match = best_match(search, np.roll(mirrored, shift, (0, 1, 2)))
    assert match.index == 7 and match.flip == flip and match.shift == shift
    assert match.distance < 1e-5 and match.ratio < 1e-3
    assert match.aligned[0] == (7, flip, shift)
    subjects = [search.subjects[index] for index, *_ in match.aligned]
    assert len(set(subjects)) == len(subjects) >= 2      # the best of each subject
    darker = (0.8 * np.roll(mirrored, shift, (0, 1, 2)) + 20).astype(np.uint8)
    match = best_match(search, darker)
    assert match.index == 7 and match.ratio < 0.02


def test_distance_is_that_of_the_correlation(search):
    match = best_match(search, search.volumes[3])
    others = [i for i in range(10) if i not in (2, 3)]  # volume 2 is of the same subject
    correlation = np.corrcoef(search.volumes.reshape(10, -1))[3]
    assert match.second_distance <= 1 - correlation[others].max() + 1e-5
    assert match.second_distance > 0.03


@pytest.mark.parametrize("side", [24, 33, 64, 100])
def test_copies_are_found_at_any_size(side):
    """Also if shifted by a fraction of the coarse grid's voxels; distances are exact in fp32."""
    rng = np.random.default_rng(side)
    train = rng.integers(0, 256, (6, side, side, side), dtype=np.uint8)
    train[:, side // 3:] //= 3
    search = copy_search.CopySearch(train, range(6))
    for shift in ((1, 0, 0), (-1, 2, 3), (3, 3, -3)):
        match = best_match(search, np.roll(train[4, :, :, ::-1], shift, (0, 1, 2)))
        assert (match.index, match.flip, match.shift) == (4, "inferior-superior", shift)
        assert match.distance < 2e-6 and match.second_distance > 0.1


def test_smooth_volumes_are_found_when_moved_by_half_a_coarse_voxel():
    """60 volumes that are more alike than a copy and its source would be on the coarse grid, if it
    could not be moved by less than its voxels."""
    rng = np.random.default_rng(0)
    own = ndimage.gaussian_filter(rng.normal(size=(60, SIDE, SIDE, SIDE)), (0, 1.5, 1.5, 1.5))
    common = blobs(1, seed=5)[0].astype(float)
    train = np.clip(common + 4 * own / own.std() + 20, 0, 255).astype(np.uint8)
    search = copy_search.CopySearch(train, range(60))
    sources = range(0, 60, 5)
    moved = [np.roll(train[i], (1, -1, 3), (0, 1, 2)) for i in sources]
    assert [match.index for match in search.best_matches(moved)] == list(sources)


def test_planted_copies_are_flagged_and_new_volumes_are_not(search):
    rng = np.random.default_rng(0)
    real = [m.ratio for m in search.best_matches(blobs(8, seed=1))]
    threshold = copy_search.threshold(real)
    assert threshold == pytest.approx(min(0.8 * min(real), copy_search.HIGHEST_FLAGGED))
    for index in (0, 4, 9):
        match = best_match(search, copy_search.planted_copy(search.volumes[index], rng))
        assert match.index == index and match.ratio < threshold and match.flip == "left-right"
    assert all(m.ratio > threshold for m in search.best_matches(blobs(8, seed=2)))


def test_one_subject_has_no_second():
    assert best_match(copy_search.CopySearch(blobs(2, 0), ["a", "a"]), blobs(1, 1)[0]) is None
    same = copy_search.Match(0, 0.0, 0.0, "", (0, 0, 0))  # two equal training volumes
    assert same.ratio == 1


def test_real_copies_do_not_lower_the_threshold():
    """Real volumes that were trained on have a ratio near 0, so nothing would be found."""
    ratios = np.array([[0.9, 0.0, 0.7, 0.2], [0.95, 0.9, 0.85, 1.0], [0.0, 0.1, 0.2, 0.0]])
    assert copy_search.is_real_copy(ratios).sum(1).tolist() == [2, 0, 4]
    assert np.allclose(copy_search.threshold(ratios), [0.8 * 0.7, 0.6, 0.6])
