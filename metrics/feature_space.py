"""Features of the volumes of a pool, by one network: where distances of volumes are taken."""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureSpace:
    """Features of all volumes of a pool, by one network."""
    key: str                    # in metrics.json
    name: str                   # in reports
    definition: str
    values: np.ndarray          # (N, F) float64
    details: dict               # of the network

    def products(self):
        """Inner products of the centered features, (N, N)."""
        centered = self.values - self.values.mean(0)
        return centered @ centered.T
