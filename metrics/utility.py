"""Usefulness: whether what a classifier learns from synthetic volumes holds for real ones.

A small network learns a label from real volumes, from synthetic ones, and from both, and is tested
on real subjects that it has not seen; repeated over random splits of the real subjects.
"""
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from metrics import labels, small_network
from metrics.options import NotComputed
from metrics.statistic import Statistic
from utils.progress import progress

SPLITS = 10
TEST_SHARE = 1 / 3      # of the real subjects, or of those of each class
MIN_SUBJECTS = 3        # of a class, in the real set
TRAINED_ON = ("real", "synthetic", "both")


@dataclass(frozen=True)
class Labels:
    """Labels of both sets as targets; volumes without one are left out."""
    kept: dict                  # {"real": indices of volumes with a label, "synthetic": …}
    targets: dict               # {"real": (n,) class indices or numbers, …}
    classes: tuple              # names; () for numbers

    @property
    def outputs(self):
        return max(1, len(self.classes))


# ---------------------------------------------------------------------------------------- labels

def check_label(pool, options):
    """Raises NotComputed if the label is not named, or cannot be learned on these sets."""
    read_labels(pool, options.utility)


def why_not_by_class(options):
    """Why the volumes of one class have no usefulness; None if they have one."""
    if options.utility == labels.CLASS:
        return "as it needs volumes of two classes"
    return None


def read_labels(pool, label):
    """The Labels of the real and the synthetic set.

    :raises NotComputed: a set does not record the label, or has one class only
    """
    if label is None:
        raise NotComputed("no label to learn; name one with --utility LABEL, such as class")
    found = {name: labels.labels_of(pool.sets[name], label) for name in ("real", "synthetic")}
    for name, values in found.items():
        if values is None:
            raise NotComputed(f"--{name} {pool.sets[name].path} does not record {label} of its "
                              "volumes")
    kept = {name: np.array([i for i, value in enumerate(values) if value is not None])
            for name, values in found.items()}
    known = {name: [values[i] for i in kept[name]] for name, values in found.items()}
    if labels.are_numbers(known["real"] + known["synthetic"]):
        return _numbers(pool, label, kept, known)
    return _classes(pool, label, kept, known)


def _numbers(pool, label, kept, known):
    for name, values in known.items():
        if len(set(values)) < 2:
            raise NotComputed(f"--{name} {pool.sets[name].path} has one value of {label} only")
    subjects = len({pool.sets["real"].subjects[i] for i in kept["real"]})
    if subjects < 2 * MIN_SUBJECTS:
        raise NotComputed(f"--real has {subjects} subjects with {label}; at least "
                          f"{2 * MIN_SUBJECTS} are needed")
    return Labels(kept, {name: np.array(values, float) for name, values in known.items()}, ())


def _classes(pool, label, kept, known):
    classes = tuple(sorted({str(value) for values in known.values() for value in values}))
    for name, values in known.items():
        own = {str(value) for value in values}
        if len(own) < 2:
            raise NotComputed(f"--{name} {pool.sets[name].path} has one {label} only, "
                              f"{next(iter(own))}; nothing can be learned from it")
        if own != set(classes):
            raise NotComputed(f"--{name} {pool.sets[name].path} has no volume of {label} "
                              f"{', '.join(sorted(set(classes) - own))}")
    targets = {name: np.array([classes.index(str(value)) for value in values])
               for name, values in known.items()}
    subjects = np.array(pool.sets["real"].subjects)[kept["real"]]
    for k, one in enumerate(classes):
        n = len(set(subjects[targets["real"] == k]))
        if n < MIN_SUBJECTS:
            raise NotComputed(f"--real has {n} subjects of {label} {one}; at least "
                              f"{MIN_SUBJECTS} are needed")
    return Labels(kept, targets, classes)


# ---------------------------------------------------------------------------------------- splits

def split_subjects(subjects, targets, is_class, seed):
    """Volumes to train on and to test on, by subject; each class is split alike.

    A subject whose volumes are of several classes counts as one of its first.

    :param subjects, targets: (N,)
    :return: two arrays of indices
    """
    names, first = np.unique(subjects, return_index=True)
    strata = np.asarray(targets)[first] if is_class else np.zeros(len(names))
    rng = np.random.default_rng(seed)
    tested = []
    for stratum in np.unique(strata):
        members = rng.permutation(names[strata == stratum])
        tested.extend(members[:max(1, round(TEST_SHARE * len(members)))])
    is_tested = np.isin(subjects, tested)
    return np.flatnonzero(~is_tested), np.flatnonzero(is_tested)


def corrected_interval(values, test_over_train, level=0.95):
    """Corrected resampled t interval of a mean over splits (Nadeau and Bengio 2003, eq. 9).

    Splits share subjects, so the plain standard error is far too small; the variance of the mean is
    taken as (1 / J + tested over trained) s².

    :param values: (J,), of the splits
    :param test_over_train: subjects tested over subjects trained on
    """
    values = np.asarray(values, float)
    variance = (1 / len(values) + test_over_train) * values.var(ddof=1)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.sqrt(variance)
    return [float(values.mean() - half), float(values.mean() + half)]


# ---------------------------------------------------------------------------------------- scores

def area_under_curve(scores, positive):
    """Area under the ROC curve: share of pairs in the right order, ties counted half.

    :param scores: (N,)
    :param positive: (N,) bool
    """
    ranks = stats.rankdata(scores)
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def class_scores(probabilities, targets):
    """{"AUC", "balanced accuracy"}; with more than two classes the mean AUC of each against the
    others.

    :param probabilities: (N, classes)
    :param targets: (N,) class indices, each present
    """
    present = range(probabilities.shape[1])
    areas = [area_under_curve(probabilities[:, k], targets == k) for k in present]
    right = probabilities.argmax(1) == targets
    return {"AUC": float(np.mean(areas)),
            "balanced accuracy": float(np.mean([right[targets == k].mean() for k in present]))}


def number_scores(predictions, targets):
    """{"R²", "MAE"}; R² is against the mean of what is tested, so it can be negative."""
    residual = np.square(predictions - targets).sum()
    return {"R²": float(1 - residual / np.square(targets - targets.mean()).sum()),
            "MAE": float(np.abs(predictions - targets).mean())}


# ------------------------------------------------------------------------------------- statistic

def utility_statistics(pool, options):
    """What a small network learns from real, synthetic and both, tested on real subjects."""
    known = read_labels(pool, options.utility)
    for name, kept in known.kept.items():
        missing = len(pool.sets[name]) - len(kept)
        if missing:
            print(f"utility: {missing} of {len(pool.sets[name])} {name} volumes have no "
                  f"{options.utility}, and are left out", flush=True)
    scores, ratio = scores_of_splits(pool, known, options.seed, options.device)
    return _statistics(known, scores, ratio, options.utility, pool.side)


def scores_of_splits(pool, known, seed, device="cpu"):
    """Scores of networks trained on each set, for each split.

    :return: {trained on: {score: list over splits}}; subjects tested over subjects trained on
    """
    x = {name: small_network.network_input(pool.part(name)[kept])
         for name, kept in known.kept.items()}
    subjects = np.array(pool.sets["real"].subjects)[known.kept["real"]]
    score = class_scores if known.classes else number_scores
    out = {name: {} for name in TRAINED_ON}
    ratios = []
    for split in progress(range(SPLITS), "utility, splits"):
        trained, tested = split_subjects(subjects, known.targets["real"], bool(known.classes),
                                         [seed, 9, split])
        _check_tested(known.targets["real"][tested], len(known.classes))
        ratios.append(len(set(subjects[tested])) / len(set(subjects[trained])))
        for name in TRAINED_ON:
            volumes, targets = _training_set(name, x, known.targets, trained)
            predict = small_network.train(volumes, targets, known.outputs,
                                          seed * SPLITS + split, device)
            found = score(predict(x["real"][tested]), known.targets["real"][tested])
            for key, value in found.items():
                out[name].setdefault(key, []).append(value)
    return out, float(np.mean(ratios))


def _check_tested(targets, classes):
    """Raises NotComputed if a third of the subjects does not show what was learned.

    Subjects whose volumes are of several classes are split by the first.

    :param targets: of the volumes that are tested
    :param classes: number of classes; 0: targets are numbers
    """
    if len(set(targets.tolist())) < max(2, classes):
        raise NotComputed(
            "a random third of the real subjects does not have "
            f"{'a volume of every class' if classes else 'two values'} to be tested on; "
            "more subjects are needed")


def _training_set(name, x, targets, trained):
    """Volumes and targets of one set to train on."""
    real = x["real"][trained], targets["real"][trained]
    synthetic = x["synthetic"], targets["synthetic"]
    if name == "both":
        return torch.cat([real[0], synthetic[0]]), np.concatenate([real[1], synthetic[1]])
    return real if name == "real" else synthetic


def _statistics(known, scores, ratio, label, side):
    main, other = ("AUC", "balanced accuracy") if known.classes else ("R²", "MAE")
    pooled = f", volumes averaged down to {small_network.SIDE}³" * (side > small_network.SIDE)
    text = (f"a small 3D network ({small_network.DESCRIPTION}{pooled}) learns {label} and is "
            "tested on a third of the real subjects, which it has not seen; mean over "
            f"{SPLITS} random splits by subject; interval: corrected resampled t (Nadeau and "
            "Bengio 2003)")

    def details(values, others):
        return {"label": label, "splits": [float(v) for v in values],
                "interval": corrected_interval(values, ratio),
                other: {"value": float(np.mean(others)),
                        "interval": corrected_interval(others, ratio)}}

    values = {name: np.array(scores[name][main]) for name in TRAINED_ON}
    others = {name: np.array(scores[name][other]) for name in TRAINED_ON}
    for name in TRAINED_ON:
        yield Statistic(
            key=f"utility_{name}", name=f"utility, {main} of {label}, trained on {name}",
            target="1", value=float(values[name].mean()), details=details(
                values[name], others[name]),
            definition=f"{text}. {other}: {_list_of_means(others)}")
    for name in TRAINED_ON[1:]:
        yield Statistic(
            key=f"utility_gap_{name}", name=f"utility, {main} of {label}, {name} − real",
            target="0", value=float((values[name] - values["real"]).mean()),
            details=details(values[name] - values["real"], others[name] - others["real"]),
            definition=f"difference of {main} from a network trained on real volumes alone, over "
                       "the same splits; an interval above or below 0: better or worse")


def _list_of_means(values):
    return ", ".join(f"{name} {np.mean(found):.3g}" for name, found in values.items())
