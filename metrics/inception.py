"""FID, KID and coverage: features of the FID Inception net, on slices of volumes."""
import functools
from pathlib import Path

import numpy as np
import torch

from metrics import mmd
from metrics.coverage import coverage_statistics
from metrics.feature_space import FeatureSpace
from metrics.options import NotComputed
from metrics.statistic import Statistic
from mri.geometry import VIEWS, view_slice
from utils import pickles
from utils.errors import UserError, shorten
from utils.files import sha256_of_file, weights_path
from utils.progress import counter

FEATURES = 2048  # size of the net's last pooling layer
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
MIN_VOLUMES_TO_FIT = 8  # in a set, to fit a line to FID of subsets
MIN_VOLUMES = 50  # in a set, to report FID extrapolated to N = ∞


# ---------------------------------------------------------------------------------- net, features

def find_weights(folder):
    """The file of weights in download.py's folder, or in torch-fidelity's own cache; or None."""
    places = [Path(folder), Path(torch.hub.get_dir()) / "checkpoints"]
    return next((p / WEIGHTS_FILE for p in places if (p / WEIGHTS_FILE).is_file()), None)


def load_net(weights, device="cpu"):
    """torchmetrics' Inception net for FID: pool features (2048), images resized with antialiasing.

    :param weights: file in the format of pt_inception-2015-12-05, read as weights only
    :raises ValueError: the file is unsafe, or does not hold the weights of this net
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:  # torch-fidelity would unpickle anything; a file that passes here holds only tensors
        pickles.load(weights)
    except UserError as e:
        raise ValueError(
            f"{weights}: not a file of weights alone ({shorten(e, 80)})") from None
    try:
        net = NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(weights))
        return net.to(device)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{weights}: not the weights of the FID Inception net ({shorten(e, 80)})") from None


def view_slices(volumes, view, slices=1):
    """The middle slices of a view as RGB images, anterior or superior up.

    :param volumes: (N, D, D, D) uint8, axes right, anterior, superior
    :param view: one of mri.geometry.VIEWS
    :param slices: K; slice D // 2, and its neighbors on both sides (one more below if K is even)
    :return: (N, K, 3, D, D) uint8
    :raises ValueError: the volumes have fewer slices
    """
    side = volumes.shape[1]
    first = side // 2 - slices // 2
    if first < 0 or first + slices > side:
        raise ValueError(f"{slices} slices of {side}")
    depths = [(first + k + 0.5) / side for k in range(slices)]  # the middle of each slice
    images = np.stack([[view_slice(v, view, depth) for depth in depths] for v in volumes])
    return torch.from_numpy(np.repeat(images[:, :, None], 3, axis=2))


@torch.no_grad()
def features(net, volumes, view, slices=1, batch=32, device="cpu", callback=None):
    """Pool features of the middle slices.

    :param net: of `load_net`
    :param volumes, view, slices: as `view_slices` takes them
    :param batch: images per call of the net
    :param callback: called with the number of volumes done
    :return: (N, K, 2048) float32
    """
    found = []
    step = max(1, batch // slices)
    for i in range(0, len(volumes), step):
        images = view_slices(volumes[i:i + step], view, slices)
        batches = images.flatten(0, 1).split(batch)
        parts = [net(part.to(device)).float().cpu() for part in batches]
        found.append(torch.cat(parts).unflatten(0, (len(images), slices)))
        if callback:
            callback(len(images))
    return torch.cat(found).numpy()


# --------------------------------------------------------------------------- distances of features

class _Identity(torch.nn.Module):
    """Stands in for the net in torchmetrics' FID, where the features are known already."""
    num_features = FEATURES

    def forward(self, x):
        return x


def fid(real, fake):
    """FID (Heusel et al. 2017) by torchmetrics' FrechetInceptionDistance.

    :param real: (N, 2048) features
    :param fake: (M, 2048) features
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Identity())
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return float(metric.compute())


def frechet(products, a, b, callback=None):
    """Frechet distance of two Gaussians fitted to weighted sets of feature vectors.

    FID, Heusel et al. 2017, eq. 6: |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with unbiased
    covariances. If there are fewer vectors than dimensions, it needs only their inner products:
    tr (S_a S_b)^(1/2) is the sum of the singular values of the centered A B^T, divided by
    ((n - 1)(m - 1))^(1/2).

    :param products: (N, N) inner products of the pool's feature vectors, centered in any way
    :param a, b: (R, N) weights of the two sets, whole numbers
    :param callback: called with 1 after each distance
    :return: (R,)
    """
    distances = np.empty(len(a))
    for r, (weights_a, weights_b) in enumerate(zip(a, b)):
        distances[r] = _frechet_of_two(products, weights_a, weights_b)
        if callback:
            callback(1)
    return distances


def _frechet_of_two(products, u, v):
    """`frechet` of two sets of weights, (N,) each."""
    n, m = u.sum(), v.sum()
    with_a = products @ u / n           # inner products of each vector with the mean of set a
    with_b = products @ v / m           #   and with that of set b
    aa = with_a @ u / n                 # inner products of the two means
    bb = with_b @ v / m
    ab = with_a @ v / m
    traces = ((products.diagonal() @ u - n * aa) / (n - 1)
              + (products.diagonal() @ v - m * bb) / (m - 1))
    i, j = np.flatnonzero(u), np.flatnonzero(v)
    centered = products[np.ix_(i, j)] - with_b[i, None] - with_a[None, j] + ab
    cross = centered * np.sqrt(np.outer(u[i], v[j]) / ((n - 1) * (m - 1)))
    root = float(torch.linalg.svdvals(torch.from_numpy(cross)).sum())
    return aa + bb - 2 * ab + traces - 2 * root


def frechet_infinity(products, i, j, seed, sizes=10, draws=30, each=1):
    """Frechet distance extrapolated to infinitely many volumes.

    With fewer volumes than some hundred it is biased upward, too: in 2,048 dimensions, the
    distance of subsets is not yet a line in 1/N.

    FID-infinity, Chong and Forsyth 2020: least squares of the distance against 1/N over random
    subsets without replacement, N from a quarter of the smaller set to all of it.

    :param products: (N each, N each) inner products; the vectors of a volume, one per slice, are
        next to each other
    :param i, j: indices of the volumes of the two sets
    :param sizes: number of values of N
    :param draws: subsets for each N
    :param each: vectors per volume; they are drawn together, as more slices do not lower the bias
        of few volumes
    :return: {"value": intercept, "r2": of the fit, "n": values of N, "fid": mean distance for each
        N}; None with fewer than MIN_VOLUMES_TO_FIT volumes in a set
    """
    smaller = min(len(i), len(j))
    volumes = len(products) // each
    if smaller < MIN_VOLUMES_TO_FIT:
        return None
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(smaller // 4, smaller, sizes).round().astype(int))
    means = []
    for n in counts:
        subsets = 1 if n == len(i) == len(j) else draws
        a, b = np.zeros((subsets, volumes)), np.zeros((subsets, volumes))
        for weights_a, weights_b in zip(a, b):
            weights_a[rng.choice(i, n, replace=False)] = 1
            weights_b[rng.choice(j, n, replace=False)] = 1
        distances = frechet(products, np.repeat(a, each, axis=1), np.repeat(b, each, axis=1))
        means.append(float(distances.mean()))
    slope, intercept = np.polyfit(1 / counts, means, 1)
    residual = np.array(means) - (intercept + slope / counts)
    r2 = 1 - residual.var() / np.var(means) if np.var(means) > 0 else 1.0
    return {"value": float(intercept), "r2": float(r2), "n": counts.tolist(), "fid": means}


def kid_kernel(products):
    """Polynomial kernel of KID (Binkowski et al. 2018), (<f, g> / d + 1)³ of features f and g.

    KID is its unbiased squared MMD.
    """
    return (products / FEATURES + 1) ** 3


# -------------------------------------------------------------------------------------- statistic

def check_weights(pool, options):
    """Raises NotComputed if there are no weights or those in weights/ are damaged, and UserError
    if those that --inception-weights names cannot be used."""
    _net_and_weights(options.inception_weights, options.device)


@functools.lru_cache(maxsize=1)
def _net_and_weights(file, device):
    """The net, and {"file": …, "sha256": …} of its weights.

    Kept, as it is loaded before any volume is read, and used when all are.
    """
    found = file or find_weights(weights_path(WEIGHTS_FILE).parent)
    if found is None:
        raise NotComputed("no Inception weights; `python download.py inception` fetches them, or "
                          "name them with --inception-weights FILE")
    try:
        net = load_net(found, device)
    except ValueError as e:
        if file:
            raise UserError(f"--inception-weights {e}; `python download.py inception` fetches "
                            "them") from None
        raise NotComputed(f"{e}; remove it, and `python download.py inception` fetches it "
                          "again") from None
    return net, {"file": str(found), "sha256": sha256_of_file(found)}


def inception_statistics(pool, options):
    """FID and KID on the middle slices of each view, and coverage of all three views together.

    A generator, so that the memory that one view takes is free before the next.
    """
    net, weights = _net_and_weights(options.inception_weights, options.device)
    of_volumes = []     # (N, 2048) of each view
    for view in VIEWS:
        with counter(f"Inception features, {view}", pool.size) as update:
            found = features(net, pool.compared, view, options.slices, device=options.device,
                             callback=update)
        of_volumes.append(found.mean(1, dtype=np.float64))
        found = found.reshape(-1, FEATURES).astype(np.float64)
        details = {"view": view, "slices": options.slices, "weights": weights}
        if "fid" in options.names:
            yield from fid_statistics(pool, found, details, options.seed)
        if "kid" in options.names:
            yield kid_statistic(pool, found, details)
    if "coverage-2d" in options.names:
        space = views_together(of_volumes, {"slices": options.slices, "weights": weights})
        details = {**space.details, "features": space.values.shape[1]}
        yield from coverage_statistics(space, space.products(), pool, details)


def views_together(of_volumes, details):
    """The features of the three views of each volume, side by side, as a FeatureSpace.

    :param of_volumes: list of (N, 2048), of each view
    :param details: {"slices", "weights"}
    """
    means = "" if details["slices"] == 1 else ", their mean over slices"
    return FeatureSpace(
        "inception", "Inception features",
        f"{_feature_text(details)} in each of the three views{means}, the views side by side",
        np.concatenate(of_volumes, axis=1), details)


def fid_statistics(pool, found, details, seed):
    """FID of one view, and FID extrapolated to infinitely many volumes.

    :param found: (N K, 2048) float64 features of the pool's slices
    :param details: {"view", "slices", "weights"}
    """
    letter, slices = details["view"][0], details["slices"]
    real = np.flatnonzero(_of_slices(pool.weights("real"), slices)[0])
    synthetic = np.flatnonzero(_of_slices(pool.weights("synthetic"), slices)[0])
    centered = found - found.mean(0)
    products = centered @ centered.T
    few = ""
    smaller = min(len(pool.sets["real"]), len(pool.sets["synthetic"]))
    if min(len(real), len(synthetic)) < FEATURES:
        few = (f"; fewer than {FEATURES} images: the covariances are singular and the value is "
               "biased upward, the more so the fewer")
    if smaller < MIN_VOLUMES:
        few += (f"; FID∞ is left out, as it needs {MIN_VOLUMES} volumes in each set and the "
                f"smaller one has {smaller}")
    statistics = [Statistic(
        key=f"fid_{letter}", name=f"FID-{letter.upper()}", target="low",
        definition=f"{_feature_text(details)}; torchmetrics{few}",
        compute=functools.partial(_frechet_of_slices, products, slices, f"FID-{letter.upper()}"),
        value=fid(found[real], found[synthetic]), has_interval=False, test="upper",
        details=details)]
    if smaller >= MIN_VOLUMES:
        statistics.append(_infinity_statistic(pool, products, details, seed))
    return statistics


def _infinity_statistic(pool, products, details, seed):
    """FID of one view, extrapolated to infinitely many volumes."""
    letter, slices = details["view"][0].upper(), details["slices"]
    limit = frechet_infinity(products, pool.index("real"), pool.index("synthetic"), seed,
                             each=slices)

    def of_sets(a, b):  # fewer subsets, as the floor is a mean over many splits
        found = [frechet_infinity(products, np.flatnonzero(u), np.flatnonzero(v), seed,
                                  draws=5, each=slices) for u, v in zip(a, b)]
        return np.array([each["value"] if each else np.nan for each in found])

    return Statistic(
        key=f"fid_infinity_{letter.lower()}", name=f"FID∞-{letter}", target="low",
        definition=f"FID extrapolated to N = ∞, linearly in 1/N, from subsets of {limit['n'][0]} "
                   f"to {limit['n'][-1]} volumes; biased upward below some hundred volumes, where "
                   "KID is more reliable: compare it with its floor",
        compute=of_sets, value=limit["value"], has_ceiling=False, has_interval=False, test=None,
        details={**details, **{key: limit[key] for key in ("r2", "n", "fid")}})


def kid_statistic(pool, found, details):
    """KID of one view; parameters as `fid_statistics` takes them."""
    letter, slices = details["view"][0], details["slices"]
    kernel = kid_kernel(found @ found.T)
    return Statistic(
        key=f"kid_{letter}", name=f"KID-{letter.upper()}", target="0",
        definition=f"{_feature_text(details)}; polynomial kernel of degree 3, unbiased, no subject "
                   "paired with itself, all volumes at once (no random subsets)",
        compute=functools.partial(_mmd_of_slices, kernel, slices,
                                  np.repeat(pool.groups, slices)),
        has_interval=False, test="upper", details=details)


def _of_slices(weights, slices):
    """Weights of volumes, (R, N) -> weights of their slices, (R, N K)."""
    return np.repeat(weights, slices, axis=1)


def _frechet_of_slices(products, slices, name, a, b):
    a, b = _of_slices(a, slices), _of_slices(b, slices)
    if len(a) < 100:
        return frechet(products, a, b)
    with counter(f"{name}, permutations", len(a)) as update:
        return frechet(products, a, b, update)


def _mmd_of_slices(kernel, slices, groups, a, b):
    a, b = _of_slices(a, slices), _of_slices(b, slices)
    return mmd.mmd_of_kernel(kernel, a, b, unbiased=True, groups=groups)


def _feature_text(details):
    slices = details["slices"]
    which = "the center slice" if slices == 1 else f"the {slices} middle slices"
    return (f"Inception pool features ({FEATURES}), weights {details['weights']['sha256'][:8]}, "
            f"{which} of each volume")
