"""A statistic compares two sets of volumes; `summarize` adds how certain it is.

A set is given by its weights: how often each volume of a `Pool` belongs to it. So one function
gives the number itself, its bootstrap interval, its floor (two halves of the real set) and its
ceiling (real volumes that went through the VAE).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from metrics import uncertainty, volume_sets

SPLITS = 20  # random halves of the real set, for the floor


@dataclass(frozen=True)
class Statistic:
    """A number that compares the real set with another one."""
    key: str                            # of its entry in metrics.json
    name: str                           # in reports: "measure" or "measure, variant"
    definition: str                     # what exactly is computed; "how" in metrics.json
    target: str                         # "low", "real" (the value of the real set), or the value
                                        #   of a perfect generator; "aim" in metrics.json
    compute: Callable | None = None     # (weights of the real set, of the other), (R, N) each
                                        #   -> values, (R,)
    value: float | None = None          # None: what `compute` gives for the whole sets
    has_ceiling: bool = True            # makes sense for real volumes that went through the VAE
    is_share: bool = False              # share of the other set, by a threshold of the real set
    details: dict = field(default_factory=dict)   # further keys of its entry in metrics.json
    nearest: np.ndarray | None = None   # (synthetic volumes,) training volume nearest to each


class Pool:
    """All volumes of an evaluation in one array.

    First the compared sets, one after another: "real", "synthetic", and for each layout
    "vae LAYOUT", the real volumes after the VAE. Then the training set, if there is one.
    """

    def __init__(self, real, synthetic, train=None, layouts=()):
        """:param layouts: mosaic layouts in which real volumes go through the VAE"""
        self.sets = {"real": real, "synthetic": synthetic}
        for layout in layouts:
            self.sets[f"vae {layout}"] = real
        self.layouts = layouts
        self.train = train
        self.side = real.side
        self.volumes = None             # (N + T, D, D, D) uint8, see `load`

        everything = {**self.sets, **({"train": train} if train else {})}
        ends = np.cumsum([len(s) for s in everything.values()])
        self._slices = {name: slice(int(end) - len(s), int(end))
                        for (name, s), end in zip(everything.items(), ends)}
        self.size = sum(len(s) for s in self.sets.values())   # N, without the training set
        names = [f"{name} {subject}" for name, s in self.sets.items() for subject in s.subjects]
        _, self.groups = np.unique(names, return_inverse=True)  # (N,), equal within a subject

    @property
    def compared(self):
        """The volumes of the compared sets, (N, D, D, D)."""
        return self.volumes[:self.size]

    def part(self, name):
        """The volumes of one set, a view; `name` may be "train"."""
        return self.volumes[self._slices[name]]

    def index(self, name):
        """Indices of the volumes of one set; `name` may be "train"."""
        return np.arange(self._slices[name].start, self._slices[name].stop)

    def weights(self, name, own=None):
        """Weights of one set over the compared volumes, (R, N).

        :param own: (R, n) weights of its n volumes; None: each counts once, R = 1
        """
        if own is None:
            own = np.ones((1, len(self.sets[name])))
        out = np.zeros((len(own), self.size))
        out[:, self._slices[name]] = own
        return out

    def load(self, memory_gb, folder):
        """Reads all volumes; those that go through the VAE are left to be filled.

        :param memory_gb: RAM to use; a larger pool is kept in a temporary file in `folder`
        :raises UserError: a volume of another size than the others, or constant
        """
        count = self.size + (len(self.train) if self.train else 0)
        self.volumes = volume_sets.allocate(count, self.side, memory_gb, folder)
        volume_sets.load(self.sets["real"], self.part("real"))
        volume_sets.load(self.sets["synthetic"], self.part("synthetic"))
        if self.train:
            volume_sets.load(self.train, self.part("train"))


# ------------------------------------------------------------------------------------ resampling

@dataclass(frozen=True)
class Resamples:
    """Weights of resampled sets, pairs of (R, N); None where a set has too few subjects."""
    bootstrap: tuple | None     # replicates of the real and of the synthetic set
    halves: tuple | None        # the two halves of the real set
    matched: tuple | None       # first halves, and as many synthetic volumes as a second half has
    missing: dict               # {"intervals" or "the floor": why there are none}
    seed: int


def resamples(pool, replicates, seed):
    """Draws the sets that intervals and floors are computed from.

    :param replicates: of the bootstrap; 0: no intervals
    """
    real, synthetic = pool.sets["real"], pool.sets["synthetic"]
    too_few = {s.flag: _too_few_subjects(s) for s in (real, synthetic) if _too_few_subjects(s)}
    bootstrap = halves = matched = None
    missing = {}
    if replicates and too_few:
        missing["intervals"] = next(iter(too_few.values()))
    elif replicates:
        bootstrap = (
            _bootstrap(pool, "real", replicates, [seed, 0]),
            _bootstrap(pool, "synthetic", replicates, [seed, 1]))
    if real.flag in too_few:
        missing["the floor"] = too_few[real.flag]
    else:
        first, second = uncertainty.halves(real.subjects, SPLITS, [seed, 2])
        halves = pool.weights("real", first), pool.weights("real", second)
        counts = second.sum(1).astype(int)
        if counts.max() <= len(synthetic):
            subsets = _random_subsets(len(synthetic), counts, [seed, 3])
            matched = halves[0], pool.weights("synthetic", subsets)
    return Resamples(bootstrap, halves, matched, missing, seed)


def _too_few_subjects(volume_set):
    """Why a set cannot be resampled; None if it can."""
    n = len(set(volume_set.subjects))
    if n >= uncertainty.MIN_SUBJECTS:
        return None
    return (f"{volume_set.flag} has {n} subject{'s' * (n > 1)}; "
            f"at least {uncertainty.MIN_SUBJECTS} are needed")


def _bootstrap(pool, name, replicates, seed):
    subjects = pool.sets[name].subjects
    return pool.weights(name, uncertainty.bootstrap_weights(subjects, replicates, seed))


def _random_subsets(n, counts, seed):
    """Weights, (R, n) of 0 and 1, of R random subsets with these numbers of elements."""
    draws = np.random.default_rng(seed).random((len(counts), n))
    rank = np.argsort(np.argsort(draws, axis=1), axis=1)
    return (rank < counts[:, None]).astype(float)


# --------------------------------------------------------------------------------------- summary

def summarize(statistic, pool, resampled):
    """One number with its interval, its floor and its ceiling.

    :param resampled: what `resamples` returns
    :return: its entry in metrics.json: name, aim, how, value, the statistic's details, and where
        they exist interval, target, floor, at_floor_n, vae; None for what is not finite
    """
    real, synthetic = pool.weights("real"), pool.weights("synthetic")
    lowest = 0.0 if statistic.target == "low" else None
    compute = statistic.compute
    value = compute(real, synthetic)[0] if statistic.value is None else statistic.value
    entry = {"name": statistic.name, "aim": statistic.target, "how": statistic.definition,
             "value": _finite(value, lowest), **statistic.details}
    if compute is None or entry["value"] is None:
        return entry
    if resampled.bootstrap is not None:
        entry["interval"] = _interval(statistic, entry["value"], pool, resampled, lowest)
    if statistic.target == "real":
        entry["target"] = _value_of_real(compute, real, resampled)
    if resampled.halves is not None:
        entry["floor"] = _mean_and_range(compute(*resampled.halves), lowest)
    if resampled.matched is not None:
        entry["at_floor_n"] = _mean_and_range(compute(*resampled.matched), lowest)
    if statistic.has_ceiling:
        entry["vae"] = {
            layout: _finite(compute(real, pool.weights(f"vae {layout}"))[0], lowest)
            for layout in pool.layouts}
    return entry


def _finite(x, lowest=None):
    """A float, not below `lowest`; None for NaN and infinity, which JSON has not."""
    if not np.isfinite(x):
        return None
    return float(x) if lowest is None else max(float(x), lowest)


def _interval(statistic, value, pool, resampled, lowest):
    real, synthetic = resampled.bootstrap
    if not statistic.is_share:
        return uncertainty.interval(value, statistic.compute(real, synthetic), lowest=lowest)
    whole = np.repeat(pool.weights("synthetic"), len(real), axis=0)
    low, high = uncertainty.share_interval(
        statistic.compute(real, whole), len(pool.sets["synthetic"]), [resampled.seed, 4])
    # Jeffreys' interval cuts off a tail even if the share is 0 or 1
    return [min(low, value), max(high, value)]


def _value_of_real(compute, real, resampled):
    """The number of the real set itself, with its interval."""
    target = {"value": _finite(compute(real, real)[0])}
    if resampled.bootstrap is not None:
        replicates = compute(resampled.bootstrap[0], resampled.bootstrap[0])
        target["interval"] = uncertainty.interval(target["value"], replicates)
    return target


def _mean_and_range(values, lowest):
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    return {"mean": _finite(values.mean(), lowest), "low": _finite(values.min(), lowest),
            "high": _finite(values.max(), lowest)}
