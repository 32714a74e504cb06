"""A statistic compares two sets of volumes; `summarize` adds how certain it is.

A set is given by its weights: how often each volume of a `Pool` belongs to it. So one function
gives the number itself, its interval, its permutation test, its floor (two halves of the real set)
and its ceiling (real volumes that went through the VAE).
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from metrics import permutation, uncertainty, volume_sets
from utils.progress import counter


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
    has_interval: bool = True           # an interval of it would cover what it says
    test: str | None = "both"           # tail of its permutation test: "upper", "lower", "both";
                                        #   "t": of the difference from its target, where a set of
                                        #   real and synthetic volumes has no value; None: no test
    order: Callable | None = None       # as `compute`, with ties broken, for the test; None: no
                                        #   ties to break
    family: str | None = None           # of numbers that have their own table in the report, and
                                        #   whose p are adjusted together; None: the main table
    details: dict = field(default_factory=dict)   # further keys of its entry in metrics.json
    nearest: np.ndarray | None = None   # (synthetic volumes,) training volume nearest to each
    counted: np.ndarray | None = None   # (N,) bool, the volumes that have a value; None: all


class Pool:
    """All volumes of an evaluation in one array.

    First the compared sets, one after another: "real", "synthetic", and for each layout
    "vae LAYOUT", the real volumes after the VAE. Then the training set, if there is one.
    """

    def __init__(self, real, synthetic, train=None, layouts=()):
        """:param layouts: names of the ways in which real volumes go through the VAE, such as the
        layout of the mosaics"""
        self.sets = {"real": real, "synthetic": synthetic}
        for layout in layouts:
            self.sets[f"vae {layout}"] = real
        self.layouts = layouts
        self.train = train
        self.side = real.side
        self.volumes = None             # (N + T, D, D, D) uint8, see `load`
        self.results = {}               # what a metric keeps for its files and figures, by name
        self._kept = {}                 # {(what, names of sets): value}, see `once`
        self._arrange()

    def _arrange(self):
        """Finds the place of each set in the array."""
        everything = {**self.sets, **({"train": self.train} if self.train else {})}
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

    def replace_synthetic(self, synthetic, memory_gb, folder):
        """Reads another synthetic set into the place of this one.

        The other sets are not read again, and what `once` keeps of them alone stays. With another
        number of volumes, all are copied to a new array.

        :param synthetic: VolumeSet
        :param memory_gb, folder: as `load` takes them
        """
        kept = {name: self.part(name) for name in self._slices if name != "synthetic"}
        length = len(self.volumes) - len(self.sets["synthetic"]) + len(synthetic)
        self.sets = {**self.sets, "synthetic": synthetic}
        self._arrange()
        if length != len(self.volumes):
            self.volumes = volume_sets.allocate(length, self.side, memory_gb, folder)
            for name, volumes in kept.items():
                self.part(name)[:] = volumes
        volume_sets.load(synthetic, self.part("synthetic"))
        self.results = {}
        self._kept = {key: value for key, value in self._kept.items() if "synthetic" not in key[1]}

    # what is computed of the volumes of some sets, for as long as these are the pool's

    def knows(self, what, names):
        """Whether `once` has computed this already."""
        return (what, names) in self._kept

    def once(self, what, names, compute):
        """A value that is computed when it is first asked for. Whoever gets it leaves it as it is.

        :param what: what is computed and with which options, hashable
        :param names: tuple of the sets on whose volumes alone it depends; "train" may be one
        :param compute: function without parameters
        """
        if not self.knows(what, names):
            self._kept[what, names] = compute()
        return self._kept[what, names]

    def take_over(self, pool):
        """Takes over what a pool with the same training set keeps of that set alone."""
        self._kept.update({key: value for key, value in pool._kept.items() if key[1] == ("train",)})

    def of_volumes(self, what, label, compute):
        """What a function finds in each of the compared volumes, computed set by set.

        :param what: as `once` takes it
        :param label: of the progress
        :param compute: (volumes (n, D, D, D), callback) -> (n, ...)
        :return: (N, ...)
        """
        found = self.each_once(what, label, {
            (name,): (len(own), partial(compute, self.part(name)))
            for name, own in self.sets.items()})
        return np.concatenate(list(found.values()))

    def each_once(self, what, label, parts, **progress):
        """Values of several groups of sets, each as `once` gives it, with one progress for all.

        :param what: as `once` takes it
        :param label: of the progress
        :param parts: {names: (amount of work, function of the callback that counts it)}
        :param progress: options of `utils.progress.counter`
        :return: {names: value}
        """
        missing = sum(amount for names, (amount, _) in parts.items() if not self.knows(what, names))
        with counter(label, missing, **progress) as update:
            return {names: self.once(what, names, partial(compute, update))
                    for names, (_, compute) in parts.items()}


# --------------------------------------------------------------------------------------- summary

def summarize(statistic, pool, resampled):
    """One number with its interval, its test, its floor and its ceiling.

    :param resampled: what `resampling.resamples` draws of the volumes that the statistic counts
    :return: its entry in metrics.json: name, aim, how, value, the statistic's details, and where
        they exist interval, p, p_method, target, floor, at_floor_n, vae; None for what is not
        finite
    """
    real, synthetic = pool.weights("real"), pool.weights("synthetic")
    lowest = 0.0 if statistic.target == "low" else None
    compute = statistic.compute
    value = compute(real, synthetic)[0] if statistic.value is None else statistic.value
    entry = {"name": statistic.name, "aim": statistic.target, "how": statistic.definition,
             "value": _finite(value, lowest), **statistic.details}
    if statistic.family:
        entry["family"] = statistic.family
    if compute is None or entry["value"] is None:
        return entry
    if resampled.bootstrap is not None and statistic.has_interval:
        entry["interval"] = _interval(statistic, entry["value"], pool, resampled, lowest)
    if resampled.permuted is not None and statistic.test:
        entry |= _test(statistic, entry["value"], pool, resampled)
    if statistic.target == "real":
        entry["target"] = _value_of_real(statistic, pool, resampled)
    if resampled.halves is not None:
        entry["floor"] = _mean_and_range(compute(*resampled.halves), lowest)
    if resampled.matched is not None:
        entry["at_floor_n"] = _mean_and_range(compute(*resampled.matched), lowest)
    if statistic.has_ceiling:
        entry["vae"] = {
            layout: _finite(compute(real, pool.weights(f"vae {layout}"))[0], lowest)
            for layout in pool.layouts}
    return entry


def add_adjusted_p(entries):
    """Adds p_adjusted (Holm, within each family) to every entry of metrics.json that has a p.

    :param entries: {key: entry}
    """
    tested = [entry for entry in entries.values() if entry.get("p") is not None]
    for family in {entry.get("family") for entry in tested}:
        members = [entry for entry in tested if entry.get("family") == family]
        adjusted = permutation.holm([entry["p"] for entry in members])
        for entry, p in zip(members, adjusted):
            entry["p_adjusted"] = float(p)


def _finite(x, lowest=None):
    """A float, not below `lowest`; None for NaN and infinity, which JSON has not."""
    if not np.isfinite(x):
        return None
    return float(x) if lowest is None else max(float(x), lowest)


def _interval(statistic, value, pool, resampled, lowest):
    if statistic.is_share:
        real, synthetic = resampled.subjects
        return uncertainty.share_interval(value, synthetic, real)
    if min(resampled.subjects) < uncertainty.FEW_SUBJECTS:
        left_out = _left_out_values(statistic, pool, resampled)
        return uncertainty.t_interval(value, left_out, lowest=lowest)
    replicates = statistic.compute(*resampled.bootstrap)
    return uncertainty.interval(value, replicates, lowest=lowest)


def _left_out_values(statistic, pool, resampled):
    """Values without each real subject, and without each synthetic one."""
    without_real, without_synthetic = resampled.left_out
    synthetic = np.repeat(pool.weights("synthetic"), len(without_real), axis=0)
    real = np.repeat(pool.weights("real"), len(without_synthetic), axis=0)
    return [statistic.compute(without_real, synthetic), statistic.compute(real, without_synthetic)]


def _test(statistic, value, pool, resampled):
    """{"p", "p_method"} of the hypothesis that nothing differs; {} if there is no p."""
    if statistic.test == "t":
        difference = value - float(statistic.target)
        p = uncertainty.t_test(difference, _left_out_values(statistic, pool, resampled))
        method = "t, jackknife by subject"
    else:
        values = (statistic.order or statistic.compute)(*resampled.permuted)
        p = permutation.p_value(values, statistic.test)
        tail = "both tails" if statistic.test == "both" else f"{statistic.test} tail"
        method = f"{len(resampled.permuted[0]) - 1} permutations of subjects, {tail}"
    return {} if p is None else {"p": p, "p_method": method}


def _value_of_real(statistic, pool, resampled):
    """The number of the real set itself, with its interval if there is one."""
    compute, real = statistic.compute, pool.weights("real")
    target = {"value": _finite(compute(real, real)[0])}
    if resampled.bootstrap is None or not statistic.has_interval or target["value"] is None:
        return target
    without = resampled.left_out[0]
    if len(without) < uncertainty.FEW_SUBJECTS:
        target["interval"] = uncertainty.t_interval(target["value"], [compute(without, without)])
    else:
        replicates = compute(resampled.bootstrap[0], resampled.bootstrap[0])
        target["interval"] = uncertainty.interval(target["value"], replicates)
    return target


def _mean_and_range(values, lowest):
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    return {"mean": _finite(values.mean(), lowest), "low": _finite(values.min(), lowest),
            "high": _finite(values.max(), lowest)}
