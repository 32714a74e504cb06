"""Maximum mean discrepancy (MMD) of sets of volumes (Gretton et al. 2012).

Volumes are (N, D, D, D); uint8 volumes stand for [0, 1], floating point is taken as it is.

Sets are given either as arrays or as *weights*: how often each volume of a pool belongs to a set.
Ones stand for the set itself, counts for a bootstrap replicate, 0 and 1 for a half of the set.
Functions of weights take many vectors at once, (R, N), so that a thousand replicates cost one
matrix product on what was computed once per pair of volumes.
"""
from functools import partial

import numpy as np
import torch
from scipy import sparse

from metrics.statistic import Statistic

ROWS_PER_PRODUCT = 256      # volumes of a matrix product, of which half would be computed twice
MAX_VOXELS_PER_BLOCK = 2 ** 16


# -------------------------------------------------------------------------------- inner products

def gram(x, y=None, memory_gb=4, device="cpu", callback=None):
    """Inner products of the voxels of each of x with each of y, computed in blocks of voxels.

    A block holds the same voxels of all volumes, so that each volume is read and converted once.
    Of uint8 volumes all sums are of whole numbers below 2^53, and so they are exact.

    :param x: (N, ...) array, or a memory map; uint8 stands for [0, 1]
    :param y: (M, ...); None: x itself, each product computed once
    :param memory_gb: bound for the blocks in memory, GB
    :param callback: called with the number of voxels done
    :return: (N, M) float64
    :raises ValueError: volumes of two sizes
    """
    symmetric = y is None
    y = x if symmetric else y
    _require_one_size(x, y)
    voxels = int(np.prod(x.shape[1:]))
    rows = len(x) if symmetric else len(x) + len(y)
    # float64, and what it is converted from
    block = int(np.clip(memory_gb * 1e9 / (rows * (8 + x.itemsize)), 1, MAX_VOXELS_PER_BLOCK))
    out = torch.zeros((len(x), len(y)), dtype=torch.float64, device=device)
    for start in range(0, voxels, block):
        a = _voxels(x, start, start + block, device)
        b = a if symmetric else _voxels(y, start, start + block, device)
        for i in range(0, len(x), ROWS_PER_PRODUCT):
            first = i if symmetric else 0
            out[i:i + ROWS_PER_PRODUCT, first:] += a[i:i + ROWS_PER_PRODUCT] @ b[first:].T
        if callback:
            callback(a.shape[1])
        del a, b  # before the next block is read
    if symmetric:
        _mirror_lower(out)
    return out.div_(_scale(x) * _scale(y)).cpu().numpy()


def _mirror_lower(matrix):
    """Copies what is above the diagonal of a square matrix to below it, in place."""
    for i in range(0, len(matrix), ROWS_PER_PRODUCT):
        stop = i + ROWS_PER_PRODUCT
        matrix[stop:, i:stop] = matrix[i:stop, stop:].T
        corner = matrix[i:stop, i:stop]
        corner.copy_(corner.triu() + corner.triu(1).T)


def _voxels(volumes, start, stop, device):
    """A block of voxels of all volumes, (N, stop - start) float64, not yet scaled."""
    flat = volumes.reshape(len(volumes), -1)
    return torch.from_numpy(np.ascontiguousarray(flat[:, start:stop])).to(device).double()


def _scale(volumes):
    """What a voxel of 1 is stored as."""
    return 255.0 if volumes.dtype == np.uint8 else 1.0


def _require_one_size(x, y):
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"volumes of {x.shape[1:]} and {y.shape[1:]}: must be of one size")


def squared_distances(products):
    """Squared distances between the volumes of a pool from their inner products, (N, N)."""
    squares = products.diagonal()
    out = -2 * products
    out += squares
    out += squares[:, None]
    return np.maximum(out, 0, out=out)


def gaussian_kernel(products, within=slice(None)):
    """Gaussian kernel exp(-d² / m) of the median bandwidth, from inner products.

    m is the median of d² over all pairs of two different volumes of `within`, whichever sets they
    belong to (the median heuristic; the bandwidth is sigma² = m / 2).

    :param products: (N, N) inner products
    :param within: indices of volumes, or a slice
    :return: (N, N) kernel, median distance m^(1/2)
    """
    squares = squared_distances(products)
    median = _median_of_pairs(squares, np.arange(len(squares))[within])
    if median == 0:
        return np.ones_like(squares), 0.0
    squares /= -median
    return np.exp(squares, out=squares), median ** 0.5


def _median_of_pairs(squares, index):
    """Median of a symmetric matrix over all pairs of two different indices."""
    of_pairs = np.empty(len(index) * (len(index) - 1) // 2)    # not as a list: it may be a GB
    start = 0
    for k, i in enumerate(index):
        others = index[k + 1:]
        of_pairs[start:start + len(others)] = squares[i, others]
        start += len(others)
    return float(np.median(of_pairs, overwrite_input=True))


# -------------------------------------------------------------------------- MMD of weighted sets

def mmd_of_kernel(kernel, a, b, unbiased, groups=None):
    """Squared MMD of weighted sets from a kernel matrix (Gretton et al. 2012, eq. 3 and 5).

    :param kernel: (N, N), symmetric, of the pool
    :param a, b: (R, N) weights of the two sets
    :param unbiased: within a set, leave out the kernel of volumes that are not independent (a
        U-statistic, whose expectation does not depend on the number of volumes); the value can
        then be negative
    :param groups: (N,) group of each volume, such as its subject: two of one group are not
        independent; None: each volume is its own group
    :return: (R,); NaN where a set has no two groups; 0 where the value is below the rounding error
        of the kernel's sums
    """
    if unbiased:
        groups = np.arange(len(kernel)) if groups is None else groups
        value = _unbiased_mmd(kernel, a, b, groups)
    else:
        difference = a / a.sum(1, keepdims=True) - b / b.sum(1, keepdims=True)
        value = (difference @ kernel * difference).sum(1)
    return np.where(np.abs(value) < 1e-12 * kernel.diagonal().mean(), 0, value)


def _unbiased_mmd(kernel, a, b, groups):
    """Of sets, the plain U-statistic over pairs of two groups, in which each group counts once:
    unbiased however many volumes a group has, and independent of the origin.

    Of replicates, in which volumes repeat, the kernel is taken relative to the middle of the two
    means, point m: k(x, y) - k(x, m) - k(m, y) + k(m, m). Otherwise the pairs left out would count
    by their distance from an origin that has no meaning. For sets this would add a bias where the
    groups have unequal sizes, as m depends on the volumes.
    """
    dependent = _of_one_group(groups)                                      # (N, N)
    dependent_kernel = dependent.multiply(kernel)
    repeats = (np.maximum(a, b) > 1).any(1)                                # (R,)
    a, b = (_each_group_once(weights, dependent, repeats) for weights in (a, b))
    size_a, size_b = a.sum(1, keepdims=True), b.sum(1, keepdims=True)
    middle = (a / size_a + b / size_b) / 2
    middle[~repeats] = 0
    to_middle = middle @ kernel                                            # k(x, m), (R, N)
    constant = (to_middle * middle).sum(1)                                 # k(m, m), (R,)
    between = (a @ kernel * b).sum(1) / (size_a * size_b)[:, 0]
    value = -2 * (between - ((a / size_a + b / size_b) * to_middle).sum(1) + constant)
    for weights, size in ((a, size_a), (b, size_b)):
        partners = size - weights @ dependent                              # of each volume, (R, N)
        pairs = (weights * partners).sum(1)
        total = (weights @ kernel * weights).sum(1)
        total = total - (weights @ dependent_kernel * weights).sum(1)
        total = total - 2 * (weights * partners * to_middle).sum(1)
        total += pairs * constant
        value += np.divide(total, pairs, out=np.full(len(weights), np.nan), where=pairs > 1e-9)
    return value


def _of_one_group(groups):
    """1 where two volumes are of one group, (N, N) sparse: few are, and N² numbers are many.

    :param groups: (N,) group of each volume
    """
    _, number = np.unique(groups, return_inverse=True)
    member = sparse.csr_array((np.ones(len(number)), (np.arange(len(number)), number)))
    return member @ member.T


def _each_group_once(weights, dependent, repeats):
    """Weights whose sum over each group is 1, but those of replicates as they are."""
    of_group = weights @ dependent
    once = np.divide(weights, of_group, out=np.zeros_like(weights), where=of_group > 0)
    return np.where(repeats[:, None], weights, once)


def mmd_of_batches(kernel, i, j, batch):
    """Biased squared MMD averaged over consecutive batches of both sets, as 3dbraingen does.

    Volumes that do not fill a batch are left out.

    :param i, j: indices of the two sets into the kernel matrix, in their order
    :raises ValueError: the smaller set does not fill one batch
    """
    smaller = min(len(i), len(j))
    batches = smaller // batch
    if not batches:
        raise ValueError(f"batch {batch}: the smaller set has {smaller} volumes")
    a, b = np.zeros((batches, len(kernel))), np.zeros((batches, len(kernel)))
    rows = np.repeat(np.arange(batches), batch)
    np.add.at(a, (rows, np.asarray(i)[:batches * batch]), 1)
    np.add.at(b, (rows, np.asarray(j)[:batches * batch]), 1)
    return float(mmd_of_kernel(kernel, a, b, unbiased=False).mean())


def _mmd_of_batches_of_weights(kernel, batch, seed, a, b):
    """`mmd_of_batches` of weighted sets, (R,); NaN for a set that does not fill a batch.

    Each is put into a random order, as otherwise a volume and its repetitions share a batch.
    """
    rng = np.random.default_rng(seed)
    out = np.full(len(a), np.nan)
    for r, (weights_a, weights_b) in enumerate(zip(a, b)):
        i = rng.permutation(np.repeat(np.arange(len(kernel)), weights_a.astype(int)))
        j = rng.permutation(np.repeat(np.arange(len(kernel)), weights_b.astype(int)))
        if min(len(i), len(j)) >= batch:
            out[r] = mmd_of_batches(kernel, i, j, batch)
    return out


# --------------------------------------------------------------------------------- MMD of arrays

def mmd_linear(x, y, batch=None, unbiased=False, **options):
    """Squared MMD with the linear kernel on voxels; biased, it is ||mean x - mean y||².

    :param x: (N, D, D, D)
    :param y: (M, D, D, D)
    :param batch: average over consecutive batches of this many volumes of both sets, as 3dbraingen
        does; None: whole sets at once. The biased value depends on it
    :param options: of `gram`
    """
    products, a, b = _products_of_two(x, y, **options)
    if batch is not None:
        i, j = np.arange(len(x)), len(x) + np.arange(len(y))
        return mmd_of_batches(products, i, j, batch)
    return float(mmd_of_kernel(products, a, b, unbiased)[0])


def mmd_rbf(x, y, **options):
    """Unbiased squared MMD with a Gaussian kernel of the median distance of both sets together.

    :param x: (N, D, D, D)
    :param y: (M, D, D, D)
    :param options: of `gram`
    :return: value, which can be negative; median distance
    :raises ValueError: a set has fewer than 2 volumes
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("an unbiased MMD needs at least 2 volumes in each set")
    products, a, b = _products_of_two(x, y, **options)
    kernel, distance = gaussian_kernel(products)
    if distance == 0:
        return 0.0, distance
    return float(mmd_of_kernel(kernel, a, b, unbiased=True)[0]), distance


def _products_of_two(x, y, **options):
    """Inner products of both sets together, and the weights of each set."""
    _require_one_size(x, y)
    cross = gram(x, y, **options)
    products = np.block([[gram(x, **options), cross], [cross.T, gram(y, **options)]])
    a = np.arange(len(products))[None] < len(x)
    return products, a.astype(float), 1.0 - a


# ------------------------------------------------------------------------------------- statistic

def mmd_statistics(pool, options):
    """MMD on voxels: linear, linear unbiased, and Gaussian."""
    products = _products_of_pool(pool, options)
    low, high = options.mmd_range
    products *= (high - low) ** 2  # differences of voxels in [0, 1] grow by high - low
    voxels = f"voxels in [{low:g}, {high:g}]"
    details = {"range": [low, high]}
    real_and_synthetic = np.concatenate([pool.index("real"), pool.index("synthetic")])
    gaussian, distance = gaussian_kernel(products, real_and_synthetic)
    return [
        _linear_statistic(pool, products, voxels, options),
        Statistic(
            key="mmd_linear_unbiased", name="MMD, linear, unbiased",
            definition=f"linear kernel, {voxels}, no subject paired with itself; its expectation "
                       "does not depend on N, and it can be negative",
            target="0", compute=partial(mmd_of_kernel, products, unbiased=True, groups=pool.groups),
            has_interval=False, test="upper", details={**details, "kernel": "linear, unbiased"}),
        Statistic(
            key="mmd_rbf", name="MMD, Gaussian, unbiased",
            definition=f"kernel exp(−d²/m), {voxels}, unbiased; m = ({distance:.4g})² is the "
                       "median of d² over all pairs of two volumes, real and synthetic together",
            target="0", compute=partial(mmd_of_kernel, gaussian, unbiased=True, groups=pool.groups),
            has_interval=False, test="upper",
            details={**details, "kernel": "Gaussian, unbiased", "median_distance": distance}),
        Statistic(
            key="mean_pair_distance", name="mean squared distance of pairs",
            definition=f"mean of ‖x − y‖² over all pairs of a real and a synthetic volume, {voxels}"
                       "; of the real set: over its pairs of two subjects. Another reading of what "
                       "papers call MMD among all pairs; large for diverse sets, so not a distance "
                       "of the sets",
            target="real", has_ceiling=False, test=None, details=details,
            compute=partial(mean_pair_distance, products, pool.groups)),
    ]


def _products_of_pool(pool, options):
    """Inner products of the compared volumes, (N, N), computed for each two sets."""
    def block(first, second, callback):
        others = None if first == second else pool.part(second)
        return gram(pool.part(first), others, memory_gb=options.memory_gb / 2,
                    device=options.device, callback=callback)

    names = list(pool.sets)
    blocks = [(first, second) for k, first in enumerate(names) for second in names[k:]]
    found = pool.each_once(
        ("inner products", options.device), f"inner products of {pool.size:,} volumes: voxels",
        {pair: (pool.side ** 3, partial(block, *pair)) for pair in blocks})
    products = np.empty((pool.size, pool.size))
    for (first, second), values in found.items():
        products[np.ix_(pool.index(first), pool.index(second))] = values
        products[np.ix_(pool.index(second), pool.index(first))] = values.T
    return products


def mean_pair_distance(products, groups, a, b):
    """Mean squared distance of the pairs of one volume of each weighted set.

    Pairs of two volumes of one group are left out.

    :param products: (N, N) inner products of the pool
    :param groups: (N,) group of each volume, such as its subject
    :param a, b: (R, N) weights of the two sets
    :return: (R,); NaN where there is no pair
    """
    dependent = _of_one_group(groups)
    squares = products.diagonal()                                          # ‖x‖², (N,)
    size_a, size_b = a.sum(1), b.sum(1)
    pairs = size_a * size_b - (a @ dependent * b).sum(1)
    # ‖x − y‖² = ‖x‖² + ‖y‖² − 2 x·y, summed over all pairs and over those that are left out
    total = (a @ squares) * size_b + size_a * (b @ squares) - 2 * (a @ products * b).sum(1)
    i, j = dependent.nonzero()
    distances = squares[i] + squares[j] - 2 * products[i, j]
    total -= (a @ sparse.csr_array((distances, (i, j)), dependent.shape) * b).sum(1)
    value = np.divide(total, pairs, out=np.full(len(a), np.nan), where=pairs > 0)
    return np.where(value < 1e-12 * squares.mean(), 0, value)   # below the sums' rounding error


def _linear_statistic(pool, products, voxels, options):
    """The biased linear MMD, of whole sets or averaged over batches."""
    formula = f"linear kernel, {voxels}, biased: ‖mean x − mean y‖²"
    details = {"range": list(options.mmd_range), "kernel": "linear, biased",
               "batch": options.mmd_batch or "whole sets"}
    if not options.mmd_batch:
        return Statistic(
            key="mmd_linear", name="MMD, linear",
            definition=f"{formula}, whole sets at once; the value depends on N",
            target="low", compute=partial(mmd_of_kernel, products, unbiased=False),
            has_interval=False, test="upper", details=details)
    batch = options.mmd_batch
    return Statistic(
        key="mmd_linear", name=f"MMD, linear, batches of {batch}",
        definition=f"{formula}, averaged over consecutive batches of {batch}, as 3dbraingen does; "
                   "the value depends on the batch",
        target="low", compute=partial(_mmd_of_batches_of_weights, products, batch, options.seed),
        value=mmd_of_batches(products, pool.index("real"), pool.index("synthetic"), batch),
        has_interval=False, test="upper", details=details)
