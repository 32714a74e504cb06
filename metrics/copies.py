"""Copies: which synthetic volumes are copies of single training volumes, mirrored or moved, too."""
from functools import partial

import numpy as np

from metrics import copy_features, copy_search, random_features, utility
from metrics.statistic import Statistic
from metrics.volume_sets import short_list
from utils.escaping import cell

COMPARED = ("real", "synthetic")    # sets whose volumes are compared with the training set
PLANTED = 8         # copies that are made to see whether the search finds them
RESULT = "copies"   # key of Pool.results
COLUMNS = ("set", "id", "source", "ratio", "flagged", "mirrored", "shift", "source_by_features",
           "ratio_of_features")


def copies_statistic(pool, options):
    """The share of copies, and which volumes they are."""
    matches = _best_matches(pool, options)
    by_features = _feature_matches(pool, matches, options)
    ratios = {name: np.array([match.ratio if match else 1.0 for match in found])
              for name, found in matches.items()}
    threshold = float(copy_search.threshold(ratios["real"]))
    pool.results[RESULT] = matches, by_features, threshold
    planted, found = len(ratios["planted"]), int((ratios["planted"] < threshold).sum())
    usable = int((~copy_search.is_real_copy(ratios["real"])).sum())
    ratio = over_pool(pool, np.concatenate([ratios[name] for name in COMPARED]))
    return Statistic(
        key="copies", name="copies of a training volume, share flagged",
        definition="share of volumes that are far closer to one training volume than to any of "
                   "another subject: the ratio of the two distances (1 − correlation, at the best "
                   f"of mirror images and shifts of up to {copy_search.MAX_SHIFT} voxels, whatever "
                   f"the contrast) is below {threshold:.3g}, which is 0.8 times the least ratio of "
                   f"the {usable} real volumes that are not in the training set, but at most "
                   f"{copy_search.HIGHEST_FLAGGED}. Power: of {planted} training volumes that were "
                   "mirrored, shifted, given 0.8 times the contrast and 5% noise, the same search "
                   f"flagged {found}",
        target="0", compute=partial(_share_flagged, ratio), has_ceiling=False, has_interval=False,
        test=None, details={
            "threshold": threshold, "planted": planted, "planted_found": found,
            "ratios": {name: ratios[name].tolist() for name in COMPARED},
            "feature_ratios": {name: _feature_ratios(by_features[name]) for name in COMPARED},
            "planted_auc": _planted_auc(ratios, by_features),
            "flagged": _flagged(pool, matches["synthetic"], threshold),
            "warnings": _real_copies(pool, ratios["real"])})


# ----------------------------------------------------------------------------------- the search

def _best_matches(pool, options):
    """{"real", "synthetic" or "planted": copy_search.Match of each volume, or None}."""
    search = pool.once(("search for copies", options.device), ("train",), partial(
        copy_search.CopySearch, pool.part("train"), pool.train.subjects, options.device))
    return _searched(pool, options, "matches", "search for copies",
                     lambda name, volumes, callback: search.best_matches(volumes, callback))


def _feature_matches(pool, matches, options):
    """{"real", "synthetic" or "planted": FeatureMatch of each volume, or None}.

    :param matches: of `_best_matches`
    """
    if pool.side < random_features.SMALLEST_SIDE:
        return {name: [None] * len(found) for name, found in matches.items()}
    scores = pool.once(("feature scores", options.device), ("train",), partial(
        copy_features.FeatureScores, pool.part("train"), options.device))
    return _searched(pool, options, "feature matches", "features of copies",
                     lambda name, volumes, callback: scores.matches(volumes, matches[name],
                                                                    callback))


def _searched(pool, options, what, label, compute):
    """{"real", "synthetic" or "planted": what is found for its volumes}.

    :param compute: (name, volumes, callback) -> list
    """
    planted = pool.once(("planted copies", options.seed), ("train",), partial(
        _planted_copies, pool.part("train"), options.seed))
    searched = {**{name: pool.part(name) for name in COMPARED}, "planted": planted}
    # planted copies depend on the training set alone
    keys = {name: (name, "train") if name in COMPARED else ("train",) for name in searched}
    found = pool.each_once((what, options.device, options.seed), label, {
        keys[name]: (len(volumes), partial(compute, name, volumes))
        for name, volumes in searched.items()})
    return {name: found[keys[name]] for name in searched}


# ------------------------------------------------------------------------------- what it found

def _feature_ratios(found):
    """Ratios by features; None where there is none."""
    return [match.ratio if match else None for match in found]


def _planted_auc(ratios, by_features):
    """{"correlation": …, "features": …}: how well each ratio tells planted copies from real
    volumes that are no copies themselves; None where there is nothing to tell."""
    others = ~copy_search.is_real_copy(ratios["real"])
    auc = {"correlation": None, "features": None}
    if not others.any() or not len(ratios["planted"]):
        return auc
    auc["correlation"] = _auc(ratios["planted"], ratios["real"][others])
    own, of_real = (_feature_ratios(by_features[name]) for name in ("planted", "real"))
    if None not in own + of_real:
        auc["features"] = _auc(np.array(own), np.array(of_real)[others])
    return auc


def _auc(of_copies, of_others):
    """Chance that a copy has a smaller ratio than another volume."""
    is_copy = np.arange(len(of_copies) + len(of_others)) < len(of_copies)
    return utility.area_under_curve(-np.concatenate([of_copies, of_others]), is_copy)


def _real_copies(pool, ratios):
    """A sentence if real volumes are themselves copies of training volumes."""
    copies = np.flatnonzero(copy_search.is_real_copy(ratios))
    if len(copies) == 0:
        return []
    rest = "the threshold of the search for copies leaves them out"
    if len(copies) == len(ratios):
        rest = (f"so the search for copies takes its highest threshold, "
                f"{copy_search.HIGHEST_FLAGGED}, and nothing shows how low a ratio can be "
                "by chance")
    ids = short_list([pool.sets["real"].ids[i] for i in copies])
    return [f"{len(copies)} of {len(ratios)} real volumes match a training volume as only a copy "
            f"or another scan of the same person does: {ids}; {rest}"]


def _planted_copies(volumes, seed):
    """Copies of random training volumes, which the search should find."""
    rng = np.random.default_rng([seed, 7])
    chosen = rng.choice(len(volumes), min(PLANTED, len(volumes)), replace=False)
    return [copy_search.planted_copy(volumes[i], rng) for i in np.sort(chosen)]


def _flagged(pool, matches, threshold):
    """The flagged synthetic volumes beside their sources, the clearest copy first."""
    flagged = [(match.ratio, i) for i, match in enumerate(matches)
               if match and match.ratio < threshold]
    out = []
    for _, i in sorted(flagged):
        match = matches[i]
        out.append({
            "volume": pool.sets["synthetic"].ids[i], "source": pool.train.ids[match.index],
            "ratio": match.ratio, "distance": match.distance, "mirrored": match.flip,
            "mirrored_axes": list(copy_search.FLIPS[match.flip]), "shift": list(match.shift)})
    return out


def _share_flagged(ratio, a, b):
    """Share of set b whose ratio lies below the threshold that set a gives, (R,)."""
    thresholds = copy_search.threshold(np.where(a > 0, ratio, np.inf))
    return (b * (ratio < thresholds[:, None])).sum(1) / b.sum(1)


def over_pool(pool, values):
    """Values of the real and synthetic volumes as values of the pool.

    Volumes that went through the VAE get 0: they are in no set here.
    """
    return np.pad(values, (0, pool.size - len(values)))


# ------------------------------------------------------------------------------------------ files

def copies_table(pool, options):
    """{file name: text}: what each volume matches best, a row per real and synthetic volume."""
    if RESULT not in pool.results:
        return {}
    matches, by_features, threshold = pool.results[RESULT]
    lines = ["\t".join(COLUMNS)]
    for name in COMPARED:
        for key, match, other in zip(pool.sets[name].ids, matches[name], by_features[name]):
            cells = [name, cell(key)] + ["n/a"] * 7
            if match:
                cells[2:7] = [cell(pool.train.ids[match.index]), f"{match.ratio:.4g}",
                              "yes" if match.ratio < threshold else "no", match.flip or "no",
                              ",".join(map(str, match.shift))]
            if other:
                cells[7:] = [cell(pool.train.ids[other.index]), f"{other.ratio:.4g}"]
            lines.append("\t".join(cells))
    return {"copies.tsv": "\n".join(lines) + "\n"}
