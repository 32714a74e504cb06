"""Memorization: how close synthetic volumes come to the training set, compared with real ones."""
from dataclasses import dataclass
from functools import partial

import numpy as np

from metrics import ms_ssim
from metrics.copies import COMPARED, copies_statistic, over_pool
from metrics.mmd import gram
from metrics.options import NotComputed
from metrics.statistic import Statistic
from utils.progress import counter

CLOSE_SHARE = 0.05  # share of real volumes that are closer to the training set than the threshold


# ----------------------------------------------------------------------- similarity and distance

def correlations(x, y, **options):
    """Pearson correlation over all voxels of each of x with each of y.

    :param x: (N, D, D, D); uint8 stands for [0, 1]
    :param y: (M, D, D, D)
    :param options: of `gram`
    :return: (N, M)
    """
    voxels = np.prod(x.shape[1:])
    mean_x, std_x = _mean_and_std(x)
    mean_y, std_y = _mean_and_std(y)
    covariance = gram(x, y, **options) / voxels - np.outer(mean_x, mean_y)
    return np.clip(covariance / np.outer(std_x, std_y), -1, 1)


def _mean_and_std(volumes):
    """Mean and standard deviation of the voxels of each volume; uint8 stands for [0, 1]."""
    scale = 255.0 if volumes.dtype == np.uint8 else 1.0
    mean = np.array([v.mean(dtype=np.float64) for v in volumes])
    std = np.array([v.std(dtype=np.float64) for v in volumes])
    return mean / scale, std / scale


def close_threshold(distances, share=CLOSE_SHARE):
    """The distance below which this share of similar volumes would lie.

    A percentile without bias, however few distances there are: it is number share (n + 1) of the
    n distances in order, interpolated between two (Weibull), and the smallest if there is none so
    low. So the share of similar volumes below it is about max(share, 1 / (n + 1)).
    """
    return np.percentile(distances, 100 * share, method="weibull")


def share_closer(query, reference, a, b, share=CLOSE_SHARE):
    """Share of one weighted set whose distance lies below the `close_threshold` of another's.

    :param query: (N,) distances of the pool, those of set b are compared with the threshold
    :param reference: (N,) distances of the pool, those of set a determine the threshold
    :param a, b: (R, N) weights, whole numbers in a
    :return: (R,)
    """
    shares = np.empty(len(a))
    for r, (weights_a, weights_b) in enumerate(zip(a.astype(int), b)):
        threshold = close_threshold(np.repeat(reference, weights_a), share)
        shares[r] = weights_b @ (query < threshold) / weights_b.sum()
    return shares


# -------------------------------------------------------------------------------------- statistic

@dataclass(frozen=True)
class Nearest:
    """The training volume nearest to each real and synthetic volume, by one measure."""
    key: str                    # in metrics.json
    measure: str                # in reports
    definition: str
    similarity: np.ndarray      # (N,)
    index: np.ndarray           # (N,), of the volume in the training set


def check_training_set(pool, options):
    """Raises NotComputed if the training set is not given."""
    if pool.train is None:
        raise NotComputed("the training set is not known; name it with --train DIR")


def memorization_statistics(pool, options):
    """How close each real and synthetic volume comes to the training set.

    By correlation, and by MS-SSIM among the most correlated training volumes.
    """
    correlation = _correlations_with_training_set(pool, options)
    found = [Nearest(
        "correlation", "correlation",
        "Pearson correlation over all voxels with the most correlated training volume",
        correlation.max(1), correlation.argmax(1))]
    if pool.side >= ms_ssim.MIN_SIDE:
        found.append(_nearest_by_ms_ssim(pool, correlation, options))
    statistics = []
    for nearest in found:
        statistics += [_similarity_statistic(pool, nearest), _copied_statistic(pool, nearest)]
    return statistics + [copies_statistic(pool, options)]


def _correlations_with_training_set(pool, options):
    """Of the real and synthetic volumes, (N, M)."""
    def of_set(name, callback):
        return correlations(pool.part(name), pool.part("train"), memory_gb=options.memory_gb / 2,
                            device=options.device, callback=callback)

    found = pool.each_once(
        ("correlation", options.device), "correlations with training volumes: voxels",
        {(name, "train"): (pool.side ** 3, partial(of_set, name)) for name in COMPARED})
    return np.concatenate(list(found.values()))


def _nearest_by_ms_ssim(pool, correlation, options):
    """The most similar training volume by MS-SSIM, among the most correlated ones.

    :param correlation: (N, M) of the real and synthetic volumes with the training volumes
    """
    count, trained = correlation.shape
    kept = min(options.shortlist, trained)
    shortlist = np.argsort(-correlation, axis=1, kind="stable")[:, :kept]
    values = _ms_ssim_with_shortlist(pool, shortlist, options)
    definition = f"MS-SSIM, `{options.protocol}`, with the most similar training volume"
    if kept < trained:
        definition += f" of the {kept} most correlated"
    return Nearest("ms_ssim", "MS-SSIM", definition, values.max(1),
                   shortlist[np.arange(count), values.argmax(1)])


def _ms_ssim_with_shortlist(pool, shortlist, options):
    """MS-SSIM of the real and synthetic volumes with training volumes.

    Of what is not known yet, in one call: both sets share what is computed of a training volume.

    :param shortlist: (N, K) indices of training volumes
    :return: (N, K)
    """
    what = ("MS-SSIM", options.protocol, options.device, shortlist.shape[1])
    new = [name for name in COMPARED if not pool.knows(what, (name, "train"))]
    rows = np.concatenate([pool.index(name) for name in new]) if new else np.empty(0, int)
    trained = pool.index("train")[shortlist[rows]]
    pairs = np.stack([np.repeat(rows, shortlist.shape[1]), trained.reshape(-1)], axis=1)
    with counter("MS-SSIM with training volumes", len(pairs)) as update:
        values = ms_ssim.ms_ssim_pairs(
            pool.volumes, options.protocol, pairs, memory_gb=options.memory_gb / 2,
            device=options.device, callback=update).reshape(trained.shape)
    ends = np.cumsum([len(pool.sets[name]) for name in new])
    computed = dict(zip(new, np.split(values, ends)))
    return np.concatenate([pool.once(what, (name, "train"), partial(computed.get, name))
                           for name in COMPARED])


def _similarity_statistic(pool, nearest):
    """Mean similarity to the nearest training volume."""
    of_volumes = {name: nearest.similarity[pool.index(name)].tolist()
                  for name in ("real", "synthetic")}
    threshold = float(close_threshold(1 - np.array(of_volumes["real"])))
    return Statistic(
        key=f"nearest_{nearest.key}", name=f"nearest training volume, {nearest.measure}",
        definition=f"{nearest.definition}, mean; well above that of the real volumes: copied, or "
                   "smoother than real volumes, which brings any volume closer",
        target="real", compute=partial(_mean_similarity, over_pool(pool, nearest.similarity)),
        has_ceiling=False, details={"of_volumes": of_volumes, "threshold": threshold},
        nearest=nearest.index[pool.index("synthetic")])


def _copied_statistic(pool, nearest):
    """Share of volumes that come closer to the training set than real volumes do."""
    n = len(pool.sets["real"])
    distance = 1 - over_pool(pool, nearest.similarity)
    return Statistic(
        key=f"copied_{nearest.key}", name=f"closer than 95% of real, {nearest.measure}",
        definition=f"share of volumes whose distance (1 − {nearest.measure}) to the nearest "
                   f"training volume lies below the 5th percentile of the {n} real volumes "
                   "(below the smallest, with fewer than 19); the target is what volumes similar "
                   "to the real ones have",
        target=f"{max(CLOSE_SHARE, 1 / (n + 1)):.3g}",
        compute=partial(share_closer, distance, distance), has_ceiling=False, is_share=True)


def _mean_similarity(similarity, real, other):
    return other @ similarity / other.sum(1)
