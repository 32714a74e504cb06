"""Every number that evaluate.py reports: pure functions on arrays.

Volumes are (N, D, D, D). uint8 volumes stand for [0, 1]; floating-point ones are taken as they are.
"""
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# ------------------------------------------------------------------------------------------------------- MS-SSIM

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, of the five levels, fine to coarse
SIGMA, RADIUS = 1.5, 6                               # Gaussian window, voxels
K1, K2 = 0.01, 0.03                                  # constants C = (K L)^2 of SSIM, Wang et al. 2004
SMALLEST = 2 ** (len(WEIGHTS) - 1)                   # side whose coarsest level is one voxel
PROTOCOLS = {
    # name: (dynamic range L for volumes in [-1, 1], what is multiplied)
    "kwon2019": (1.0, "3dbraingen, HA-GAN, cDPM: L = 1, product over i < 5 of cs_i^w_i * ssim_5^w_5"),
    "wang2003": (2.0, "L = 2, product over i < 5 of cs_i^w_i, times ssim_5^w_5"),
}


def ms_ssim_pairs(volumes, protocol="kwon2019", pairs=None, data_range=None, memory_gb=4, device="cpu", callback=None):
    """Multi-scale structural similarity of pairs of volumes (Wang et al. 2003, in 3D).

    Gaussian window of sigma 1.5 and radius 6 with reflected borders, five levels of 2 x 2 x 2 mean pooling. The protocol
    "kwon2019" is what 3dbraingen and the tables that build on it compute; its last level counts four times. A negative mean
    contrast-structure term, which has no such power, counts as 0.

    :param volumes: (N, D, D, D); uint8 is mapped to [-1, 1], floating point taken as it is. D >= 16
    :param pairs: (P, 2) indices; None: all i < j, in the order of itertools.combinations
    :param data_range: L of the constants; None: the protocol's for [-1, 1]
    :param memory_gb: bound for the statistics kept per volume
    :param callback: called with the number of pairs done
    :return: (P,) float64
    :raises ValueError: not cubes of one size, too small for five levels, an index out of range
    """
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise ValueError(f"volumes of shape {volumes.shape}: must be (N, D, D, D)")
    side = volumes.shape[1]
    if side < SMALLEST:
        raise ValueError(f"volumes of {side} voxels a side: five levels need at least {SMALLEST}")
    length = PROTOCOLS[protocol][0] if data_range is None else data_range
    pairs = np.array(list(itertools.combinations(range(len(volumes)), 2)) if pairs is None else pairs).reshape(-1, 2)
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(volumes):
        raise ValueError("pairs: index out of range")
    dtype = torch.float64 if volumes.dtype == np.float64 else torch.float32
    windows = [_window_matrix(side >> level).to(device, dtype) for level in range(len(WEIGHTS))]
    per_volume = 3 * side ** 3 * (8 if dtype == torch.float64 else 4) * 8 / 7
    block = max(1, int(memory_gb * 1e9 / (2 * per_volume)))
    out = np.empty(len(pairs))

    def statistics(index):
        return {i: _pyramid(_as_tensor(volumes[i], device, dtype), windows) for i in index}

    where = pairs // block
    for a in np.unique(where[:, 0]):
        rows = where[:, 0] == a
        first = statistics(np.unique(pairs[rows, 0]))
        for b in np.unique(where[rows, 1]):
            chosen = np.flatnonzero(rows & (where[:, 1] == b))
            second = {i: first[i] for i in np.unique(pairs[chosen, 1]) if i in first}
            second.update(statistics(set(pairs[chosen, 1]) - set(second)))
            for p in chosen:
                out[p] = _ms_ssim(first[pairs[p, 0]], second[pairs[p, 1]], windows, length, protocol)
                if callback:
                    callback(1)
    return out


def _as_tensor(volume, device, dtype):
    x = torch.from_numpy(np.ascontiguousarray(volume)).to(device)
    return x.to(dtype) / 127.5 - 1 if x.dtype == torch.uint8 else x.to(dtype)


def _window_matrix(n):
    """The Gaussian filter of a line of n voxels as an (n, n) matrix, the reflected border folded in (d c b a | a b c d)."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    for i in range(n):
        j = (i + offsets) % (2 * n)
        np.add.at(matrix[i], np.minimum(j, 2 * n - 1 - j), weights)
    return torch.from_numpy(matrix)


def _filter(x, window):
    """The separable Gaussian filter of a cube, as three matrix products."""
    n = len(window)
    x = window @ x.reshape(n, n * n)
    x = window @ x.reshape(n, n, n)
    return x @ window.T


def _pyramid(x, windows):
    """What one volume contributes: at each level the volume, its local mean and its local variance."""
    levels = []
    for window in windows:
        mean = _filter(x, window)
        levels.append((x, mean, _filter(x * x, window) - mean * mean))
        x = F.avg_pool3d(x[None, None], 2)[0, 0] if len(window) > 1 else x
    return levels


def _ms_ssim(first, second, windows, length, protocol):
    c1, c2 = (K1 * length) ** 2, (K2 * length) ** 2
    cs = []
    for (x, mx, vx), (y, my, vy), window in zip(first, second, windows):
        mxy = mx * my
        structure = (2 * (_filter(x * y, window) - mxy) + c2) / (vx + vy + c2)
        cs.append(structure.mean())
    ssim = ((2 * mxy + c1) / (mx * mx + my * my + c1) * structure).mean()
    cs, ssim = torch.stack(cs[:-1]).double().clamp(min=0).cpu().numpy(), max(float(ssim), 0.0)
    repeats = len(cs) if protocol == "kwon2019" else 1
    return np.prod(cs ** WEIGHTS[:-1]) * ssim ** (WEIGHTS[-1] * repeats)


# ----------------------------------------------------------------------------------------------------------- MMD

def _rows(volumes):
    """(N, voxels) float64 of a few volumes; uint8 stands for [0, 1]."""
    x = np.asarray(volumes).reshape(len(volumes), -1)
    return x / 255.0 if x.dtype == np.uint8 else x.astype(np.float64)


def _mean(volumes, chunk=8):
    return sum(_rows(volumes[i:i + chunk]).sum(0) for i in range(0, len(volumes), chunk)) / len(volumes)


def mmd_linear(x, y, batch=None):
    """Squared maximum mean discrepancy (Gretton et al. 2012) with the linear kernel, biased: ||mean x - mean y||^2.

    :param x, y: (N, D, D, D), (M, D, D, D)
    :param batch: average over consecutive batches of this many of both sets, as 3dbraingen does (a rest is left out); None:
        the whole sets at once. The value depends on it
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"volumes of {x.shape[1:]} and {y.shape[1:]}: must be of one size")
    if batch is None:
        return float(np.square(_mean(x) - _mean(y)).sum())
    starts = range(0, min(len(x), len(y)) - batch + 1, batch)
    if not len(starts):
        raise ValueError(f"batch {batch}: the smaller set has {min(len(x), len(y))} volumes")
    return float(np.mean([mmd_linear(x[i:i + batch], y[i:i + batch]) for i in starts]))


def squared_distances(x, y, chunk=32):
    """Squared Euclidean distances of all voxels between each of x and each of y, (N, M) float64, in blocks of `chunk`."""
    out = np.empty((len(x), len(y)))
    for i in range(0, len(x), chunk):
        a = _rows(x[i:i + chunk])
        for j in range(0, len(y), chunk):
            b = _rows(y[j:j + chunk])
            block = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
            out[i:i + chunk, j:j + chunk] = np.maximum(block, 0)
    return out


def mmd_rbf(x, y):
    """Squared MMD with a Gaussian kernel, unbiased (Gretton et al. 2012, eq. 3): exp(-d^2 / (2 s^2)), may be negative.

    s^2 is half the median squared distance among all pairs of two different volumes of both sets together.

    :return: value, median distance
    """
    z = np.concatenate([x, y])
    d2, n, m = squared_distances(z, z), len(x), len(y)
    if min(n, m) < 2:
        raise ValueError("an unbiased MMD needs at least 2 volumes in each set")
    median = float(np.median(d2[np.triu_indices(n + m, 1)]))
    if median == 0:
        return 0.0, 0.0
    k = np.exp(-d2 / median)
    np.fill_diagonal(k, 0)
    value = k[:n, :n].sum() / (n * (n - 1)) + k[n:, n:].sum() / (m * (m - 1)) - 2 * k[:n, n:].mean()
    return float(value), median ** 0.5


# ----------------------------------------------------------------------------------------------------------- FID

VIEW_AXIS = {"A": 2, "C": 1, "S": 0}  # axis of a RAS volume across the axial, coronal, sagittal view


def centre_slices(volumes, view):
    """The centre slices of a view as RGB images, anterior or superior up: (N, 3, D, D) uint8.

    :param volumes: (N, D, D, D) uint8, axes right, anterior, superior
    :param view: "A", "C" or "S"
    """
    axis = VIEW_AXIS[view] + 1
    slices = np.take(volumes, volumes.shape[axis] // 2, axis)
    return torch.from_numpy(np.repeat(np.rot90(slices, axes=(1, 2))[:, None], 3, axis=1).copy())


def frechet_inception_distances(real, fake, weights, batch=32, device="cpu"):
    """FID (Heusel et al. 2017) by view: torchmetrics' FrechetInceptionDistance, Inception pool features (2048).

    :param real, fake: (N, D, D, D) uint8
    :param weights: file in the format of pt_inception-2015-12-05, read as weights only
    :return: {"A": value, "C": value, "S": value}
    :raises ValueError: the weights are unsafe, or not those of the net; fewer than 2 volumes in a set
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    weights = Path(weights)
    try:  # torch-fidelity would unpickle anything: what passes here holds tensors alone
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file can end the unpickler in any way
        raise ValueError(f"{weights}: not a file of weights alone ({' '.join(str(e).split())[:80]})") from None
    try:
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights)).to(device)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise ValueError(f"{weights}: not the weights of the FID Inception net ({' '.join(str(e).split())[:80]})") from None
    if min(len(real), len(fake)) < 2:
        raise ValueError("a covariance needs at least 2 volumes in each set")
    values = {}
    for view in VIEW_AXIS:
        metric.reset()
        for volumes, is_real in ((real, True), (fake, False)):
            images = centre_slices(volumes, view)
            for i in range(0, len(images), batch):
                metric.update(images[i:i + batch].to(device), real=is_real)
        values[view] = float(metric.compute())
    return values
