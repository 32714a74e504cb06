"""Two sets of volumes compared: which numbers are taken, how sure each is, and what a perfect generator would get.

A Statistic is a function of two weighted sets of one pool. So the same function gives the number itself, its bootstrap
replicates, its floor (two halves of the real set) and its ceiling (real volumes that went through the VAE and back).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from metrics import inception, uncertainty
from metrics import mmd as metrics
from utils.cli import counter, progress

SPLITS = 20  # random halves of the real set, for the floor


@dataclass
class Statistic:
    """A number that says something about two weighted sets of one pool of volumes, (R, N) each: the real one and another."""
    key: str
    name: str
    how: str                        # what exactly it is
    aim: str                        # "low", "real" (what the real set has), or the value a perfect generator has
    of: Callable = None             # (real weights, other weights) -> (R,)
    value: float | None = None      # where it is not of(…) of the whole sets
    vae: bool = True                # has a value for volumes that went through the VAE
    share: bool = False             # a share of the synthetic volumes, by a threshold that the real ones set
    more: dict = field(default_factory=dict)


class Pool:
    """All volumes that are compared, one set after the other in one array, and what was computed of them."""

    def __init__(self, sets):
        self.sets = sets
        self.starts = dict(zip(sets, np.cumsum([0, *(len(s) for s in sets.values())])))
        self.size = sum(len(s) for s in sets.values())
        _, self.groups = np.unique([f"{name} {subject}" for name, s in sets.items() for subject in s.subjects], return_inverse=True)

    def index(self, name):
        return self.starts[name] + np.arange(len(self.sets[name]))

    def weights(self, name, own=None):
        """Weights of a set over the pool, (R, N): ones, or its own (R, n)."""
        own = np.ones((1, len(self.sets[name]))) if own is None else own
        out = np.zeros((len(own), self.size))
        out[:, self.index(name)] = own
        return out


# --------------------------------------------------------------------------------------------------- what is measured

def similarity_statistics(pool, volumes, args):
    """MS-SSIM within each set: how diverse it is."""
    rng = np.random.default_rng(args.seed)
    pairs = {}
    for name, group in pool.sets.items():
        mine = metrics.all_pairs(len(group))
        if args.pairs and args.pairs < len(mine):
            mine = mine[np.sort(rng.choice(len(mine), args.pairs, replace=False))]
        pairs[name] = pool.starts[name] + mine
    order = np.concatenate(list(pairs.values()))
    with counter("MS-SSIM pairs", len(order)) as update:
        values = metrics.ms_ssim_pairs(volumes, args.protocol, order, memory_gb=args.memory_gb / 2, device=args.device, callback=update)

    def within(weights):
        return metrics.mean_of_pairs(values, order, weights)

    parts = np.split(values, np.cumsum([len(p) for p in pairs.values()])[:-1])
    length, formula = metrics.PROTOCOLS[args.protocol]
    how = f"`{args.protocol}` ({formula}), volumes in [-1, 1], mean over " + (
        f"at most {args.pairs} random pairs a set" if args.pairs else "all pairs")
    more = {"protocol": args.protocol, "range": [-1, 1], "L": length, "pairs": {name: len(p) for name, p in pairs.items()},
            "std_of_pairs": {name: float(p.std(ddof=1)) if len(p) > 1 else None for name, p in zip(pairs, parts)}}
    return [Statistic("ms_ssim", "MS-SSIM within the set", f"{how}; close to the real set's is good", "real",
                      lambda a, b: within(b), more=more),
            Statistic("ms_ssim_difference", "MS-SSIM, difference from real", f"{how}; above 0: less diverse than real volumes; below 0: "
                      "more diverse, or noisier", "0", lambda a, b: within(b) - within(a), more=more)]


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

    def frechet(a, b):
        if len(a) < 100:
            return metrics.frechet(products, spread(a), spread(b))
        with counter(f"FID-{view}, replicates", len(a)) as update:
            return metrics.frechet(products, spread(a), spread(b), update)

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
        out.append(Statistic(f"fid_{view.lower()}", f"FID-{view}", f"{how}; torchmetrics{few}", "low", frechet,
                             value=inception.fid(features[real], features[fake]), more=more))
        limit = metrics.frechet_infinity(products, pool.index("real"), pool.index("synthetic"), args.seed, each=k)
        if limit:
            out.append(Statistic(f"fid_infinity_{view.lower()}", f"FID∞-{view}", "FID extrapolated to N = ∞, linearly in 1/N, from "
                                 f"subsets of {limit['n'][0]} to {limit['n'][-1]} volumes; rough below a few hundred, where KID is to be "
                                 "trusted", "low", value=limit["value"], more={**more, **limit}))
    if "kid" in args.metrics:
        kernel = metrics.kid_kernel(features @ features.T, inception.DIMENSIONS)
        out.append(Statistic(f"kid_{view.lower()}", f"KID-{view}", f"{how}; polynomial kernel of degree 3, unbiased, no subject paired "
                             "with itself, all volumes at once (no random subsets)", "0", polynomial, more=more))
    return out


def smoothness_statistics(pool, volumes):
    """Gradient energies, over the real set's."""
    energy = np.stack([metrics.gradient_energy(v) for v in progress(volumes[:pool.size], "gradients")])

    def ratio(k):
        return lambda a, b: np.divide(b @ energy[:, k] / b.sum(1), base := a @ energy[:, k] / a.sum(1), out=np.full(len(a), np.nan),
                                      where=base > 0)

    def through_plane(a, b):
        return ratio(2)(a, b) / np.sqrt(ratio(0)(a, b) * ratio(1)(a, b))

    how = "mean squared difference of neighbouring voxels over the real set's, "
    along = how + "along each axis"
    steps = {"right-left": along, "anterior-posterior": along, "inferior-superior": along,
             "inside rgb tiles": how + "inferior-superior, between slices of one tile of layout rgb",
             "between rgb tiles": how + "inferior-superior, from one tile of layout rgb to the next"}
    return [Statistic("gradient_" + key, "gradient energy, " + step, text, "1", ratio(k))
            for k, (key, (step, text)) in enumerate(zip(metrics.GRADIENTS, steps.items()))] + [
            Statistic("through_plane", "through-plane roughness", "gradient energy ratio of inferior-superior over the geometric mean of "
                      "the in-plane ratios; above 1: coronal and sagittal views are noisier than axial ones", "1", through_plane)]


def histogram_statistics(pool, volumes):
    """Distances of the mean intensity histograms."""
    histograms = np.stack([metrics.intensity_histogram(v) for v in progress(volumes[:pool.size], "histograms")])
    how = "Wasserstein-1 distance of the mean intensity histograms, intensities in [0, 1], 256 bins"
    return [Statistic("histogram", "intensity histogram", how + ", all voxels", "low",
                      lambda a, b: metrics.histogram_distance(histograms, a, b)),
            Statistic("histogram_foreground", "intensity histogram, foreground", how + ", voxels above 5 % of the range", "low",
                      lambda a, b: metrics.histogram_distance(histograms, a, b, above=0.05))]


def memorisation_statistics(pool, volumes, train, args):
    """How near each real and synthetic volume comes to the training set, the last of `volumes`.

    :return: statistics; {measure: (similarity to the nearest, its index) of each real and synthetic volume}
    """
    options = dict(memory_gb=args.memory_gb / 2, device=args.device)
    query, first = len(pool.sets["real"]) + len(pool.sets["synthetic"]), len(volumes) - len(train)
    with counter("correlations with training volumes", query) as update:
        correlation = metrics.correlations(volumes[:query], volumes[first:], callback=update, **options)
    near = {"correlation": (correlation.max(1), correlation.argmax(1))}
    how = {"correlation": "Pearson correlation over all voxels with the most correlated training volume"}
    if volumes.shape[1] >= metrics.SMALLEST:
        keep = min(args.shortlist, len(train))
        columns = np.argsort(-correlation, axis=1, kind="stable")[:, :keep]
        pairs = np.stack([np.repeat(np.arange(query), keep), first + columns.reshape(-1)], axis=1)
        with counter("MS-SSIM with training volumes", len(pairs)) as update:
            values = metrics.ms_ssim_pairs(volumes, args.protocol, pairs, callback=update, **options).reshape(query, keep)
        near["ms_ssim"] = values.max(1), columns[np.arange(query), values.argmax(1)]
        how["ms_ssim"] = f"MS-SSIM, `{args.protocol}`, with the most similar training volume" + (
            f" of the {keep} most correlated" if keep < len(train) else "")
    return [s for key, (value, _) in near.items() for s in nearest_statistics(pool, value, key, how[key])], near


def nearest_statistics(pool, value, key, how):
    """The mean similarity to the nearest training volume, and the share that comes nearer than real volumes do."""
    word = {"correlation": "correlation", "ms_ssim": "MS-SSIM"}[key]
    own = {name: value[pool.index(name)].tolist() for name in ("real", "synthetic")}
    value, n = np.pad(value, (0, pool.size - len(value))), len(own["real"])  # volumes that went through the VAE are in no set here
    return [Statistic(f"nearest_{key}", f"nearest training volume, {word}", f"{how}, mean; well above the real volumes': copied, or "
                      "smoother than real volumes, which brings any volume nearer", "real", lambda a, b: b @ value / b.sum(1), vae=False,
                      more={"of_volumes": own, "threshold": float(metrics.near_threshold(1 - np.array(own["real"])))}),
            Statistic(f"copied_{key}", f"nearer than 95 % of real, {word}", f"share of volumes whose distance (1 − {word}) to the nearest "
                      f"training volume lies below the 5th percentile of the {n} real volumes' (below the least, with fewer than 19); the "
                      "aim is what volumes like the real ones have", f"{max(0.05, 1 / (n + 1)):.3g}",
                      lambda a, b: metrics.share_closer(1 - value, 1 - value, a, b), vae=False, share=True)]


# -------------------------------------------------------------------------------------------------------- how sure it is

def judge(s, pool, args, boot, halves, matched):
    """One number with its interval, its floor and its ceiling, as metrics.json holds it; None for what is not finite."""
    real, fake = pool.weights("real"), pool.weights("synthetic")
    lowest = 0.0 if s.aim == "low" else None

    def finite(x):
        return (float(x) if lowest is None else max(float(x), lowest)) if np.isfinite(x) else None

    entry = {"name": s.name, "aim": s.aim, "how": s.how, "value": finite(s.value if s.value is not None else s.of(real, fake)[0]), **s.more}
    if s.of is None or entry["value"] is None:
        return entry

    def summary(values):
        values = values[np.isfinite(values)]
        return {"mean": finite(values.mean()), "low": finite(values.min()), "high": finite(values.max())} if len(values) else None

    if boot is not None and s.share:
        low, high = uncertainty.share_interval(s.of(boot[0], np.repeat(fake, len(boot[0]), axis=0)), len(pool.sets["synthetic"]),
                                               [args.seed, 4])
        entry["interval"] = [min(low, entry["value"]), max(high, entry["value"])]  # none or all: a tail is cut off otherwise
    elif boot is not None:
        entry["interval"] = uncertainty.interval(entry["value"], s.of(*boot), lowest=lowest)
    if s.aim == "real":
        entry["target"] = {"value": finite(s.of(real, real)[0])}
        if boot is not None:
            entry["target"]["interval"] = uncertainty.interval(entry["target"]["value"], s.of(boot[0], boot[0]))
    if halves is not None:
        entry["floor"] = summary(s.of(*halves))
    if matched is not None:
        entry["at_floor_n"] = summary(s.of(*matched))
    if s.vae:
        entry["vae"] = {name[4:]: finite(s.of(real, pool.weights(name))[0]) for name in pool.sets if name.startswith("vae ")}
    return entry


def resamples(pool, args):
    """Weights for the bootstrap, for halves of the real set, and for as many synthetic volumes as a half holds.

    :return: each None where there are too few subjects; why, {what: reason}
    """
    real, fake = pool.sets["real"], pool.sets["synthetic"]
    boot = halves = matched = None
    why, few = {}, {s.flag: len(set(s.subjects)) for s in (fake, real) if len(set(s.subjects)) < uncertainty.FEWEST}
    for flag, n in few.items():
        why["intervals"] = f"{flag} has {n} subject{'s' * (n > 1)}; at least {uncertainty.FEWEST} are needed"
    if args.bootstrap and not few:
        boot = (pool.weights("real", uncertainty.bootstrap_weights(real.subjects, args.bootstrap, [args.seed, 0])),
                pool.weights("synthetic", uncertainty.bootstrap_weights(fake.subjects, args.bootstrap, [args.seed, 1])))
    if real.flag in few:
        why["the floor"] = why["intervals"]
    else:
        first, second = uncertainty.halves(real.subjects, SPLITS, [args.seed, 2])
        halves = pool.weights("real", first), pool.weights("real", second)
        counts = second.sum(1).astype(int)
        if counts.max() <= len(fake):
            rank = np.argsort(np.argsort(np.random.default_rng([args.seed, 3]).random((SPLITS, len(fake))), axis=1), axis=1)
            matched = halves[0], pool.weights("synthetic", (rank < counts[:, None]).astype(float))
    return (boot, halves, matched), why
