"""Two sets of volumes compared: which numbers are taken, how sure each is, and what a perfect generator would get.

A Statistic is a function of two weighted sets of one pool. So the same function gives the number itself, its bootstrap
replicates, its floor (two halves of the real set) and its ceiling (real volumes that went through the VAE and back).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from metrics import uncertainty

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
