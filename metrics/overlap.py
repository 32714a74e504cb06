"""Volumes and subjects that are on two sides of a comparison, which makes its numbers wrong."""
import numpy as np

from metrics.volume_sets import digests, short_list


def overlap_warnings(pool):
    """What makes the numbers of an evaluation meaningless, as sentences without a full stop.

    The same volumes, or the same subjects, on two sides; voxels of different sizes.

    :param pool: statistic.Pool, loaded
    """
    real, synthetic, train = pool.sets["real"], pool.sets["synthetic"], pool.train
    digests_of_real = digests(pool.part("real"))
    digests_of_synthetic = digests(pool.part("synthetic"))
    warnings = []
    shared = _ids_in(synthetic, digests_of_synthetic, set(digests_of_real))
    if set(digests_of_real) == set(digests_of_synthetic):
        warnings.append("the real and the synthetic set are the same volumes")
    elif shared:
        warnings.append(f"{len(shared)} of {len(synthetic)} synthetic volumes are in the real "
                        f"set: {short_list(shared)}")
    if train:
        trained = set(digests(pool.part("train")))
        for name, found in (("real", digests_of_real), ("synthetic", digests_of_synthetic)):
            copies = _ids_in(pool.sets[name], found, trained)
            if copies:
                warnings.append(f"{len(copies)} of {len(pool.sets[name])} {name} volumes are in "
                                f"the training set, voxel for voxel: {short_list(copies)}")
        known = _ids_of_trained_subjects(real, digests_of_real, train, trained)
        if known:
            warnings.append(f"{len(known)} of {len(real)} real volumes are of subjects in the "
                            f"training set: {short_list(known)}")
    if not np.allclose(real.voxel_sizes, synthetic.voxel_sizes, rtol=0.01):
        warnings.append(f"voxels are {_in_mm(real)} in the real and {_in_mm(synthetic)} in the "
                        "synthetic set")
    return warnings


def _ids_in(volume_set, found, others):
    """Ids of the volumes of a set whose digest is among others."""
    return [name for name, digest in zip(volume_set.ids, found) if digest in others]


def _ids_of_trained_subjects(real, digests_of_real, train, trained):
    """Ids of real volumes that were not trained on, of subjects that were."""
    # a subject that is only the file's name says nothing: other files can have that name, too
    subjects = {s for s, name in zip(train.subjects, train.ids) if s != name}
    return [name for name, subject, digest in zip(real.ids, real.subjects, digests_of_real)
            if subject in subjects and digest not in trained]


def _in_mm(volume_set):
    return " × ".join(f"{x:.3g}" for x in volume_set.voxel_sizes) + " mm"
