"""A second score of the search for copies: how near volumes come in features of a random network.

What `copy_search` compares by correlation is compared once more by the features of a fixed random
3D network, after the alignment that the search found: the ratio of the distances to the nearest
training volume and to the nearest one of another subject. It is for information and flags nothing:
see docs/evaluation.md for what it adds.
"""
from dataclasses import dataclass

import numpy as np

from metrics.copy_search import FLIPS
from metrics.random_features import RandomNetwork
from metrics.volume_features import SMALLEST_DEVIATION, features


@dataclass(frozen=True)
class FeatureMatch:
    """The training volume that a volume matches best, by features."""
    index: int              # in the training set
    ratio: float            # distance to the nearest over that to the second nearest subject


class FeatureScores:
    """Scores volumes against one training set."""

    def __init__(self, volumes, device="cpu"):
        """:param volumes: (M, D, D, D) training volumes, uint8, of two at least"""
        self.volumes, self.device = volumes, device
        self.network = RandomNetwork().to(device)
        deviation = self._directions(volumes).std(0)
        varies = deviation > SMALLEST_DEVIATION * deviation.max()
        self._scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)

    def matches(self, volumes, found, callback=None):
        """The FeatureMatch of each volume; None where it has no Match.

        :param volumes: (N, D, D, D) uint8, or a list
        :param found: list of copy_search.Match, or None, of each
        :param callback: called with 1 after each volume
        """
        out = []
        for volume, match in zip(volumes, found):
            out.append(match and self.match(volume, match))
            if callback:
                callback(1)
        return out

    def match(self, volume, found):
        """
        :param volume: (D, D, D) uint8
        :param found: its copy_search.Match
        :return: FeatureMatch
        """
        moved = [np.roll(np.flip(self.volumes[index], FLIPS[flip]), shift, (0, 1, 2))
                 for index, flip, shift in found.aligned]
        values = self._directions(np.stack([volume, *moved])) * self._scale
        distances = np.linalg.norm(values[1:] - values[0], axis=1)
        first, second = np.argsort(distances, kind="stable")[:2]
        ratio = distances[first] / distances[second] if distances[second] > 0 else 1.0
        return FeatureMatch(found.aligned[first][0], float(ratio))

    def _directions(self, volumes):
        """Features over their norm, which a factor of the intensities does not change."""
        found = features(self.network, volumes, self.device)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
