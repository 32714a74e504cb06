"""Multi-scale structural similarity of volumes (Wang et al. 2003, in 3D), fast enough for all pairs of hundreds."""
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from metrics.statistic import Statistic
from utils.progress import counter

LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, of the five levels, fine to coarse
SIGMA, RADIUS = 1.5, 6                               # Gaussian window, voxels
K1, K2 = 0.01, 0.03                                  # constants C = (K L)^2 of SSIM, Wang et al. 2004
MIN_SIDE = 2 ** (len(LEVEL_WEIGHTS) - 1)                   # side whose coarsest level is one voxel
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

    What depends on one volume is computed once a volume, in blocks that fit the memory; a pair costs its cross term.

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
    if side < MIN_SIDE:
        raise ValueError(f"volumes of {side} voxels a side: five levels need at least {MIN_SIDE}")
    length = PROTOCOLS[protocol][0] if data_range is None else data_range
    pairs = (all_pairs(len(volumes)) if pairs is None else np.asarray(pairs)).reshape(-1, 2)
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(volumes):
        raise ValueError("pairs: index out of range")
    dtype = torch.float64 if volumes.dtype == np.float64 else torch.float32
    per_volume = 3 * side ** 3 * (8 if dtype == torch.float64 else 4) * 8 / 7
    block = max(1, int(memory_gb * 1e9 / (2.5 * per_volume)))  # two, and what the allocator keeps
    out, where, own = np.empty(len(pairs)), pairs // block, threading.local()

    def levels():  # each thread works in its own buffers
        if not hasattr(own, "levels"):
            own.levels = [_Level(side >> k, device, dtype) for k in range(len(LEVEL_WEIGHTS))]
        return own.levels

    def statistics(i):
        return _pyramid(_as_tensor(volumes[i], device, dtype), levels(), length)

    def compare(p):
        return _ms_ssim(first[pairs[p, 0]], second[pairs[p, 1]], levels(), length, protocol)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a core a pair: cores that share one pair's small products wait for each other
    try:
        with ThreadPoolExecutor(threads if torch.device(device).type == "cpu" else 1) as pool:
            for a in np.unique(where[:, 0]):
                rows, first, second = where[:, 0] == a, None, None  # never three blocks at once
                needed = np.unique(pairs[rows, 0])
                first = dict(zip(needed, pool.map(statistics, needed)))
                for b in np.unique(where[rows, 1]):
                    chosen, second = np.flatnonzero(rows & (where[:, 1] == b)), None
                    second = {i: first[i] for i in np.unique(pairs[chosen, 1]) if i in first}
                    needed = [i for i in np.unique(pairs[chosen, 1]) if i not in second]
                    second.update(zip(needed, pool.map(statistics, needed)))
                    for p, value in zip(chosen, pool.map(compare, chosen)):
                        out[p] = value
                        if callback:
                            callback(1)
    finally:
        torch.set_num_threads(threads)
    return out


def all_pairs(n):
    """All i < j below n in the order of itertools.combinations, (n (n - 1) / 2, 2)."""
    return np.stack(np.triu_indices(n, 1), axis=1)


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


class _Level:
    """The Gaussian filter of cubes of n voxels a side as matrix products, and the buffers that it works in.

    On a CPU, slabs of planes that stay in its cache are filtered along two axes, then the cube along the third; and each product
    is done in bands, as rows of the window's matrix touch 13 columns each. A GPU takes the cube at once.
    """

    def __init__(self, n, device, dtype):
        cpu = torch.device(device).type == "cpu"
        self.n, self.planes = n, min(n, max(1, 2 ** 17 // n ** 2)) if cpu else n
        window = _window_matrix(n).to(device, dtype)
        self.outer, self.inner = (self._bands(window, min(n, step) if cpu else n) for step in (16, 32))
        self.slabs = torch.empty(2, self.planes, n, n, device=device, dtype=dtype)
        self.cubes = torch.empty(2, n, n, n, device=device, dtype=dtype)

    @staticmethod
    def _bands(window, step):
        """(rows, columns they touch, that part of the matrix, its transpose) for every `step` rows."""
        bands = []
        for i in range(0, len(window), step):
            rows, columns = slice(i, i + step), slice(max(0, i - RADIUS), min(len(window), i + step + RADIUS))
            bands.append((rows, columns, window[rows, columns].contiguous(), window[rows, columns].T.contiguous()))
        return bands

    def filter(self, x, y=None, constant=None, out=None):
        """Filters x, or constant + x * y, into `out`, or into a buffer that the next call overwrites."""
        n, half, out = self.n, self.cubes[0], self.cubes[1] if out is None else out
        for i in range(0, n, self.planes):
            part, (a, b) = slice(i, i + self.planes), self.slabs[:, :min(self.planes, n - i)]
            product = x[part] if y is None else torch.addcmul(constant, x[part], y[part], out=a)
            for rows, columns, window, _ in self.inner:
                torch.bmm(window.expand(len(b), -1, -1), product[:, columns], out=b[:, rows])
            for rows, columns, _, transposed in self.inner:
                torch.mm(b.view(-1, n)[:, columns], transposed, out=half[part].view(-1, n)[:, rows])
        for rows, columns, window, _ in self.outer:
            torch.mm(window, half[columns].view(-1, n * n), out=out[rows].view(-1, n * n))
        return out


def _pyramid(x, levels, length):
    """What one volume contributes: at each level the volume, its local mean, and its local variance plus half of C2."""
    out = []
    half_c2 = torch.full((), (K2 * length) ** 2 / 2, dtype=x.dtype, device=x.device)
    for level in levels:
        mean = level.filter(x, out=torch.empty_like(x))
        # the filter leaves a constant as it is, so C2 goes in with the square
        out.append((x, mean, level.filter(x, x, half_c2, torch.empty_like(x)).addcmul_(mean, mean, value=-1)))
        x = F.avg_pool3d(x[None, None], 2)[0, 0] if level.n > 1 else x
    return out


def _ms_ssim(first, second, levels, length, protocol):
    c1, cs = (K1 * length) ** 2, []
    half_c2 = torch.full((), (K2 * length) ** 2 / 2, dtype=first[0][0].dtype, device=first[0][0].device)
    for (x, mx, vx), (y, my, vy), level in zip(first, second, levels):
        structure = level.filter(x, y, half_c2)  # becomes (2 cov + C2) / (var_x + var_y + C2), both halved
        total = 0
        for i in range(0, level.n, level.planes):
            part = slice(i, i + level.planes)
            s, spread = structure[part], level.slabs[0][:min(level.planes, level.n - i)]
            s.addcmul_(mx[part], my[part], value=-1).div_(torch.add(vx[part], vy[part], out=spread))
            total = total + s.sum()
        cs.append(2 * total / level.n ** 3)
    ssim = ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean() * 2
    cs, ssim = torch.stack(cs[:-1]).double().clamp(min=0).cpu().numpy(), max(float(ssim), 0.0)
    repeats = len(cs) if protocol == "kwon2019" else 1
    return np.prod(cs ** LEVEL_WEIGHTS[:-1]) * ssim ** (LEVEL_WEIGHTS[-1] * repeats)


def mean_of_pairs(values, pairs, weights):
    """Mean of a symmetric function of two volumes over the pairs of each weighted set; never over a volume and itself.

    :param values: (P,) of `pairs` (P, 2), each pair once
    :param weights: (R, N)
    :return: (R,); NaN for a set that holds no pair
    """
    total, mass = np.zeros(len(weights)), np.zeros(len(weights))
    own = np.flatnonzero((weights > 0).any(0)[pairs].all(1))
    chunk = max(1, 10 ** 7 // len(weights))
    for i in range(0, len(own), chunk):
        part = own[i:i + chunk]
        w = weights[:, pairs[part, 0]]
        w *= weights[:, pairs[part, 1]]
        total += w @ values[part]
        mass += w.sum(1)
    return np.divide(total, mass, out=np.full(len(weights), np.nan), where=mass > 0)


# IMPORTS


def similarity_statistics(pool, volumes, args):
    """MS-SSIM within each set: how diverse it is."""
    rng = np.random.default_rng(args.seed)
    pairs = {}
    for name, group in pool.sets.items():
        mine = all_pairs(len(group))
        if args.pairs and args.pairs < len(mine):
            mine = mine[np.sort(rng.choice(len(mine), args.pairs, replace=False))]
        pairs[name] = pool.starts[name] + mine
    order = np.concatenate(list(pairs.values()))
    with counter("MS-SSIM pairs", len(order)) as update:
        values = ms_ssim_pairs(volumes, args.protocol, order, memory_gb=args.memory_gb / 2, device=args.device, callback=update)

    def within(weights):
        return mean_of_pairs(values, order, weights)

    parts = np.split(values, np.cumsum([len(p) for p in pairs.values()])[:-1])
    length, formula = PROTOCOLS[args.protocol]
    how = f"`{args.protocol}` ({formula}), volumes in [-1, 1], mean over " + (
        f"at most {args.pairs} random pairs a set" if args.pairs else "all pairs")
    more = {"protocol": args.protocol, "range": [-1, 1], "L": length, "pairs": {name: len(p) for name, p in pairs.items()},
            "std_of_pairs": {name: float(p.std(ddof=1)) if len(p) > 1 else None for name, p in zip(pairs, parts)}}
    return [Statistic("ms_ssim", "MS-SSIM within the set", f"{how}; close to the real set's is good", "real",
                      lambda a, b: within(b), more=more),
            Statistic("ms_ssim_difference", "MS-SSIM, difference from real", f"{how}; above 0: less diverse than real volumes; below 0: "
                      "more diverse, or noisier", "0", lambda a, b: within(b) - within(a), more=more)]
