"""Features of the FID Inception net on slices of volumes, and torchmetrics' FID on them."""
from pathlib import Path

import numpy as np
import torch

from metrics.statistic import Statistic
from utils.errors import shorten
from utils.progress import counter

DIMENSIONS = 2048
VIEW_AXIS = {"A": 2, "C": 1, "S": 0}  # axis of a RAS volume across the axial, coronal, sagittal view
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"


def find_weights(folder):
    """The file of weights in download.py's folder, or in torch-fidelity's own cache; None if there is none."""
    places = [Path(folder) / WEIGHTS_FILE, Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE]
    return next((p for p in places if p.is_file()), None)


def load_net(weights, device="cpu"):
    """torchmetrics' Inception net for FID, pool features (2048), images resized with antialiasing.

    :param weights: file in the format of pt_inception-2015-12-05, read as weights only
    :raises ValueError: the weights are unsafe, or not those of the net
    """
    from torchmetrics.image.fid import NoTrainInceptionV3
    try:  # torch-fidelity would unpickle anything: what passes here holds tensors alone
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file can end the unpickler in any way
        raise ValueError(f"{weights}: not a file of weights alone ({shorten(e, 80)})") from None
    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(DIMENSIONS)], str(weights)).to(device)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise ValueError(f"{weights}: not the weights of the FID Inception net ({shorten(e, 80)})") from None


def view_slices(volumes, view, slices=1):
    """The middle slices of a view as RGB images, anterior or superior up: (N, K, 3, D, D) uint8.

    :param volumes: (N, D, D, D) uint8, axes right, anterior, superior
    :param view: "A", "C" or "S"
    :param slices: K; slice D // 2, and its neighbours on both sides (one more below where K is even)
    """
    axis = VIEW_AXIS[view] + 1
    first = volumes.shape[axis] // 2 - slices // 2
    if first < 0 or first + slices > volumes.shape[axis]:
        raise ValueError(f"{slices} slices of {volumes.shape[axis]}")
    chosen = np.moveaxis(np.take(volumes, range(first, first + slices), axis), axis, 1)
    return torch.from_numpy(np.repeat(np.rot90(chosen, axes=(2, 3))[:, :, None], 3, axis=2).copy())


@torch.no_grad()
def features(net, volumes, view, slices=1, batch=32, device="cpu", callback=None):
    """Pool features of the middle slices, (N, K, 2048) float32.

    :param callback: called with the number of volumes done
    """
    out = []
    step = max(1, batch // slices)
    for i in range(0, len(volumes), step):
        images = view_slices(volumes[i:i + step], view, slices)
        parts = [net(part.to(device)).float().cpu() for part in images.flatten(0, 1).split(batch)]
        out.append(torch.cat(parts).unflatten(0, (len(images), slices)))
        if callback:
            callback(len(images))
    return torch.cat(out).numpy()


class _Passed(torch.nn.Module):
    """Stands for the net where features are at hand already."""
    num_features = DIMENSIONS

    def forward(self, x):
        return x


def fid(real, fake):
    """FID (Heusel et al. 2017) by torchmetrics' FrechetInceptionDistance.

    :param real, fake: (N, 2048), (M, 2048) features
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    metric = FrechetInceptionDistance(feature=_Passed())
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return float(metric.compute())


# IMPORTS

import torch

from metrics import inception
from metrics import mmd as metrics


def frechet(products, a, b, callback=None):
    """Frechet distance of two Gaussians fitted to weighted sets of feature vectors (FID, Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with unbiased covariances. With fewer vectors than dimensions it needs
    their inner products alone: tr (S_a S_b)^(1/2) is the sum of the singular values of the centred A B^T / ((n - 1)(m - 1))^(1/2).

    :param products: (N, N) inner products of the pool's feature vectors, centred as one likes
    :param a, b: (R, N) whole weights of the two sets
    :return: (R,)
    """
    out = np.empty(len(a))
    for r, (u, v) in enumerate(zip(a, b)):
        n, m = u.sum(), v.sum()
        ga, gb = products @ u / n, products @ v / m           # of each vector with the two means
        aa, bb, ab = ga @ u / n, gb @ v / m, ga @ v / m       # of the means
        traces = (products.diagonal() @ u - n * aa) / (n - 1) + (products.diagonal() @ v - m * bb) / (m - 1)
        i, j = np.flatnonzero(u), np.flatnonzero(v)
        cross = (products[np.ix_(i, j)] - gb[i, None] - ga[None, j] + ab) * np.sqrt(np.outer(u[i], v[j]) / ((n - 1) * (m - 1)))
        out[r] = aa + bb - 2 * ab + traces - 2 * float(torch.linalg.svdvals(torch.from_numpy(cross)).sum())
        if callback:
            callback(1)
    return out


def frechet_infinity(products, i, j, seed, sizes=10, draws=30, each=1):
    """Frechet distance extrapolated to infinitely many volumes (FID-infinity, Chong and Forsyth 2020).

    Least squares of the distance against 1/N over subsets without replacement, N from a quarter of the smaller set to all of it.

    :param products: (N each, N each) inner products; the vectors of a volume, its slices, side by side
    :param i, j: indices of the volumes of the two sets
    :param each: vectors a volume; they are drawn together, as their number does nothing against the bias of few volumes
    :return: dict(value: intercept, r2: of the fit, n: sizes, fid: their mean distances); None with fewer than 8 volumes
    """
    smaller, volumes = min(len(i), len(j)), len(products) // each
    if smaller < 8:
        return None
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(smaller // 4, smaller, sizes).round().astype(int))
    means = []
    for n in counts:
        a = np.zeros((1 if n == len(i) == len(j) else draws, volumes))
        b = np.zeros_like(a)
        for u, v in zip(a, b):
            u[rng.choice(i, n, replace=False)] = v[rng.choice(j, n, replace=False)] = 1
        means.append(float(frechet(products, np.repeat(a, each, axis=1), np.repeat(b, each, axis=1)).mean()))
    slope, intercept = np.polyfit(1 / counts, means, 1)
    residual = np.array(means) - (intercept + slope / counts)
    r2 = 1 - residual.var() / np.var(means) if np.var(means) > 0 else 1.0
    return dict(value=float(intercept), r2=float(r2), n=counts.tolist(), fid=means)


def kid_kernel(products, dimensions):
    """Polynomial kernel of KID (Binkowski et al. 2018): (<f, g> / d + 1)^3. KID is its unbiased squared MMD."""
    return (products / dimensions + 1) ** 3


def inception_statistics(pool, volumes, net, weights, args):
    """FID and KID on the middle slices of the three views.

    :param weights: dict(file, sha256) of the net's
    :return: a generator, so that what one view takes in memory is free before the next
    """
    for view, word in zip("ACS", ("axial", "coronal", "sagittal")):
        with counter(f"Inception features, {word}", pool.size) as update:
            features = inception.features(net, volumes[:pool.size], view, args.slices, device=args.device, callback=update)
        more = {"view": word, "slices": args.slices, "weights": weights}
        yield from view_statistics(pool, features.reshape(-1, inception.DIMENSIONS).astype(np.float64), view, more, args)


def view_statistics(pool, features, view, more, args):
    """FID, FID extrapolated, and KID of one view, from the features of the pool's slices."""
    k = args.slices

    def spread(weights):  # of volumes -> of their slices
        return np.repeat(weights, k, axis=1)

    def distance(a, b):
        if len(a) < 100:
            return frechet(products, spread(a), spread(b))
        with counter(f"FID-{view}, replicates", len(a)) as update:
            return frechet(products, spread(a), spread(b), update)

    def polynomial(a, b):
        return metrics.mmd_of_kernel(kernel, spread(a), spread(b), True, np.repeat(pool.groups, k))

    real, fake = (np.flatnonzero(spread(pool.weights(name))[0]) for name in ("real", "synthetic"))
    how = (f"Inception pool features ({inception.DIMENSIONS}), weights {more['weights']['sha256'][:8]}, "
           + ("the centre slice" if k == 1 else f"the {k} middle slices") + " of each volume")
    out = []
    if "fid" in args.metrics:
        centred = features - features.mean(0)
        products = centred @ centred.T
        few = "" if min(len(real), len(fake)) >= inception.DIMENSIONS else (
            f"; fewer than {inception.DIMENSIONS} images: the covariances are singular and the value is biased upwards, the more the fewer")
        out.append(Statistic(f"fid_{view.lower()}", f"FID-{view}", f"{how}; torchmetrics{few}", "low", distance,
                             value=inception.fid(features[real], features[fake]), more=more))
        limit = frechet_infinity(products, pool.index("real"), pool.index("synthetic"), args.seed, each=k)
        if limit:
            out.append(Statistic(f"fid_infinity_{view.lower()}", f"FID∞-{view}", "FID extrapolated to N = ∞, linearly in 1/N, from "
                                 f"subsets of {limit['n'][0]} to {limit['n'][-1]} volumes; rough below a few hundred, where KID is to be "
                                 "trusted", "low", value=limit["value"], more={**more, **limit}))
    if "kid" in args.metrics:
        kernel = kid_kernel(features @ features.T, inception.DIMENSIONS)
        out.append(Statistic(f"kid_{view.lower()}", f"KID-{view}", f"{how}; polynomial kernel of degree 3, unbiased, no subject paired "
                             "with itself, all volumes at once (no random subsets)", "0", polynomial, more=more))
    return out
