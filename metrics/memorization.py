"""."""

import numpy as np

from metrics import ms_ssim
from metrics.mmd import gram
from metrics.statistic import Statistic
from utils.progress import counter


def correlations(x, y, **options):
    """Pearson correlation over all voxels of each of x with each of y, (N, M).

    :param options: of `gram`
    """
    voxels = np.prod(x.shape[1:])
    moments = []
    for z in (x, y):
        scale = 255.0 if z.dtype == np.uint8 else 1.0
        moments.append((np.array([v.mean(dtype=np.float64) for v in z]) / scale, np.array([v.std(dtype=np.float64) for v in z]) / scale))
    (mx, sx), (my, sy) = moments
    return np.clip((gram(x, y, **options) / voxels - np.outer(mx, my)) / np.outer(sx, sy), -1, 1)


def near_threshold(distances, share=0.05):
    """The distance below which a share of volumes alike would lie: a percentile that is unbiased however few distances there are.

    It is number share (n + 1) of the n distances in order, between two by interpolation (Weibull), and the least where there is
    none so low: so the share of a set alike is about max(share, 1 / (n + 1)).
    """
    return np.percentile(distances, 100 * share, method="weibull")


def share_closer(query, reference, a, b, share=0.05):
    """Share of one weighted set whose distance lies below the `near_threshold` of another's.

    :param query: (N,) distances of the pool; `b` weights those that are judged
    :param reference: (N,) distances of the pool; `a` weights those that set the percentile
    :param a, b: (R, N) whole weights
    :return: (R,)
    """
    out = np.empty(len(a))
    for r, (u, v) in enumerate(zip(a.astype(int), b)):
        out[r] = v @ (query < near_threshold(np.repeat(reference, u), share)) / v.sum()
    return out


def memorization_statistics(pool, volumes, train, args):
    """How near each real and synthetic volume comes to the training set, the last of `volumes`.

    :return: statistics; {measure: (similarity to the nearest, its index) of each real and synthetic volume}
    """
    options = dict(memory_gb=args.memory_gb / 2, device=args.device)
    query, first = len(pool.sets["real"]) + len(pool.sets["synthetic"]), len(volumes) - len(train)
    with counter("correlations with training volumes", query) as update:
        correlation = correlations(volumes[:query], volumes[first:], callback=update, **options)
    near = {"correlation": (correlation.max(1), correlation.argmax(1))}
    how = {"correlation": "Pearson correlation over all voxels with the most correlated training volume"}
    if volumes.shape[1] >= ms_ssim.MIN_SIDE:
        keep = min(args.shortlist, len(train))
        columns = np.argsort(-correlation, axis=1, kind="stable")[:, :keep]
        pairs = np.stack([np.repeat(np.arange(query), keep), first + columns.reshape(-1)], axis=1)
        with counter("MS-SSIM with training volumes", len(pairs)) as update:
            values = ms_ssim.ms_ssim_pairs(volumes, args.protocol, pairs, callback=update, **options).reshape(query, keep)
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
                      more={"of_volumes": own, "threshold": float(near_threshold(1 - np.array(own["real"])))}),
            Statistic(f"copied_{key}", f"nearer than 95 % of real, {word}", f"share of volumes whose distance (1 − {word}) to the nearest "
                      f"training volume lies below the 5th percentile of the {n} real volumes' (below the least, with fewer than 19); the "
                      "aim is what volumes like the real ones have", f"{max(0.05, 1 / (n + 1)):.3g}",
                      lambda a, b: share_closer(1 - value, 1 - value, a, b), vae=False, share=True)]
