"""An evaluation as a whole: all numbers of the sets, of each class, and what metrics.json says."""
from dataclasses import dataclass
from pathlib import Path

from metrics import by_class, registry, resampling, statistic, volume_sets
from metrics.options import NotComputed
from metrics.orientation import orientation_warnings
from metrics.overlap import overlap_warnings
from utils.errors import UserError
from utils.escaping import printable
from utils.files import read_json
from utils.flags import flag_of
from utils.skipped import lines_of_skipped

FORMAT = "mosaicdit-evaluation"
FORMAT_VERSION = 1
CHECKSUM = "sha256"     # of a set's voxels, in its description
CHANGED_FILES = {"anatomy_tables": "content of the tables of --anatomy-real, --anatomy-synthetic"}
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
    resampled = resampling.resamples(pool, replicates, options.seed, permutations)
    drawn = {None: resampled}       # {which volumes are counted: Resamples}
    entries, skipped, nearest = {}, dict(resampled.missing), {}
    for metric in metrics:
        try:
            for found in metric.statistics(pool, options):
                key = None if found.counted is None else found.counted.tobytes()
                if key not in drawn:
                    drawn[key] = resampling.resamples(pool, replicates, options.seed, permutations,
                                                      found.counted)
                    skipped |= _missing_of(metric, drawn[key], resampled)
                entries[found.key] = statistic.summarize(found, pool, drawn[key])
                if found.nearest is not None:
                    nearest[found.key] = found.nearest
        except NotComputed as e:
            skipped.update({metric.titles[name]: str(e) for name in metric.chosen(options.names)})
    statistic.add_adjusted_p(entries)
    return Numbers(entries, skipped, nearest)


def _missing_of(metric, own, resampled):
    """{title: why there is none} of what the volumes with a value are too few for, not all."""
    return {f"{what} of {', '.join(metric.titles)}": reason for what, reason in own.missing.items()
            if what not in resampled.missing}


def files_of(metrics, pool, options, numbers):
    """{file name: text} that metrics add to the output folder.

    :param metrics, pool, options: as `measure` took them
    :param numbers: what it returned
    """
    files = {}
    for metric in metrics:
        if metric.files and not set(metric.titles.values()) & set(numbers.skipped):
            files |= metric.files(pool, options)
    return files


def measure_classes(names, metrics, pool, options, replicates, permutations, folder):
    """The same for each class alone.

    :param names: of the classes
    :param folder: for temporary files
    :return: {class: {"n": {"real": …, "synthetic": …}, "metrics": …, "skipped": …}}
    """
    metrics, not_by_class = registry.of_one_class(metrics, options)
    for line in lines_of_skipped(not_by_class, "not computed by class"):
        print(printable(line), flush=True)
    out = {}
    for name in names:
        n = by_class.counts(pool, name)
        reason = by_class.reason_to_skip(n, options.mmd_batch)
        if reason:
            out[name] = {"n": n, "metrics": {}, "skipped": {"everything": reason}}
            continue
        own = by_class.class_pool(pool, name, options.memory_gb, folder)
        found = measure(metrics, own, options, replicates, permutations)
        out[name] = {"n": n, "metrics": found.entries,
                     "skipped": {**not_by_class, **found.skipped}}
    return out


def require_some(requested, entries, skipped):
    """Raises UserError if nothing that was asked for by name can be computed.

    :param requested: of `registry.requested`
    :param entries: what is computed
    :param skipped: {title: why it is not}
    """
    if requested and not entries:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in skipped.items())
        raise UserError(f"{' '.join(requested)}: nothing can be computed; {reasons}")


def require_named(requested, skipped, path):
    """Raises UserError if anything that was asked for by name is not among what was written.

    :param requested: of `registry.requested`
    :param skipped: {title: why it was not computed}
    :param path: of the evaluation
    """
    for request, names in requested.items():
        titles = registry.titles_of(names)
        reasons = "; ".join(f"{title}: {skipped[title]}" for title in titles if title in skipped)
        if reasons:
            what = "could not" if len(titles) == 1 else "not all could"
            raise UserError(f"{request}: {what} be computed; {reasons}. The others are in {path}")


def warnings_of(pool):
    """What makes numbers misleading, and what was decided while volumes were read, as sentences.

    :param pool: statistic.Pool, loaded
    """
    return [*warnings_of_sets(pool), *orientation_warnings(pool)]


def warnings_of_sets(pool):
    """The same of the sets as they are, without comparing how their volumes lie."""
    sets = [found for found in (*pool.sets.values(), pool.train) if found]
    lines = [line for found in sets for line in (*found.warnings, *found.notes())]
    return [*dict.fromkeys(lines), *overlap_warnings(pool)]


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


def announce(found, real):
    """Prints what a set is, as a line.

    :param found, real: VolumeSet; the latter is the real set
    :raises UserError: its volumes are not of the size of the real ones
    """
    print(printable(_summary_of_set(found)), flush=True)
    if found.side != real.side:
        raise UserError(f"{found.flag} {found.path}: volumes of {found.side} voxels a side, the "
                        f"real ones have {real.side}; preprocess both to one --size")


def _summary_of_set(found):
    split = ""
    if found.split and found.flag != "--train":
        split = f", split {found.split} ({found.flag}-split chooses another)"
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


def describe_sets(sets, pool):
    """Sets as metrics.json holds them, with checksums of their voxels.

    :param sets: {"real": VolumeSet, …}
    :param pool: statistic.Pool of them, loaded
    """
    return {name: {**describe_set(found), CHECKSUM: volume_sets.fingerprint(pool.part(name))}
            for name, found in sets.items()}


# ------------------------------------------------------------------------ an evaluation that exists

def changes(path, sets, settings, skipped):
    """What differs between an evaluation that exists and one that is asked for, as phrases.

    Volumes are read only if nothing else differs.

    :param path: folder of the former
    :param sets: {"real": VolumeSet, …} of the latter
    :param settings: of the latter, as metrics.json holds them
    :param skipped: {title: why it cannot be computed} of the latter
    :return: list; empty if it would be the same
    """
    old = read_json(Path(path) / "metrics.json")
    descriptions = {name: describe_set(found) for name, found in sets.items()}
    return (differences(old, descriptions, settings) or _now_computable(old, skipped)
            or _changed_voxels(old, sets))


def differences(old, sets, settings):
    """What differs in sets and settings, voxels aside, as phrases.

    :param old: content of the metrics.json that exists
    :param sets: {"real": of `describe_set`, …}
    :param settings: as metrics.json holds them
    """
    found = []
    for name in sorted({*sets, *old["sets"]}):
        was, now = old["sets"].get(name, {}), sets.get(name, {})
        if was.get("ids") != now.get("ids"):
            found.append(f"{name}: {was.get('n', 0)} volumes, now {now.get('n', 0)}"
                         + (" others" if was.get("n") == now.get("n") else ""))
        elif was.get("made_by") != now.get("made_by"):
            found.append(f"{name}: another recipe")
        elif {**was, CHECKSUM: None} != {**now, CHECKSUM: None}:
            found.append(f"{name}: another folder, split or geometry")
    for name in sorted({*settings, *old["settings"]} - {*NO_EFFECT}):
        if settings.get(name) != old["settings"].get(name):
            found.append(CHANGED_FILES.get(name, flag_of(name)))
    return found


def _now_computable(old, skipped):
    """What could not be computed then and can be now, as phrases."""
    lacked = old.get("skipped", {})
    return [f"{title} can be computed now" for title in registry.titles_of(registry.NAMES)
            if title in lacked and title not in skipped]


def _changed_voxels(old, sets):
    """Which sets hold other voxels than then, as phrases; reads all volumes."""
    found = []
    for name, volume_set in sets.items():
        recorded = old["sets"][name].get(CHECKSUM)
        if recorded is None:
            found.append(f"{name}: its voxels were not recorded by the earlier version")
        elif recorded != volume_sets.fingerprint(volume_sets.read_all(volume_set)):
            found.append(f"{name}: different voxels in volumes of the same names")
    return found
