"""An evaluation as a whole: all numbers of the sets, of each class, and what metrics.json says."""
from dataclasses import dataclass
from pathlib import Path

from metrics import by_class, statistic
from metrics.options import NotComputed
from metrics.orientation import orientation_warnings
from metrics.overlap import overlap_warnings
from utils.errors import UserError
from utils.files import read_json

FORMAT = "mosaicdit-evaluation"
FORMAT_VERSION = 1
NO_EFFECT = ("output", "update", "device", "memory_gb")  # settings that change no number


@dataclass(frozen=True)
class Numbers:
    """What was computed for two sets."""
    entries: dict       # {key: entry of metrics.json}
    skipped: dict       # {title: why it was not computed}
    nearest: dict       # {key: for each synthetic volume, the index of the nearest training volume}


def measure(metrics, pool, options, replicates, permutations):
    """Computes all numbers.

    :param metrics: list of registry.Metric
    :param pool: statistic.Pool, loaded
    :param options: MetricOptions
    :param replicates: of the bootstrap
    :param permutations: of the subjects
    :return: Numbers
    """
    resampled = statistic.resamples(pool, replicates, options.seed, permutations)
    entries, skipped, nearest = {}, dict(resampled.missing), {}
    for metric in metrics:
        try:
            for found in metric.statistics(pool, options):
                entries[found.key] = statistic.summarize(found, pool, resampled)
                if found.nearest is not None:
                    nearest[found.key] = found.nearest
        except NotComputed as e:
            skipped.update({metric.titles[name]: str(e) for name in metric.chosen(options.names)})
    statistic.add_adjusted_p(entries)
    return Numbers(entries, skipped, nearest)


def measure_classes(names, metrics, pool, options, replicates, permutations, folder):
    """The same for each class alone.

    :param names: of the classes
    :param folder: for temporary files
    :return: {class: {"n": {"real": …, "synthetic": …}, "metrics": …, "skipped": …}}
    """
    out = {}
    for name in names:
        n = by_class.counts(pool, name)
        reason = by_class.reason_to_skip(n, options.mmd_batch)
        if reason:
            out[name] = {"n": n, "metrics": {}, "skipped": {"everything": reason}}
            continue
        own = by_class.class_pool(pool, name, options.memory_gb, folder)
        found = measure(metrics, own, options, replicates, permutations)
        out[name] = {"n": n, "metrics": found.entries, "skipped": found.skipped}
    return out


def require_some(chosen_by_name, entries, skipped):
    """Raises UserError if nothing that was asked for by name can be computed.

    :param chosen_by_name: names that --metrics was given; None: it was not given
    :param entries: what is computed
    :param skipped: {title: why it is not}
    """
    if chosen_by_name and not entries:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in skipped.items())
        raise UserError(f"--metrics {' '.join(chosen_by_name)}: nothing can be computed; {reasons}")


def warnings_of(pool):
    """What makes numbers misleading, and what was decided while volumes were read, as sentences.

    :param pool: statistic.Pool, loaded
    """
    sets = [found for found in (*pool.sets.values(), pool.train) if found]
    lines = [line for found in sets for line in (*found.warnings, *found.notes())]
    return [*dict.fromkeys(lines), *overlap_warnings(pool), *orientation_warnings(pool)]


# ----------------------------------------------------------------------------------- description

def describe_set(found):
    """A set as metrics.json holds it.

    :param found: VolumeSet
    """
    out = {"path": found.path, "split": found.split, "n": len(found),
           "subjects": len(set(found.subjects)), "ids": found.ids,
           "voxel_mm": [round(float(size), 4) for size in found.voxel_sizes]}
    if found.made_by:
        out["made_by"] = found.made_by
    return out


def summary_of_set(found):
    """What is compared, as a line for the terminal."""
    split = ""
    if found.split and found.flag != "--train":
        split = f", split {found.split} ({found.flag}-split chooses)"
    elif found.split:
        split = f", split {found.split}"
    return (f"{found.flag} {found.path}: {len(found)} volumes of {len(set(found.subjects))} "
            f"subjects{split}")


def is_evaluation(path):
    """Whether a folder holds an evaluation."""
    try:
        content = read_json(Path(path) / "metrics.json")
        sets = content["sets"].values()
        return (content["format"] == FORMAT and isinstance(content["settings"], dict)
                and all(isinstance(found, dict) for found in sets))
    except (UserError, OSError, AttributeError, KeyError, TypeError):
        return False


def differences(path, sets, settings):
    """What differs between an evaluation that exists and one that is asked for, as phrases.

    :param path: folder of the former
    :param sets: {"real": of `describe_set`, …} of the latter
    :param settings: of the latter, as metrics.json holds them
    :return: list; empty if it would be the same
    """
    old = read_json(Path(path) / "metrics.json")
    found = []
    for name in sorted({*sets, *old["sets"]}):
        was, now = old["sets"].get(name, {}), sets.get(name, {})
        if was.get("ids") != now.get("ids"):
            found.append(f"{name}: {was.get('n', 0)} volumes, now {now.get('n', 0)}"
                         + (" others" if was.get("n") == now.get("n") else ""))
        elif was.get("made_by") != now.get("made_by"):
            found.append(f"{name}: another recipe")
        elif was != now:
            found.append(f"{name}: another folder, split or geometry")
    for name in sorted({*settings, *old["settings"]} - {*NO_EFFECT}):
        if settings.get(name) != old["settings"].get(name):
            found.append(f"--{name.replace('_', '-')}")
    return found
