"""Every number for each class, as for the sets as a whole."""
import dataclasses
from functools import partial

from metrics import volume_sets
from metrics.statistic import Pool
from utils.errors import UserError

MIN_VOLUMES = 2     # of a class, in each set


def class_names(real, synthetic):
    """Names of the classes of either set, sorted.

    :raises UserError: a set that does not say the classes of its volumes
    """
    for volume_set in (real, synthetic):
        if volume_set.classes is None:
            raise UserError(
                f"--by-class: {volume_set.flag} {volume_set.path} does not say the classes of its "
                "volumes; give a data folder, a samples folder, or the output of postprocess.py "
                "for one")
    return sorted({*real.classes, *synthetic.classes})


def counts(pool, name):
    """{"real": number of volumes of a class, "synthetic": …}."""
    return {key: pool.sets[key].classes.count(name) for key in ("real", "synthetic")}


def reason_to_skip(n, mmd_batch):
    """Why nothing can be computed for a class; None if it can.

    :param n: of `counts`
    :param mmd_batch: of the linear MMD, or None
    """
    least = max(MIN_VOLUMES, mmd_batch or 0)
    if min(n.values()) >= least:
        return None
    return (f"{n['real']} real and {n['synthetic']} synthetic volumes; at least {least} of each "
            "are needed")


def _grid_of_kept(volume_set, kept, i):
    """Affine of a volume of a class, which is read when it is asked for."""
    return volume_set.grid_of(kept[i])


def class_pool(pool, name, memory_gb, folder):
    """The volumes of one class; the training set stays as it is.

    :param pool: statistic.Pool, loaded
    :param memory_gb, folder: as `volume_sets.allocate` takes them
    :return: statistic.Pool, loaded
    """
    kept, sets = {}, {}
    for key in ("real", "synthetic"):
        volume_set = pool.sets[key]
        kept[key] = [i for i, own in enumerate(volume_set.classes) if own == name]
        sets[key] = dataclasses.replace(
            volume_set, read=None, classes=[name] * len(kept[key]),
            ids=[volume_set.ids[i] for i in kept[key]],
            subjects=[volume_set.subjects[i] for i in kept[key]],
            affine_of=partial(_grid_of_kept, volume_set, kept[key]))
    out = Pool(sets["real"], sets["synthetic"], pool.train, pool.layouts)
    count = out.size + (len(pool.train) if pool.train else 0)
    out.volumes = volume_sets.allocate(count, pool.side, memory_gb, folder)
    for key in pool.sets:
        part = pool.part(key)
        for i, k in enumerate(kept.get(key, kept["real"])):  # real volumes go through the VAE
            out.part(key)[i] = part[k]
    if pool.train:
        out.part("train")[:] = pool.part("train")
        out.take_over(pool)
    return out
