"""Multi-scale structural similarity of volumes, fast enough for all pairs of hundreds.

Wang et al. 2003, "Multiscale structural similarity for image quality assessment", in 3D.
"""
import sys
import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from metrics.gaussian_filter import GaussianFilter
from metrics.options import NotComputed
from metrics.statistic import Statistic
from metrics.subject_pairs import pairs_within_sets
from metrics.threads import threads_of_one_core

LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five levels, fine to coarse
SIGMA = 1.5                                 # of the Gaussian window, voxels
RADIUS = 6                                  # of the Gaussian window, voxels
K1 = 0.01                                   # C1 = (K1 L)², Wang et al. 2004
K2 = 0.03                                   # C2 = (K2 L)²
PAIRS_AT_ONCE = 1024                        # that wait for a thread; each waiting one takes 2 kB
FIRST_ESTIMATE_SECONDS = 2                  # after the first pair
MIN_SIDE = 2 ** (len(LEVEL_WEIGHTS) - 1)    # voxels; then the coarsest level is a single voxel


@dataclass(frozen=True)
class Protocol:
    """One of the ways in which MS-SSIM of volumes is published."""
    data_range: float       # L of the constants, for volumes in [-1, 1]
    last_exponent: float    # of SSIM at the coarsest level
    formula: str


PROTOCOLS = {
    "kwon2019": Protocol(1.0, LEVEL_WEIGHTS[-1] * 4, "3dbraingen, HA-GAN, cDPM: L = 1, product "
                         "over i < 5 of cs_i^w_i * ssim_5^w_5"),
    "wang2003": Protocol(2.0, LEVEL_WEIGHTS[-1] * 1, "L = 2, product over i < 5 of cs_i^w_i, "
                         "times ssim_5^w_5"),
}


# --------------------------------------------------------------------------- similarity of pairs

def ms_ssim_pairs(volumes, protocol="kwon2019", pairs=None, data_range=None, memory_gb=4,
                  device="cpu", callback=None):
    """Multi-scale structural similarity of pairs of volumes.

    Gaussian window of sigma 1.5 and radius 6 with reflected borders; five levels of 2 x 2 x 2 mean
    pooling. The protocol "kwon2019" is what 3dbraingen and the tables that build on it compute:
    its last level counts four times. A mean contrast-structure term below 0, of which there is no
    such power, counts as 0.

    What depends on one volume is computed once per volume, in blocks that fit the memory; a pair
    costs no more than its cross term.

    :param volumes: (N, D, D, D), D >= 16; uint8 is mapped to [-1, 1], for which the protocols are;
        floating point must be in [-1, 1], or be given with its `data_range`
    :param protocol: one of PROTOCOLS
    :param pairs: (P, 2) indices; None: all i < j, in the order of itertools.combinations
    :param data_range: L of the constants, for volumes that are taken as they are; None: the
        protocol's, for volumes in [-1, 1]
    :param memory_gb: bound for the statistics of single volumes that are kept, GB
    :param callback: called with the number of pairs done
    :return: (P,) float64
    :raises ValueError: not cubes of one size, too small for five levels, an index out of range, or
        floating point without `data_range` that is not in [-1, 1]
    """
    pairs = _check_pairs(volumes, pairs)
    if data_range is None:
        _check_range(volumes)
    settings = PROTOCOLS[protocol]
    length = settings.data_range if data_range is None else data_range
    dtype = torch.float64 if volumes.dtype == np.float64 else torch.float32
    block = _volumes_per_block(volumes.shape[1], dtype, memory_gb)
    out = np.empty(len(pairs))
    block_of = pairs // block
    with threads_of_one_core(device) as executor:
        comparison = _Comparison(volumes, length, settings.last_exponent, device, dtype, executor)
        for row in np.unique(block_of[:, 0]):
            in_row = np.flatnonzero(block_of[:, 0] == row)
            comparison.compare_row(in_row, pairs[in_row], block_of[in_row, 1], out, callback)
    return out


def all_pairs(n):
    """All i < j below n in the order of itertools.combinations, (n (n - 1) / 2, 2)."""
    return np.stack(np.triu_indices(n, 1), axis=1)


def mean_of_pairs(values, pairs, weights):
    """Mean of a symmetric function of two volumes over the pairs of each weighted set.

    A volume is never paired with itself.

    :param values: (P,), of `pairs`
    :param pairs: (P, 2) indices, each pair once
    :param weights: (R, N)
    :return: (R,); NaN for a set that holds no pair
    """
    total, mass = np.zeros(len(weights)), np.zeros(len(weights))
    used = np.flatnonzero((weights > 0).any(0)[pairs].all(1))
    chunk = max(1, 10 ** 7 // len(weights))  # bounds the memory of the products of weights
    for i in range(0, len(used), chunk):
        part = used[i:i + chunk]
        w = weights[:, pairs[part, 0]]
        w *= weights[:, pairs[part, 1]]
        total += w @ values[part]
        mass += w.sum(1)
    return np.divide(total, mass, out=np.full(len(weights), np.nan), where=mass > 0)


def _check_pairs(volumes, pairs):
    """The pairs as a (P, 2) array; ValueError if the volumes do not fit."""
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise ValueError(f"volumes of shape {volumes.shape}: must be (N, D, D, D)")
    side = volumes.shape[1]
    if side < MIN_SIDE:
        raise ValueError(f"volumes of {side} voxels a side: five levels need at least {MIN_SIDE}")
    pairs = all_pairs(len(volumes)) if pairs is None else np.asarray(pairs)
    pairs = pairs.reshape(-1, 2)
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(volumes):
        raise ValueError("pairs: index out of range")
    return pairs


def _check_range(volumes):
    """ValueError for floating-point volumes that are not in [-1, 1], but for example in [0, 1]."""
    if volumes.dtype == np.uint8 or volumes.size == 0:
        return
    lowest, highest = float(volumes.min()), float(volumes.max())
    rounding = 1e-5
    if not (-1 - rounding <= lowest < 0 and highest <= 1 + rounding):
        raise ValueError(
            f"floating-point volumes in [{lowest:.4g}, {highest:.4g}]: the protocols are for "
            "[-1, 1]; map them to that (2 x - 1 if they are in [0, 1]), or give data_range, the L "
            "of the constants, to take them as they are")


def _volumes_per_block(side, dtype, memory_gb):
    """How many pyramids a block may hold: two blocks are in memory at once, and what the
    allocator keeps."""
    # three cubes per level; each level has an eighth of the voxels of the one before
    bytes_per_volume = 3 * side ** 3 * dtype.itemsize * 8 / 7
    return max(1, int(memory_gb * 1e9 / (2.5 * bytes_per_volume)))


class _Comparison:
    """Compares pairs of volumes block by block; never holds more than two blocks of pyramids."""

    def __init__(self, volumes, length, last_exponent, device, dtype, executor):
        self.volumes, self.device, self.dtype = volumes, device, dtype
        self.length, self.last_exponent = length, last_exponent
        self.executor = executor
        self.buffers = threading.local()

    def compare_row(self, indices, pairs, blocks, out, callback):
        """MS-SSIM of pairs whose first volumes are in one block, written to out[indices].

        :param indices: (P,) of the pairs in `out`
        :param pairs: (P, 2)
        :param blocks: (P,) block of the second volume of each pair
        """
        first = self._pyramids(np.unique(pairs[:, 0]))
        for block in np.unique(blocks):
            chosen = blocks == block
            self._compare_block(indices[chosen], pairs[chosen], first, out, callback)

    def _compare_block(self, indices, pairs, first, out, callback):
        # the second block is this function's own, so that it is freed before the next is computed
        needed = np.unique(pairs[:, 1])
        second = {j: first[j] for j in needed if j in first}
        second.update(self._pyramids([j for j in needed if j not in second]))
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            piece = slice(start, start + PAIRS_AT_ONCE)
            values = self.executor.map(
                self._ms_ssim, *zip(*((first[i], second[j]) for i, j in pairs[piece])))
            for index, value in zip(indices[piece], values):
                out[index] = value
                if callback:
                    callback(1)

    def _pyramids(self, indices):
        """{index: pyramid} of these volumes."""
        return dict(zip(indices, self.executor.map(self._pyramid, indices)))

    def _pyramid(self, index):
        return _pyramid(_as_tensor(self.volumes[index], self.device, self.dtype),
                        self._levels(), self.length)

    def _ms_ssim(self, first, second):
        return _ms_ssim(first, second, self._levels(), self.length, self.last_exponent)

    def _levels(self):
        """The filter of each level, this thread's own: a filter has buffers that it works in."""
        if not hasattr(self.buffers, "levels"):
            side = self.volumes.shape[1]
            self.buffers.levels = [
                GaussianFilter(side >> k, SIGMA, RADIUS, self.device, self.dtype)
                for k in range(len(LEVEL_WEIGHTS))]
        return self.buffers.levels


# -------------------------------------------------------------------------------------- one pair

def _as_tensor(volume, device, dtype):
    """A volume as a tensor; uint8 is mapped to [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(volume)).to(device)
    if x.dtype == torch.uint8:
        return x.to(dtype) / 127.5 - 1
    return x.to(dtype)


def _half_c2(x, length):
    return torch.full((), (K2 * length) ** 2 / 2, dtype=x.dtype, device=x.device)


def _pyramid(x, levels, length):
    """What one volume contributes.

    :return: for each level the volume, its local mean, and its local variance plus half of C2,
        (n, n, n) each
    """
    pyramid = []
    half_c2 = _half_c2(x, length)
    for level in levels:
        mean = level(x, out=torch.empty_like(x))
        # the filter leaves a constant as it is, so C2 can be added to the square before
        variance = level(x, x, half_c2, torch.empty_like(x))
        pyramid.append((x, mean, variance.addcmul_(mean, mean, value=-1)))
        if level.n > 1:
            x = F.avg_pool3d(x[None, None], 2)[0, 0]
    return pyramid


def _ms_ssim(first, second, levels, length, last_exponent):
    """MS-SSIM of two volumes from their pyramids."""
    half_c2 = _half_c2(first[0][0], length)
    contrasts = []
    for (x, mean_x, variance_x), (y, mean_y, variance_y), level in zip(first, second, levels):
        # half of 2 cov + C2, of which each slab is then divided by half of var_x + var_y + C2
        structure = level(x, y, half_c2)
        total = 0
        for planes in level.slab_slices():
            slab = structure[planes]
            slab.addcmul_(mean_x[planes], mean_y[planes], value=-1)
            variances = level.slabs[0][:len(slab)]
            torch.add(variance_x[planes], variance_y[planes], out=variances)
            slab.div_(variances)
            total = total + slab.sum()
        contrasts.append(2 * total / level.n ** 3)
    # mean_x, mean_y and structure are now those of the coarsest level
    c1 = (K1 * length) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    ssim = max(float((luminance * structure).mean() * 2), 0.0)
    contrasts = torch.stack(contrasts[:-1]).double().clamp(min=0).cpu().numpy()
    return np.prod(contrasts ** LEVEL_WEIGHTS[:-1]) * ssim ** last_exponent


# -------------------------------------------------------------------------------------- statistic

def check_size(pool, options):
    """Raises NotComputed for volumes that are too small."""
    if pool.side < MIN_SIDE:
        raise NotComputed(f"volumes of {pool.side} voxels a side are too small for five levels; "
                          f"at least {MIN_SIDE}")


def similarity_statistics(pool, options):
    """Mean MS-SSIM of the pairs within each set: how diverse the set is."""
    pairs, available = pairs_within_sets(pool, options.pairs, options.seed)
    every_pair = np.concatenate(list(pairs.values()))
    values = _values_of_pairs(pool, pairs, available, options)

    def within(weights):
        return mean_of_pairs(values, every_pair, weights)

    def similarity(real, other):
        return within(other)

    def difference(real, other):
        return within(other) - within(real)

    protocol = PROTOCOLS[options.protocol]
    is_sampled = any(len(pairs[name]) < available[name] for name in pairs)
    which = (f"at most {options.pairs:,} random pairs (seed {options.seed}; `--pairs all` takes "
             "all of them)" if is_sampled else "all pairs")
    which += " of two subjects of a set"
    definition = (f"`{options.protocol}` ({protocol.formula}), volumes in [-1, 1], mean over "
                  f"{which}")
    details = {
        "protocol": options.protocol, "range": [-1, 1], "L": protocol.data_range,
        "pairs": {name: len(p) for name, p in pairs.items()}, "available_pairs": available,
        "std_of_pairs": _std_of_pairs(values, pairs)}
    return [
        Statistic(
            key="ms_ssim", name="MS-SSIM within the set", target="real",
            definition=f"{definition}; good if close to that of the real set",
            compute=similarity, test=None, details=details),
        Statistic(
            key="ms_ssim_difference", name="MS-SSIM, difference from real", target="0",
            definition=f"{definition}; above 0: less diverse than real volumes; below 0: more "
                       "diverse, or noisier",
            compute=difference, test="t", details=details),
    ]


def _values_of_pairs(pool, pairs, available, options):
    """MS-SSIM of the pairs of each set, one set after another, (P,).

    :param pairs, available: of `pairs_within_sets`
    """
    def of_set(own, callback):
        return ms_ssim_pairs(pool.volumes, options.protocol, own, memory_gb=options.memory_gb / 2,
                             device=options.device, callback=callback)

    what = ("MS-SSIM", options.protocol, options.pairs, options.seed, options.device)
    _report_pairs({name: own for name, own in pairs.items() if not pool.knows(what, (name,))},
                  available)
    found = pool.each_once(what, "MS-SSIM pairs", {
        (name,): (len(own), partial(of_set, own)) for name, own in pairs.items()},
        first=FIRST_ESTIMATE_SECONDS)
    return np.concatenate(list(found.values()))


def _report_pairs(pairs, available):
    """Says how many pairs are computed, and of which set a random selection."""
    count = sum(map(len, pairs.values()))
    sampled = [f"{len(pairs[name]):,} of {available[name]:,} in {name}" for name in pairs
               if len(pairs[name]) < available[name]]
    how = (f" (random ones: {', '.join(sampled)}; --pairs all takes all)" if sampled
           else "; --pairs takes fewer")
    print(f"MS-SSIM: {count} pairs of volumes{how}", file=sys.stderr, flush=True)


def _std_of_pairs(values, pairs):
    """{set: standard deviation over its pairs}; None for fewer than two pairs."""
    ends = np.cumsum([len(p) for p in pairs.values()])
    parts = np.split(values, ends[:-1])
    return {name: float(part.std(ddof=1)) if len(part) > 1 else None
            for name, part in zip(pairs, parts)}
