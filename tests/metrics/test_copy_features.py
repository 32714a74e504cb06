"""The score of copies by features, against features of volumes that are moved here."""
import numpy as np
import pytest
import torch
from helpers import related

from metrics import copy_features, copy_search, random_features


@pytest.fixture(scope="module")
def train():
    return (related(6, 16, seed=4) * 200).astype(np.uint8)


def direction(volume):
    x = torch.from_numpy(np.ascontiguousarray(volume)).float()[None, None] / 255
    found = random_features.RandomNetwork()(x)[0].double().numpy()
    return found / np.linalg.norm(found)


def test_ratio_of_the_nearest_to_the_second(train):
    scores = copy_features.FeatureScores(train)
    volume = np.clip(np.rint(0.7 * train[2] + 0.3 * train[4]), 0, 255).astype(np.uint8)
    aligned = ((4, "", (0, 0, 0)), (2, "left-right", (1, 0, -2)), (0, "", (0, 3, 0)))
    found = scores.match(volume, copy_search.Match(4, 0.1, 0.2, "", (0, 0, 0), aligned))
    deviation = np.stack([direction(v) for v in train]).std(0)
    scale = 1 / np.where(deviation > 1e-6 * deviation.max(), deviation, np.inf)
    moved = [train[4], np.roll(train[2][::-1], (1, 0, -2), (0, 1, 2)), np.roll(train[0], 3, 1)]
    distances = [np.linalg.norm((direction(m) - direction(volume)) * scale) for m in moved]
    first, second = sorted(distances)[:2]
    assert found.ratio == pytest.approx(first / second, rel=1e-3)
    assert found.index == (4, 2, 0)[int(np.argmin(distances))]


def test_a_copy_has_ratio_0_whatever_its_contrast_and_place(train):
    search, scores = copy_search.CopySearch(train, range(6)), copy_features.FeatureScores(train)
    plain = np.roll(train[3][:, ::-1], (2, -1), (1, 2))
    dark = (plain // 2).astype(np.uint8)
    own = (related(7, 16, seed=4)[6] * 200).astype(np.uint8)
    volumes = [plain, dark, own]
    done = []
    exact, darker, other = scores.matches(volumes, search.best_matches(volumes), done.append)
    assert done == [1, 1, 1] and exact.index == darker.index == 3
    assert exact.ratio == pytest.approx(0, abs=1e-5)
    assert darker.ratio < 0.25 < 0.5 < other.ratio      # half the contrast, rounded


def test_without_a_match_there_is_no_score(train):
    scores = copy_features.FeatureScores(train)
    assert scores.matches([train[0]], [None]) == [None]
    same = copy_features.FeatureScores(np.repeat(train[:1], 3, axis=0))
    found = same.match(train[1], copy_search.Match(
        0, 0.1, 0.1, "", (0, 0, 0), ((0, "", (0, 0, 0)), (1, "", (0, 0, 0)))))
    assert found.ratio == 1.0       # equal training volumes tell nothing
