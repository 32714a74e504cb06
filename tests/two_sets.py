"""p and intervals of two sets of volumes, computed as an evaluation computes them."""
import numpy as np

from metrics import permutation, uncertainty


def p_values(distances, real_subjects, n, permutations, rng, names=None):
    """{name: p} of a pool that holds the real volumes, then n synthetic ones.

    :param distances: {name: (distance of two weighted sets, tail of its test)}
    :param real_subjects: of each real volume
    """
    one = permutation.one_volume_per_subject(real_subjects, rng.integers(10 ** 6))
    size = len(real_subjects) + n
    synthetic = len(real_subjects) + np.arange(n)
    a, b = permutation.permuted_sets(one, synthetic, size, permutations, rng.integers(10 ** 6))
    return {name: permutation.p_value(distance(a, b), tail)
            for name, (distance, tail) in distances.items() if names is None or name in names}


def interval_of(compute, subjects, n_real, replicates, seed):
    """Interval of one number, as statistic.summarize gives it, and the value.

    :param compute: of two weighted sets
    :param subjects: (N,) of the pool, the real volumes first
    """
    size = len(subjects)
    parts = (slice(0, n_real), slice(n_real, size))
    whole = [np.zeros((1, size)) for _ in parts]
    for weights, part in zip(whole, parts):
        weights[0, part] = 1
    value = compute(*whole)[0]

    def padded(part, own):
        out = np.zeros((len(own), size))
        out[:, part] = own
        return out

    if min(len(set(subjects[part])) for part in parts) < uncertainty.FEW_SUBJECTS:
        left_out = [padded(part, uncertainty.leave_one_out_weights(subjects[part]))
                    for part in parts]
        values = [compute(left_out[0], np.repeat(whole[1], len(left_out[0]), axis=0)),
                  compute(np.repeat(whole[0], len(left_out[1]), axis=0), left_out[1])]
        return uncertainty.t_interval(value, values), value
    drawn = [padded(part, uncertainty.bootstrap_weights(subjects[part], replicates, [seed, k]))
             for k, part in enumerate(parts)]
    return uncertainty.interval(value, compute(*drawn)), value
