"""The sets that intervals, tests and floors are computed from: resampled by subject."""
from dataclasses import dataclass

import numpy as np

from metrics import permutation, uncertainty

SPLITS = 20  # random halves of the real set, for the floor


@dataclass(frozen=True)
class Resamples:
    """Weights of resampled sets, pairs of (R, N); None where a set has too few subjects."""
    bootstrap: tuple | None     # replicates of the real and of the synthetic set
    left_out: tuple | None      # the real and the synthetic set without each of their subjects
    halves: tuple | None        # the two halves of the real set
    matched: tuple | None       # first halves, and as many synthetic subjects as second halves have
    permuted: tuple | None      # both sets, a volume per subject, and their permutations
    missing: dict               # {"intervals", "the floor" or "p": why there are none}
    subjects: tuple | None      # how many take part, real and synthetic


@dataclass(frozen=True)
class _Members:
    """The volumes of a set that take part."""
    flag: str               # that named the set
    index: np.ndarray       # (n,) in the pool
    subjects: np.ndarray    # (n,)
    size: int               # N, of the pool
    is_part: bool           # of the set only

    def weights(self, own):
        """Weights of its volumes, (R, n) -> of the pool's, (R, N)."""
        out = np.zeros((len(own), self.size))
        out[:, self.index] = own
        return out

    def number(self):
        """Of subjects."""
        return len(np.unique(self.subjects))

    def too_few(self):
        """Why the set cannot be resampled; None if it can."""
        n = self.number()
        if n >= uncertainty.MIN_SUBJECTS:
            return None
        return (f"{self.flag} has {n} subject{'s' * (n != 1)}{' with a value' * self.is_part}; "
                f"at least {uncertainty.MIN_SUBJECTS} are needed")


def resamples(pool, replicates, seed, permutations=0, counted=None):
    """Draws the sets that intervals, floors and tests are computed from.

    :param pool: metrics.statistic.Pool
    :param replicates: of the bootstrap; 0: no intervals
    :param permutations: of the subjects; 0: no tests
    :param counted: (N,) bool, the volumes that take part; None: all. Of a set of which half has no
        value, only the other half may be drawn: or else permutations would compare larger sets
        than there are, and p would be too small
    """
    real, synthetic = (_members(pool, name, counted) for name in ("real", "synthetic"))
    too_few = {part.flag: part.too_few() for part in (real, synthetic) if part.too_few()}
    bootstrap = left_out = halves = matched = permuted = None
    missing = {}
    if replicates and too_few:
        missing["intervals"] = next(iter(too_few.values()))
    elif replicates:
        bootstrap = tuple(
            part.weights(uncertainty.bootstrap_weights(part.subjects, replicates, [seed, k]))
            for k, part in enumerate((real, synthetic)))
    if permutations and too_few:
        missing["p"] = next(iter(too_few.values()))
    elif permutations:
        permuted = _permutations(real, synthetic, permutations, seed)
    if not too_few:
        left_out = tuple(part.weights(uncertainty.leave_one_out_weights(part.subjects))
                         for part in (real, synthetic))
    if real.flag in too_few:
        missing["the floor"] = too_few[real.flag]
    else:
        own = uncertainty.halves(real.subjects, SPLITS, [seed, 2])
        halves = tuple(map(real.weights, own))
        matched = _matched(real, synthetic, own, [seed, 3])
    return Resamples(bootstrap, left_out, halves, matched, permuted, missing,
                     (real.number(), synthetic.number()))


def _members(pool, name, counted):
    index, subjects = pool.index(name), np.array(pool.sets[name].subjects)
    kept = np.ones(len(index), bool) if counted is None else np.asarray(counted, bool)[index]
    return _Members(pool.sets[name].flag, index[kept], subjects[kept], pool.size, not kept.all())


def _permutations(real, synthetic, permutations, seed):
    """Both sets, one volume per subject, and their permutations."""
    chosen = [part.index[permutation.one_volume_per_subject(part.subjects, [seed, 5, k])]
              for k, part in enumerate((real, synthetic))]
    return permutation.permuted_sets(*chosen, real.size, permutations, [seed, 6])


def _matched(real, synthetic, halves, seed):
    """First halves, and synthetic sets with as many subjects as the second halves.

    :param halves: weights of the real volumes
    :return: None if the synthetic set has fewer subjects
    """
    _, first_volumes = np.unique(real.subjects, return_index=True)
    _, subject_of = np.unique(synthetic.subjects, return_inverse=True)
    counts = halves[1][:, first_volumes].sum(1).astype(int)
    if counts.max() > synthetic.number():
        return None
    subsets = _random_subsets(synthetic.number(), counts, seed)
    return real.weights(halves[0]), synthetic.weights(subsets[:, subject_of])


def _random_subsets(n, counts, seed):
    """Weights, (R, n) of 0 and 1, of R random subsets with these numbers of elements."""
    draws = np.random.default_rng(seed).random((len(counts), n))
    rank = np.argsort(np.argsort(draws, axis=1), axis=1)
    return (rank < counts[:, None]).astype(float)
