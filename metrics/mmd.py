"""Every number that evaluate.py reports: pure functions on arrays.

Volumes are (N, D, D, D), axes right, anterior, superior. uint8 volumes stand for [0, 1]; floating-point ones are taken as they are.

Sets of volumes are given twice over: as arrays, and as *weights*. A weight vector says how often each volume of a pool belongs
to a set: ones for the set itself, counts for a bootstrap replicate, 0 and 1 for a half of it. What takes weights takes many
vectors at once, (R, N), so that a thousand replicates cost one matrix product on what was computed once per pair of volumes.
"""
import numpy as np
import torch

from metrics.statistic import Statistic

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







# ------------------------------------------------------------------------------------- smoothness and intensities









# ------------------------------------------------------------------------------------------------- nearest neighbours


# IMPORTS
from metrics import mmd as metrics


def mmd_statistics(pool, products, args):
    """MMD on voxels, from the inner products of the pool's volumes."""
    real, other = pool.index("real"), pool.index("synthetic")
    gaussian, distance = metrics.gaussian_kernel(products, np.concatenate([real, other]))
    biased = "linear kernel, voxels in [0, 1], biased: ‖mean x − mean y‖²"

    def whole(a, b):
        return metrics.mmd_of_kernel(products, a, b, unbiased=False)

    def batches(a, b):  # replicates in a random order, as equal volumes side by side would share a batch
        rng = np.random.default_rng(args.seed)
        out = np.full(len(a), np.nan)
        for r, pair in enumerate(zip(a, b)):
            i, j = (rng.permutation(np.repeat(np.arange(pool.size), w.astype(int))) for w in pair)
            if min(len(i), len(j)) >= args.mmd_batch:
                out[r] = metrics.mmd_of_batches(products, i, j, args.mmd_batch)
        return out

    if args.mmd_batch:
        linear = Statistic("mmd_linear", f"MMD, linear, batches of {args.mmd_batch}", f"{biased}, averaged over consecutive batches of "
                           f"{args.mmd_batch}, as 3dbraingen does; the value depends on the batch", "low", batches,
                           value=metrics.mmd_of_batches(products, real, other, args.mmd_batch))
    else:
        linear = Statistic("mmd_linear", "MMD, linear", f"{biased}, whole sets at once; the value depends on N", "low", whole)
    linear.more = {"range": [0, 1], "kernel": "linear, biased", "batch": args.mmd_batch or "whole sets"}
    return [linear,
            Statistic("mmd_linear_unbiased", "MMD, linear, unbiased", "linear kernel, voxels in [0, 1], no subject paired with itself; its "
                      "expectation does not depend on N, and it may be negative", "0",
                      lambda a, b: metrics.mmd_of_kernel(products, a, b, True, pool.groups),
                      more={"range": [0, 1], "kernel": "linear, unbiased"}),
            Statistic("mmd_rbf", "MMD, Gaussian, unbiased", f"kernel exp(−d²/m), voxels in [0, 1], unbiased; m = ({distance:.4g})² is the "
                      "median of d² over all pairs of two volumes, real and synthetic together", "0",
                      lambda a, b: metrics.mmd_of_kernel(gaussian, a, b, True, pool.groups),
                      more={"range": [0, 1], "kernel": "Gaussian, unbiased", "median_distance": distance})]
