"""Anatomy: do synthetic brains have structures of the size, and the variety, of real ones?

Volumes of 17 structures come from a segmentation network (`mri.structures`), or from tables of
SynthSeg, FreeSurfer or FastSurfer (`metrics.anatomy_tables`). Of voxels too coarse for structures,
three tissues by intensity stand in.
"""
from dataclasses import dataclass, field

import numpy as np

from metrics import anatomy_tables, structure_statistics, structure_volumes, tissue_volumes
from metrics.options import NotComputed
from metrics.statistic import Statistic
from mri import geometry, structures, tables
from utils.errors import UserError
from utils.escaping import cell, printable

MAX_VOXEL_MM = 2.0          # edge of a voxel; coarser ones do not show the small structures
MIN_LARGEST_PIECE = 0.99    # of a sound segmentation's brain
MAX_CAVITIES = 0.01         # of its volume
MIN_SCORE = 0.65            # of SynthSeg's QC (Billot et al. 2023, PNAS 120: e2216399120)
MIN_VOLUME_ML = 0.001       # one voxel of 1 mm, for logarithms
VENTRICLES = ("lateral_ventricle", "inferior_lateral_ventricle", "3rd_ventricle", "4th_ventricle",
              "csf")
RESULT = "anatomy"          # keys of Pool.results
OUTLINES = "outlines"
FAMILIES = ("volume", "share", "conditional")       # of the report's table of structures
MAX_ENTROPY = np.log2(1 + len(structures.STRUCTURES))   # bits


@dataclass(frozen=True)
class Anatomy:
    """What is known of the compared volumes of a pool."""
    names: tuple                # of the structures, K
    ml: np.ndarray              # (N, K); NaN where a volume has no row in its table
    source: str                 # where the volumes come from, a phrase
    is_sound: np.ndarray | None = None  # (N,) bool: passes the fixed limits; None: not known
    limits: str = ""            # those limits, a phrase
    doubtful: np.ndarray | None = None  # (N, L) values that may not exceed the real ones'
    asymmetry: np.ndarray | None = None     # (N,)
    has_ceiling: bool = True
    warnings: list = field(default_factory=list)

    @property
    def counted(self):
        """(N,) 1 of volumes whose structures are known, 0 of others."""
        return np.isfinite(self.ml).all(1).astype(float)

    def shares(self):
        """(N, K): of the brain, which is all structures but the ventricles."""
        tissue = [k for k, name in enumerate(self.names) if name not in VENTRICLES]
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.ml / self.ml[:, tissue].sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------- checks

def check_anatomy(pool, options):
    """Raises NotComputed if neither tables nor a network can be used; before volumes are read."""
    given = (options.anatomy_real, options.anatomy_synthetic)
    try:
        if any(given):
            if not all(given):
                raise UserError("--anatomy-real and --anatomy-synthetic go together: volumes of "
                                "two programs cannot be compared")
            _from_tables(pool, options)
        elif _largest_voxel(pool) <= MAX_VOXEL_MM:
            structures.find_network(options.meshnet)
    except UserError as e:
        raise NotComputed(str(e)) from None


def _largest_voxel(pool):
    """Longest edge of a voxel of either set, mm."""
    return max(float(np.max(found.voxel_sizes)) for found in pool.sets.values())


# -------------------------------------------------------------------------------------- measuring

def measured(pool, options):
    """The Anatomy of a pool, measured once.

    :raises NotComputed: see `check_anatomy`
    """
    if RESULT not in pool.results:
        if options.anatomy_real:
            pool.results[RESULT] = _from_tables(pool, options)
        elif _largest_voxel(pool) <= MAX_VOXEL_MM:
            pool.results[RESULT] = _from_network(pool, options)
        else:
            pool.results[RESULT] = _from_intensities(pool)
        for warning in pool.results[RESULT].warnings:
            print(f"anatomy: {printable(warning)}", flush=True)
    return pool.results[RESULT]


def _from_network(pool, options):
    folder = structures.find_network(options.meshnet)
    segmenter = structure_volumes.Segmenter(folder, options.device)
    parts = []
    for name, found in pool.sets.items():
        affines = [found.grid_of(i) for i in range(len(found))]
        parts.append(segmenter.measure_all(pool.part(name), affines, found.ids, found.path, name))
    pool.results[OUTLINES] = _outlines(pool, segmenter)
    values = np.concatenate(parts)
    count = len(structures.STRUCTURES)
    ml, quality = values[:, :count], dict(zip(structure_volumes.QUALITIES, values.T[count:]))
    entropy = np.nan_to_num(quality["entropy"], nan=MAX_ENTROPY)
    return Anatomy(
        structures.STRUCTURES, ml, f"segmented by the network {segmenter.name}",
        is_sound=((quality["largest_piece"] >= MIN_LARGEST_PIECE)
                  & (quality["cavities"] <= MAX_CAVITIES) & (ml > 0).all(1)),
        limits=(f"all structures are there, the brain's largest piece is at least "
                f"{MIN_LARGEST_PIECE:.0%} of it, cavities are at most {MAX_CAVITIES:.0%}, and "
                "neither the network's entropy nor the share of loose pieces exceeds that of real "
                "volumes"),
        doubtful=np.stack([entropy, quality["loose"]], axis=1),
        asymmetry=np.nan_to_num(quality["asymmetry"], nan=1.0))


def _outlines(pool, segmenter):
    """(heading, volume, labels) of one volume of each set, for the figure."""
    out = []
    for name in ("real", "synthetic"):
        found = pool.sets[name]
        i = len(found) // 2
        volume = pool.part(name)[i]
        labels = segmenter.segment(volume, found.grid_of(i)).labels
        out.append((f"{name} ({printable(found.ids[i])})", volume, labels))
    return out


def _from_intensities(pool):
    ml = np.concatenate([
        [tissue_volumes.tissue_volumes(volume, geometry.voxel_sizes(found.grid_of(i)))
         for i, volume in enumerate(pool.part(name))] for name, found in pool.sets.items()])
    return Anatomy(
        tissue_volumes.TISSUES, ml, "three tissues by intensity, of a skull-stripped T1 (Otsu)",
        warnings=[f"voxels of {_largest_voxel(pool):.3g} mm are too coarse for structures (at most "
                  f"{MAX_VOXEL_MM:g} mm), so fractions of three tissues are compared"])


def _from_tables(pool, options):
    found, notes, rows = {}, [], {}
    for name, paths in (("real", options.anatomy_real), ("synthetic", options.anatomy_synthetic)):
        found[name] = anatomy_tables.read_anatomy_tables(paths, f"--anatomy-{name}")
        rows[name], lines = anatomy_tables.match(pool.sets[name], found[name])
        notes += lines
        if sum(row is not None for row in rows[name]) < 2:
            ids = tables.some(pool.sets[name].ids)
            raise NotComputed(
                f"--anatomy-{name} {found[name].paths[0]}: its rows "
                f"({tables.some(found[name].volumes)}) are of fewer than 2 volumes of "
                f"{pool.sets[name].flag} ({ids}); name them alike")
    names = _structures_of_all(found, rows, notes)
    nothing = {key: np.nan for key in names}
    ml = np.full((pool.size, len(names)), np.nan)
    scores = np.full(pool.size, np.nan)
    for name, table in found.items():
        for i, row in zip(pool.index(name), rows[name]):
            ml[i] = [table.volumes.get(row, nothing).get(key, np.nan) for key in names]
            scores[i] = table.scores.get(row, np.nan)
    has_scores = all(table.scores for table in found.values())
    unscored = int((np.isfinite(ml[:, 0]) & ~np.isfinite(scores)).sum())
    if has_scores and unscored:
        notes.append(f"{unscored} volumes have no QC score, and count as not reliable")
    limits = f"all of SynthSeg's QC scores are at least {MIN_SCORE:g}" if has_scores else ""
    return Anatomy(names, ml, "from the tables of --anatomy-real and --anatomy-synthetic",
                   is_sound=scores >= MIN_SCORE if has_scores else np.ones(pool.size, bool),
                   limits=limits, doubtful=np.zeros((pool.size, 0)), has_ceiling=False,
                   warnings=notes)


def _structures_of_all(found, rows_of, notes):
    """Names of the structures that the rows of all volumes have.

    :param found: {set: AnatomyTable}
    :param rows_of: {set: row of each volume, or None}
    :raises NotComputed: none
    """
    rows = [table.volumes[row] for name, table in found.items() for row in rows_of[name] if row]
    names = tuple(key for key in structures.STRUCTURES if all(key in row for row in rows))
    missing = [key for key in structures.STRUCTURES if key not in names]
    if not names:
        raise NotComputed("no structure has a volume in every row of both tables of "
                          "--anatomy-real and --anatomy-synthetic")
    if missing:
        notes.append(f"{len(missing)} of {len(structures.STRUCTURES)} structures are missing in "
                     f"some row of the tables, and left out: {tables.some(missing)}")
    return names


# ------------------------------------------------------------------------------------- statistics

def anatomy_statistics(pool, options):
    """Numbers of all structures together, then rows of the table of structures."""
    found = measured(pool, options)
    if min(found.counted[pool.index(name)].sum() for name in ("real", "synthetic")) < 2:
        raise NotComputed("fewer than 2 volumes of a set have known structures")
    ml = np.nan_to_num(found.ml)
    both = np.concatenate([ml, np.nan_to_num(found.shares())], axis=1)
    logarithms = np.log(np.maximum(ml, MIN_VOLUME_ML))
    out = [
        _statistic(
            found, "anatomy_small_effects",
            "anatomy, share of small effects",
            f"Cohen's d below {structure_statistics.SMALL_EFFECT}, of {both.shape[1]} numbers: the "
            f"volumes of structures and their shares of the brain; {found.source}", "1",
            lambda a, b: _small_effects(structure_statistics.cohens_d(a, b, both)), test="lower",
            details={"warnings": found.warnings, "source": found.source,
                     "structures": list(found.names)}),
        _statistic(
            found, "anatomy_largest_effect", "anatomy, largest effect",
            "the largest of these, so that its p is one for all structures", "low",
            lambda a, b: _largest(structure_statistics.cohens_d(a, b, both)), test="upper"),
        _statistic(
            found, "anatomy_wasserstein", "anatomy, Wasserstein-2",
            "of Gaussians with the means and covariances of the sets' volumes of structures "
            "(Fréchet), in standard deviations within the sets, over the root of the number "
            "of structures",
            "low", lambda a, b: structure_statistics.wasserstein(a, b, ml), test="upper"),
        _statistic(
            found, "anatomy_covariance", "anatomy, agreement of covariances",
            "RV coefficient of the covariance matrices of the volumes, in standard deviations "
            "within the sets; 1: proportional", "1",
            lambda a, b: structure_statistics.covariance_agreement(a, b, ml), test="lower")]
    return out + _soundness(found, pool, logarithms) + _rows(found, pool, ml, logarithms)


def _statistic(found, key, name, definition, target, compute, **more):
    """A Statistic whose weights leave out volumes without known structures."""
    counted = found.counted
    some = None if counted.all() else counted > 0

    def of_known(a, b):
        a, b = a * counted, b * counted
        enough = np.minimum((a > 0).sum(1), (b > 0).sum(1)) >= 2
        out = np.full(len(a), np.nan)
        if enough.any():
            out[enough] = compute(a[enough], b[enough])
        return out

    more = {"has_interval": False, "has_ceiling": found.has_ceiling, **more}
    return Statistic(key=key, name=name, definition=definition, target=target, compute=of_known,
                     counted=some, **more)


def _small_effects(d):
    known = np.isfinite(d)
    small = (np.abs(np.nan_to_num(d, nan=np.inf)) < structure_statistics.SMALL_EFFECT).sum(1)
    return small / np.maximum(known.sum(1), 1)


def _largest(d):
    return np.abs(np.nan_to_num(d)).max(1)


def _soundness(found, pool, logarithms):
    """Share of reliable segmentations, and symmetry, where they are known."""
    out = []

    def reliable(a, b):
        inside = structure_statistics.within_range(a, logarithms, found.doubtful)
        return (b * (inside & found.is_sound)).sum(1) / b.sum(1)

    if found.is_sound is not None:
        limits = f"{found.limits}; " if found.limits else ""
        out.append(_statistic(
            found, "anatomy_reliable", "anatomy, share of reliable segmentations",
            f"{limits}volumes are in the range of the real set: in the prediction intervals of "
            "their logarithms, which a real volume leaves with a chance of "
            f"{structure_statistics.CHANCE_OUTSIDE:.0%}", "real", reliable,
            details={"unreliable": _unreliable(found, pool, reliable)}))
    if found.asymmetry is not None:
        asymmetry = found.asymmetry
        out.append(_statistic(
            found, "anatomy_asymmetry", "anatomy, asymmetry",
            "|left − right| / (left + right) of a structure's volume, mean over "
            f"{len(structure_volumes.SYMMETRIC)} structures and over volumes", "real",
            lambda a, b: b @ asymmetry / b.sum(1), has_interval=True))
    return out


def _unreliable(found, pool, reliable):
    """{"real": ids, "synthetic": ids} of volumes whose segmentation is not reliable."""
    out = {}
    for name in ("real", "synthetic"):
        single = np.zeros((len(pool.sets[name]), pool.size))
        single[np.arange(len(single)), pool.index(name)] = 1
        real = np.repeat(pool.weights("real") * found.counted, len(single), axis=0)
        known = found.counted[pool.index(name)] > 0
        shares = reliable(real, single)
        out[name] = [key for key, share, is_known in zip(pool.sets[name].ids, shares, known)
                     if is_known and share < 1]
    return out


def _rows(found, pool, ml, logarithms):
    """Cohen's d of each structure: of its volume, of its share of the brain, given the others."""
    shares = np.nan_to_num(found.shares())
    what = {
        "volume": ("volume, ml", ml, structure_statistics.cohens_d, True),
        "share": ("share of the brain", shares, structure_statistics.cohens_d, True),
        "conditional": ("given the others", logarithms, structure_statistics.d_given_the_others,
                        False)}
    means = {name: _means(found, pool, name, ml) for name in ("real", "synthetic")}
    out = []
    for family in FAMILIES:
        label, values, effect, has_interval = what[family]
        for k, name in enumerate(found.names):
            out.append(_statistic(
                found, f"anatomy_{family}_{name}", f"{structures.name_in_text(name)}, {label}, d",
                f"Cohen's d, synthetic − real, of {label}", "0",
                _effect_of_one(effect, values, k), has_interval=has_interval, family=family,
                details={"structure": name,
                         "mean_ml": {side: means[side][k] for side in means}}))
    return out


def _effect_of_one(effect, values, k):
    """Function of weights that gives one column's effect."""
    if effect is structure_statistics.cohens_d:
        return lambda a, b: effect(a, b, values[:, k:k + 1])[:, 0]
    return lambda a, b: effect(a, b, values)[:, k]


def _means(found, pool, name, ml):
    weights = (pool.weights(name) * found.counted)[0]
    return [float(x) for x in weights @ ml / weights.sum()]


# ------------------------------------------------------------------------------------------ files

def tables_of(pool, options):
    """{file name: text} of the volumes themselves, a row per volume, ml."""
    found = measured(pool, options)
    out = {}
    for name in ("real", "synthetic"):
        lines = ["\t".join(("id", *found.names))]
        for key, row in zip(pool.sets[name].ids, found.ml[pool.index(name)]):
            cells = ["n/a" if np.isnan(x) else f"{x:.3f}" for x in row]
            lines.append("\t".join((cell(key), *cells)))
        out[f"anatomy-{name}.tsv"] = "\n".join(lines) + "\n"
    return out
