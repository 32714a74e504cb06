"""Every number that evaluate.py reports: pure functions on arrays.

Volumes are (N, D, D, D), axes right, anterior, superior. uint8 volumes stand for [0, 1]; floating-point ones are taken as they are.

Sets of volumes are given twice over: as arrays, and as *weights*. A weight vector says how often each volume of a pool belongs
to a set: ones for the set itself, counts for a bootstrap replicate, 0 and 1 for a half of it. What takes weights takes many
vectors at once, (R, N), so that a thousand replicates cost one matrix product on what was computed once per pair of volumes.
"""
import numpy as np
import torch

from metrics.ms_ssim import PROTOCOLS, SMALLEST, all_pairs, mean_of_pairs, ms_ssim_pairs  # noqa: F401  found here like the others

# ----------------------------------------------------------------------------------------------------------- MMD

def gram(x, y=None, memory_gb=4, device="cpu", callback=None):
    """Inner products of the voxels of each of x with each of y, (N, M) float64, streamed in blocks.

    :param x: (N, ...) array, or a memory map; uint8 stands for [0, 1]
    :param y: (M, ...); None: x itself, each product computed once
    :param memory_gb: bound for the blocks in memory
    :param callback: called with the number of volumes of x done
    :raises ValueError: volumes of two sizes
    """
    symmetric = y is None
    y = x if symmetric else y
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"volumes of {x.shape[1:]} and {y.shape[1:]}: must be of one size")
    voxels = int(np.prod(x.shape[1:]))
    chunk = int(np.clip(memory_gb * 1e9 / (3 * voxels * 8), 1, 64))  # two blocks, and one on its way to float64
    out = np.empty((len(x), len(y)))
    for i in range(0, len(x), chunk):
        a = _rows(x[i:i + chunk], device)
        for j in range(i if symmetric else 0, len(y), chunk):
            b = a if symmetric and i == j else _rows(y[j:j + chunk], device)
            out[i:i + chunk, j:j + chunk] = (a @ b.T).cpu().numpy()
            if symmetric:
                out[j:j + chunk, i:i + chunk] = out[i:i + chunk, j:j + chunk].T
            del b
        if callback:
            callback(len(a))
    return out


def _rows(volumes, device):
    """(N, voxels) float64 of a few volumes; uint8 stands for [0, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(volumes).reshape(len(volumes), -1)).to(device)
    return x.double().div_(255) if x.dtype == torch.uint8 else x.double()


def mmd_of_kernel(kernel, a, b, unbiased, groups=None):
    """Squared maximum mean discrepancy of weighted sets from a kernel matrix (Gretton et al. 2012, eq. 3 and 5).

    :param kernel: (N, N), symmetric, of the pool
    :param a, b: (R, N) weights of the two sets
    :param unbiased: within a set, leave out the kernel of what is not independent; the value may then be negative
    :param groups: (N,) of the pool; two of one group (slices of a volume, scans of a subject) are not independent. None: each
        is only not independent of itself
    :return: (R,); NaN where a set has no two groups; differences below the rounding error of the kernel's sums are 0
    """
    na, nb = a.sum(1, keepdims=True), b.sum(1, keepdims=True)
    if unbiased:
        # Seen from the middle of the two means, k(x, y) - k(x, m) - k(m, y) + k(m, m): where volumes repeat, as in replicates, pairs
        # left out would otherwise count by their distance from an origin that means nothing.
        middle = (a / na + b / nb) / 2
        to_middle = middle @ kernel
        constant = (to_middle * middle).sum(1)
        groups = np.arange(len(kernel)) if groups is None else np.asarray(groups)
        dependent = (groups[:, None] == groups).astype(float)
        value = -2 * ((a @ kernel * b).sum(1) / (na * nb)[:, 0] - ((a / na + b / nb) * to_middle).sum(1) + constant)
        for w, n in ((a, na), (b, nb)):
            partners = n - w @ dependent
            pairs = (w * partners).sum(1)
            total = (w @ kernel * w).sum(1) - (w @ (kernel * dependent) * w).sum(1) - 2 * (w * partners * to_middle).sum(1)
            total += pairs * constant
            value += np.divide(total, pairs, out=np.full(len(w), np.nan), where=pairs > 0)
    else:
        difference = a / na - b / nb
        value = (difference @ kernel * difference).sum(1)
    return np.where(np.abs(value) < 1e-12 * kernel.diagonal().mean(), 0, value)


def mmd_of_batches(kernel, i, j, batch):
    """Biased squared MMD averaged over consecutive batches of both sets, as 3dbraingen does; a rest is left out.

    :param i, j: indices of the two sets into the kernel matrix, in their order
    :raises ValueError: the smaller set does not fill one batch
    """
    n = min(len(i), len(j)) // batch
    if not n:
        raise ValueError(f"batch {batch}: the smaller set has {min(len(i), len(j))} volumes")
    a, b = np.zeros((n, len(kernel))), np.zeros((n, len(kernel)))
    rows = np.repeat(np.arange(n), batch)
    np.add.at(a, (rows, np.asarray(i)[:n * batch]), 1)
    np.add.at(b, (rows, np.asarray(j)[:n * batch]), 1)
    return float(mmd_of_kernel(kernel, a, b, unbiased=False).mean())


def squared_distances(kernel):
    """Squared distances of a pool from its inner products, (N, N)."""
    d, out = kernel.diagonal(), -2 * kernel
    out += d
    out += d[:, None]
    return np.maximum(out, 0, out=out)


def gaussian_kernel(kernel, within=slice(None)):
    """exp(-d^2 / m) of a pool from its inner products; m is the median of d^2 over all pairs of two different volumes of
    `within`, whichever sets they belong to (the median heuristic; the bandwidth is sigma^2 = m / 2).

    :return: (N, N) kernel, median distance m^(1/2)
    """
    d2 = squared_distances(kernel)
    index = np.arange(len(d2))[within]
    median = float(np.median(np.concatenate([d2[i, index[k + 1:]] for k, i in enumerate(index)]), overwrite_input=True))
    if median == 0:
        return np.ones_like(d2), 0.0
    d2 /= -median
    return np.exp(d2, out=d2), median ** 0.5


def _two_sets(x, y, **options):
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"volumes of {x.shape[1:]} and {y.shape[1:]}: must be of one size")
    cross = gram(x, y, **options)
    kernel = np.block([[gram(x, **options), cross], [cross.T, gram(y, **options)]])
    a = np.arange(len(kernel))[None] < len(x)
    return kernel, a.astype(float), 1.0 - a


def mmd_linear(x, y, batch=None, unbiased=False, **options):
    """Squared maximum mean discrepancy with the linear kernel on voxels; biased, it is ||mean x - mean y||^2.

    :param x, y: (N, D, D, D), (M, D, D, D)
    :param batch: average over consecutive batches of this many of both sets, as 3dbraingen does (a rest is left out); None:
        the whole sets at once. The biased value depends on it
    :param options: of `gram`
    """
    kernel, a, b = _two_sets(x, y, **options)
    if batch is not None:
        return mmd_of_batches(kernel, np.arange(len(x)), len(x) + np.arange(len(y)), batch)
    return float(mmd_of_kernel(kernel, a, b, unbiased)[0])


def mmd_rbf(x, y, **options):
    """Squared MMD with a Gaussian kernel of the median distance of both sets together, unbiased: it may be negative.

    :return: value, median distance
    :raises ValueError: a set has fewer than 2 volumes
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("an unbiased MMD needs at least 2 volumes in each set")
    linear, a, b = _two_sets(x, y, **options)
    kernel, distance = gaussian_kernel(linear)
    return float(mmd_of_kernel(kernel, a, b, unbiased=True)[0]) if distance else 0.0, distance


# --------------------------------------------------------------------------------------------- distances of features

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


# ------------------------------------------------------------------------------------- smoothness and intensities

GRADIENTS = ("right", "anterior", "superior", "inside_tiles", "between_tiles")


def gradient_energy(volume):
    """Mean squared difference of neighbouring voxels along each axis, and along the axial one within and between rgb tiles.

    Layout "rgb" puts slices 3i, 3i+1, 3i+2 into one tile: steps inside a tile join colours of one pixel, steps from 3i+2 to
    3i+3 join two places of the mosaic.

    :param volume: (D, D, D); uint8 stands for [0, 1]
    :return: (5,) float64, in the order of GRADIENTS
    """
    x = volume.astype(np.float32) / (255 if volume.dtype == np.uint8 else 1)
    steps = [np.square(np.diff(x, axis=axis)).mean(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64) for axis in range(3)]
    between = np.arange(len(steps[2])) % 3 == 2
    parts = [steps[2][~between].mean(), steps[2][between].mean() if between.any() else np.nan]
    return np.array([s.mean() for s in steps] + parts)


def intensity_histogram(volume):
    """Share of the voxels at each of the 256 intensities, (256,) float64.

    :param volume: uint8
    """
    return np.bincount(volume.reshape(-1), minlength=256) / volume.size


def histogram_distance(histograms, a, b, above=0.0):
    """Wasserstein-1 distance of the mean intensity histograms of weighted sets, intensities in [0, 1].

    :param histograms: (N, 256)
    :param a, b: (R, N) weights
    :param above: compare only voxels brighter than this (both histograms are normalised anew)
    :return: (R,)
    """
    keep = np.arange(256) > above * 255 if above else np.ones(256, bool)
    p, q = (w @ histograms[:, keep] for w in (a, b))
    with np.errstate(invalid="ignore"):
        p, q = (h / h.sum(1, keepdims=True) for h in (p, q))
    return np.abs(np.cumsum(p - q, axis=1)).sum(1) / 255


# ------------------------------------------------------------------------------------------------- nearest neighbours

def correlations(x, y, **options):
    """Pearson correlation over all voxels of each of x with each of y, (N, M).

    :param options: of `gram`
    """
    voxels = np.prod(x.shape[1:])
    moments = []
    for z in (x, y):
        scale = 255.0 if z.dtype == np.uint8 else 1.0
        moments.append((np.array([v.mean(dtype=np.float64) for v in z]) / scale, np.array([v.std(dtype=np.float64) for v in z]) / scale))
    (mx, sx), (my, sy) = moments
    return np.clip((gram(x, y, **options) / voxels - np.outer(mx, my)) / np.outer(sx, sy), -1, 1)


def near_threshold(distances, share=0.05):
    """The distance below which a share of volumes alike would lie: a percentile that is unbiased however few distances there are.

    It is number share (n + 1) of the n distances in order, between two by interpolation (Weibull), and the least where there is
    none so low: so the share of a set alike is about max(share, 1 / (n + 1)).
    """
    return np.percentile(distances, 100 * share, method="weibull")


def share_closer(query, reference, a, b, share=0.05):
    """Share of one weighted set whose distance lies below the `near_threshold` of another's.

    :param query: (N,) distances of the pool; `b` weights those that are judged
    :param reference: (N,) distances of the pool; `a` weights those that set the percentile
    :param a, b: (R, N) whole weights
    :return: (R,)
    """
    out = np.empty(len(a))
    for r, (u, v) in enumerate(zip(a.astype(int), b)):
        out[r] = v @ (query < near_threshold(np.repeat(reference, u), share)) / v.sum()
    return out
