"""Distances and coverage of sets of volumes in the features of a 3D network.

Of a fixed random network, which is always there, and of one that the user names with --features.
"""
import functools

import numpy as np
import torch

from metrics import mmd, random_features
from metrics.coverage import coverage_statistics
from metrics.feature_networks import FeatureNetwork
from metrics.feature_space import FeatureSpace
from metrics.inception import frechet
from metrics.options import NotComputed
from metrics.statistic import Statistic
from utils.progress import counter

BATCH = 4               # volumes at a time
SMALLEST_DEVIATION = 1e-6   # of a feature, over that of the one that varies most
MANY = 100              # weighted sets, from which on progress is shown


@torch.no_grad()
def features(network, volumes, device="cpu", callback=None):
    """Features of volumes.

    :param network: (n, 1, D, D, D) in [0, 1] -> (n, F)
    :param volumes: (N, D, D, D) uint8
    :param callback: called with the number of volumes done
    :return: (N, F) float64
    """
    found = []
    for start in range(0, len(volumes), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(volumes[start:start + BATCH]))
        x = batch[:, None].to(device).float() / 255
        found.append(network(x).double().cpu().numpy())
        if callback:
            callback(len(batch))
    return np.concatenate(found)


def check_networks(pool, options):
    """Raises NotComputed for volumes that are too small, UserError for a file that cannot be used.
    """
    if pool.side < random_features.SMALLEST_SIDE:
        raise NotComputed(f"volumes of {pool.side} voxels a side are too small for the random "
                          f"network, which needs {random_features.SMALLEST_SIDE}")
    if options.features:
        network = _network(options.features, options.device)
        # noise, as networks that standardize their input make NaN of a constant volume
        noise = torch.rand(1, 1, *(pool.side,) * 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            network(noise)


@functools.lru_cache(maxsize=1)
def _network(path, device):
    """Kept, as it is loaded before any volume is read, and used when all are."""
    return FeatureNetwork(path, device)


def feature_statistics(pool, options):
    """Fréchet distance, MMD and coverage, of each space of features."""
    for space in _spaces(pool, options):
        yield from statistics_of(space, pool, options.names)


def _spaces(pool, options):
    network = random_features.RandomNetwork().to(options.device)
    both = np.concatenate([pool.index("real"), pool.index("synthetic")])
    sha256 = random_features.fingerprint()
    yield FeatureSpace(
        "random", "random 3D features",
        f"features of a fixed random 3D network ({random_features.ARCHITECTURE}; seed "
        f"{random_features.SEED}, weights {sha256[:8]}), each over its standard deviation among "
        "the real and synthetic volumes together",
        scaled(_features_of_pool(network, sha256, pool, "random 3D features", options.device),
               both),
        {"network": {"name": "random 3D", "architecture": random_features.ARCHITECTURE,
                     "seed": random_features.SEED, "sha256": sha256}})
    if options.features:
        user = _network(options.features, options.device)
        name = f"features of {user.path.name}"
        yield FeatureSpace(
            "user", name, f"{name} (SHA-256 {user.sha256[:8]})",
            _features_of_pool(user, user.sha256, pool, name, options.device),
            {"network": {"name": user.path.name, "sha256": user.sha256}})


def scaled(values, within):
    """Features over their standard deviation; those that hardly vary become 0.

    Without it, the few that vary most decide alone: over the deviation among both sets together,
    a blur is found by MMD at 32 against 32 brains in 0.7 and not 0.3 of draws. No permutation of
    the two sets changes that deviation.

    :param values: (N, F)
    :param within: indices of the volumes whose deviation counts
    """
    deviation = values[within].std(0)
    varies = deviation > SMALLEST_DEVIATION * deviation.max()
    return np.divide(values, deviation, out=np.zeros_like(values), where=varies)


def _features_of_pool(network, sha256, pool, name, device):
    """(N, F); `sha256` tells networks apart."""
    def compute(volumes, callback):
        return features(network, volumes, device, callback)

    return pool.of_volumes(("3D features", sha256, device), name, compute)


def statistics_of(space, pool, names):
    """The numbers of one space that --metrics names.

    :param space: FeatureSpace
    """
    products = space.products()
    details = {**space.details, "features": space.values.shape[1]}
    if "frechet-3d" in names:
        yield _frechet_statistic(space, products, details)
    if "mmd-3d" in names:
        yield _mmd_statistic(space, products, pool, details)
    if "coverage" in names:
        yield from coverage_statistics(space, products, pool, details)


def _frechet_statistic(space, products, details):
    def compute(a, b):
        if len(a) < MANY:
            return frechet(products, a, b)
        with counter(f"Fréchet distance, {space.name}, permutations", len(a)) as update:
            return frechet(products, a, b, update)

    return Statistic(
        key=f"frechet_{space.key}", name=f"Fréchet distance, {space.name}", target="low",
        definition=f"Fréchet distance of Gaussians fitted to {space.definition}; biased upward, "
                   "the more so the fewer volumes",
        compute=compute, has_interval=False, test="upper", details=details)


def _mmd_statistic(space, products, pool, details):
    both = np.concatenate([pool.index("real"), pool.index("synthetic")])
    kernel, distance = mmd.gaussian_kernel(products, both)
    return Statistic(
        key=f"mmd_{space.key}", name=f"MMD, {space.name}", target="0",
        definition=f"{space.definition}; Gaussian kernel exp(−d²/m), m = ({distance:.4g})² the "
                   "median of d² over all pairs of two volumes, unbiased, no subject paired with "
                   "itself",
        compute=functools.partial(mmd.mmd_of_kernel, kernel, unbiased=True, groups=pool.groups),
        has_interval=False, test="upper", details={**details, "median_distance": distance})
