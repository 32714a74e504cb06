"""A data folder of many scans: its header, classes and split, written whole or added to."""
import contextlib
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from mri import (
    contact_sheet,
    conversion,
    covariates,
    geometry,
    manifest,
    meshnet,
    mosaic,
    mosaic_files,
    preparation,
    quality_control,
    scans,
    split,
    tables,
    template,
)
from utils import leftovers
from utils.errors import UserError
from utils.escaping import printable
from utils.files import remove_leftovers

ONE_CLASS = "all"            # name of the class where no labels are given
PRINTED_WARNINGS = 20        # about odd scans; the others are in qc.tsv
UNCOMPARED_KEYS = {"recipe", "dicom"}  # a name for other settings; where files came from
COMPARED_KEYS = ("size", "layout", "fit", "window_percentiles")  # of the header, on adding


@dataclass(frozen=True)
class SplitChoice:
    """How subjects are assigned to sides."""
    ratio: tuple             # (train, test)
    seed: int
    given: split.Split       # sides that are known
    stratify: bool = False   # keep the proportion within each class


@dataclass(frozen=True)
class Existing:
    """What a data folder holds already."""
    header: dict
    entries: list
    summaries: list          # ScanSummary of each
    folder: Path


@dataclass(frozen=True)
class SortedResults:
    """What became of the scans."""
    prepared: list           # of PreparedScan
    skipped: dict            # {scan id: reason}
    notes: list              # lines about files that are no scans


@dataclass(frozen=True)
class DataFolder:
    """What was written."""
    header: dict             # of the manifest
    entries: list
    skipped: dict            # {scan id: reason}
    odd: list                # lines about scans to look at
    notes: list              # lines for a person
    warnings: list           # lines that a person should not miss


# ---------------------------------------------------------------------------------------- writing

def sort_results(cohort, results, unlabeled):
    """What became of each scan.

    :param cohort: list of Scan
    :param results: PreparedScan or SkippedScan of each
    :param unlabeled: {scan id: reason} of scans that were not tried
    :return: SortedResults
    """
    prepared, skipped, no_scans = [], dict(unlabeled), []
    for scan, result in zip(cohort, results):
        if isinstance(result, conversion.PreparedScan):
            prepared.append(result)
        elif result.is_scan:
            skipped[scan.id] = result.reason
        else:
            no_scans.append(result.reason)
    notes = [f"left out: {len(no_scans)} files that are not scans", *no_scans] if no_scans else []
    shifted = sum("n4_shift" in result.entry for result in prepared)
    if shifted:
        notes.append(f"N4 was estimated on shifted intensities of {shifted} scans, which have "
                     "values below 0 (n4_shift in manifest.json)")
    return SortedResults(prepared, skipped, notes)


def write(folder, settings, results, labels, choice, existing=None, known=None):
    """Completes the entries, and writes manifest.json and qc/.

    :param settings: conversion.Settings
    :param results: SortedResults
    :param labels: labels.Labels
    :param choice: SplitChoice
    :param existing: Existing, whose volumes are kept as they are; None: there are none
    :param known: covariates.Covariates of the cohort; None: none are named
    :return: DataFolder
    :raises UserError: classes or sides that do not go together
    """
    kept = existing.entries if existing else []
    entries = [*kept, *(result.entry for result in results.prepared)]
    summaries = [*(existing.summaries if existing else []),
                 *(result.summary for result in results.prepared)]
    order = sorted(range(len(entries)), key=lambda i: entries[i]["id"])
    entries, summaries = [entries[i] for i in order], [summaries[i] for i in order]
    notes, warnings = [], list(choice.given.notes)
    names = _set_classes(entries, existing, labels, notes)
    twins = quality_control.find_twins([entry["id"] for entry in entries],
                                       [summary.digest for summary in summaries])
    warnings += [f"the same image under {len(same)} names: {', '.join(same)}; all are kept, on one "
                 "side of the split" for same in twins]
    _set_splits(entries, kept, twins, choice, names, notes, warnings)
    header = make_header(settings, entries, names)
    former = covariates.columns_from_json(existing and existing.header.get("covariates"), folder)
    columns = covariates.set_rows(entries, former, known, notes, warnings)
    header["covariates"] = [column.to_json() for column in columns]
    manifest.write_manifest(folder, header, entries)
    folders = [folder, existing.folder] if existing else [folder]
    pictures = [_picture_of(entry["id"], folders) for entry in entries]
    for entry in kept:
        _write_views(folder, existing, entry, settings.template_regions())
    view_paths = [contact_sheet.view_path(folder, entry["id"]) for entry in entries]
    odd = quality_control.write(folder / "qc", entries, summaries, results.skipped, view_paths,
                                pictures)
    shutil.rmtree(folder / contact_sheet.VIEWS_FOLDER)
    return DataFolder(header, entries, results.skipped, odd, notes, warnings)


def _picture_of(scan_id, folders):
    """Path of a scan's outlined picture in the first folder that has it, or None."""
    paths = [manifest.outline_path(folder, scan_id) for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def summary(output, written):
    """What was written, and the warnings about it, for a person.

    :param output: Path of the data folder
    :param written: DataFolder
    :return: lines, warnings
    """
    header, entries, odd = written.header, written.entries, written.odd
    side = mosaic.mosaic_side(header["size"], header["layout"])
    count = Counter(entry["split"] for entry in entries)
    counted = ", ".join(f"{count[name]} {name}" for name in manifest.SPLITS
                        if count[name] or name != "val")
    subjects = len({entry["subject"] for entry in entries})
    sizes = " x ".join(f"{size:.3g}" for size in geometry.voxel_sizes(header["affine"]))
    named = f" ({PRINTED_WARNINGS} named above)" if len(odd) > PRINTED_WARNINGS else ""
    lines = [*written.notes,
             f"{output}: {len(entries)} mosaics of {side} x {side} ({counted}, {subjects} "
             f"subjects, {len(header['classes'])} classes), voxels {sizes} mm",
             f"{output}/qc: {len(odd)} of {len(entries)} scans are odd{named}; look at the "
             "contact sheets, starting with page-001.png"]
    warnings = list(written.warnings)
    if quality_control.is_mostly_coarse(entries):
        warnings.append(f"most scans have voxels of {quality_control.COARSE_VOXEL_MM:g} mm or "
                        "more; are they anatomical?")
    return lines, [*warnings, *odd[:PRINTED_WARNINGS]]


def make_header(settings, entries, class_names):
    """The manifest's header: the geometry of the cohort, and how it was prepared."""
    grids = [preparation.prepared_grid(entry) for entry in entries]
    affine, source_shape, source_affine = geometry.cohort_grid(
        [shape for shape, _ in grids], [affine for _, affine in grids], settings.size,
        settings.fit)
    return {
        "size": settings.size, "layout": settings.layout,
        "grid": mosaic.grid_size(settings.size, settings.layout), "fit": settings.fit,
        "window_percentiles": list(settings.window), "affine": affine.tolist(),
        "source_shape": list(source_shape), "source_affine": source_affine.tolist(),
        "classes": class_names, "preparation": preparations_of(settings)}


def preparations_of(settings):
    """What the manifest says of the flags that were given, {flag: value}.

    :param settings: conversion.Settings
    """
    n4 = register = None
    if settings.n4 or settings.space:
        version = f"SimpleITK {preparation.load_sitk().Version_VersionString()}"
        n4 = version if settings.n4 else None
        register = f"{settings.space} by {version}" if settings.space else None
    brain = template.load_template(settings.template).name if settings.space else None
    crop = "brain" if settings.crop_to_brain else None
    network = meshnet.fingerprint(settings.meshnet) if settings.meshnet else None
    values = {
        "volume": settings.volume, "mask": settings.mask, "n4": n4, "skull_strip": network,
        "register": register, "template": brain,
        "field_of_view": settings.field_of_view and list(settings.field_of_view),
        "recipe": settings.recipe, "dicom": settings.series,
        "crop": crop,
        "crop_margin": settings.crop_margin if crop else None, "affine": settings.affine_source,
        "orientation": settings.orientation, "nan": "zero" if settings.nan_to_zero else None}
    return {key: value for key, value in values.items() if value is not None}


def _set_classes(entries, existing, labels, notes):
    """Gives each new entry its class; the names of the classes, by index.

    Classes that the folder has keep their numbers: models were trained with them. A class counts
    only if one of its scans could be used.
    """
    names = list(existing.header["classes"]) if existing else []
    new = [entry for entry in entries if "class" not in entry]
    used = {labels.label_of[entry["id"]] for entry in new}
    if existing and used and (names == [ONE_CLASS]) != (used == {ONE_CLASS}):
        raise UserError(f"--labels: the data folder has the classes {tables.some(names)}, the new "
                        f"scans {tables.some(sorted(used))}; label both or neither")
    added = sorted(used - set(names))
    if existing and added:
        notes.append(f"new classes, numbered after those that were there: {', '.join(added)}")
    names += added
    for entry in new:
        entry["class"] = names.index(labels.label_of[entry["id"]])
    return names


def _set_splits(entries, kept, twins, choice, names, notes, warnings):
    """Gives each new entry its side; subjects of kept entries, and their twins, stay on theirs."""
    given = dict(choice.given.side_of)
    given |= {entry["subject"]: entry["split"] for entry in kept}
    subject_of = {entry["id"]: entry["subject"] for entry in entries}
    classes = defaultdict(set)
    for entry in entries:
        classes[entry["subject"]].add(names[entry["class"]])
    class_of = {subject: tuple(sorted(found)) for subject, found in classes.items()}
    sides = split.split_subjects(
        subject_of.values(), choice.ratio, choice.seed, given,
        [{subject_of[scan_id] for scan_id in same} for same in twins],
        class_of if choice.stratify else None)
    for entry in entries:
        entry.setdefault("split", sides.side_of[entry["subject"]])
    warnings += sides.notes
    count = Counter(sides.side_of.values())
    counted = ", ".join(f"{count[side]} {side}" for side in manifest.SPLITS
                        if count[side] or side != "val")
    notes.append(f"split by subject: {counted}; asked for {choice.ratio[0]}:{choice.ratio[1]}"
                 + (f", {len(given)} sides were given" if given else ""))
    for index, name in enumerate(names):
        found = {entry["split"] for entry in entries if entry["class"] == index}
        lacking = [side for side in count if side not in found]
        if found and lacking:
            warnings.append(f"class {name!r} has no volume in the {' and the '.join(lacking)} "
                            "split; --stratify keeps classes in proportion")


# ----------------------------------------------------------------------------------------- adding

def read_existing(folder, settings):
    """What a data folder holds, if it was made with the same settings.

    :param folder: Path of --output
    :param settings: conversion.Settings
    :return: Existing; None where there is no data folder
    :raises UserError: it was made with other settings, or is damaged
    """
    if not (folder / manifest.FILE_NAMES[0]).is_file():
        return None
    header, entries = manifest.read_manifest(folder)
    wanted = {"size": settings.size, "layout": settings.layout, "fit": settings.fit,
              "window_percentiles": list(settings.window), **preparations_of(settings)}
    made_with = {**{key: header[key] for key in COMPARED_KEYS}, **header.get("preparation", {})}
    for key in sorted((wanted.keys() | made_with.keys()) - UNCOMPARED_KEYS):
        if wanted.get(key) != made_with.get(key):
            raise UserError(
                f"--output {folder}: exists already, a data folder made with other settings ({key} "
                f"{made_with.get(key)}, now {wanted.get(key)}); give those to add scans to it, or "
                "name a new folder")
    masked = _masked_in_table(folder / "qc" / quality_control.TABLE_NAME)
    return Existing(header, entries,
                    [_summarize(folder, header, entry, masked) for entry in entries], folder)


def _masked_in_table(path):
    """{scan id: whether it was masked} of an earlier qc.tsv; empty if that is gone."""
    try:
        return {row["id"]: row["masked"] == "yes" for row in tables.read_table(path).rows}
    except (OSError, KeyError, UserError):
        return {}


def _summarize(folder, header, entry, masked):
    """The ScanSummary of a volume that was prepared before."""
    pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, entry["id"]), header)
    cube = mosaic.untile(pixels, header["size"], header["layout"])
    was_masked = masked.get(entry["id"])
    if was_masked is None:
        was_masked = quality_control.is_masked(cube)
    return quality_control.summarize(cube, was_masked, quality_control.digest_of(pixels))


def _write_views(folder, existing, entry, regions):
    """Writes the picture of a volume that was prepared before into a new folder."""
    header = existing.header
    path = mosaic_files.mosaic_path(existing.folder, entry["id"])
    cube = mosaic.untile(mosaic_files.read_mosaic(path, header), header["size"], header["layout"])
    shape, affine = preparation.prepared_grid(entry)
    affine = geometry.cube_affine(shape, affine, header["size"], header["fit"])
    contact_sheet.write_views(contact_sheet.view_path(folder, entry["id"]), cube,
                              geometry.voxel_sizes(affine), regions)


def new_scans(cohort, existing, output):
    """The scans that a data folder does not hold; lines about those that it does.

    :param cohort: list of Scan
    :param existing: Existing
    :return: list of Scan; lines
    """
    if existing is None:
        return cohort, []
    known = {entry["id"]: entry for entry in existing.entries}
    new = [scan for scan in cohort if scan.id not in known]
    lines = [f"{output}: exists already: its {len(known)} volumes are kept as they are, "
             f"{len(known.keys() - {scan.id for scan in cohort})} of them not in --input; "
             f"{len(new)} scans are new"]
    same = [scan for scan in cohort if scan.id in known]
    moved = [scan.id for scan in same
             if known[scan.id].get("source") != printable(scans.real_path(scan.lasting_path))]
    if moved:
        lines.append(f"{output}: {len(moved)} volumes were made from files at other paths: "
                     f"{tables.some(moved)}")
    newer = [scan.id for scan in same if _is_newer(
        scan.lasting_path, mosaic_files.mosaic_path(output, scan.id))]
    if newer:
        lines.append(f"{output}: {len(newer)} scans changed after their volumes were made, which "
                     f"are kept: {tables.some(newer)}; for them, preprocess into a new folder")
    return new, lines


def _is_newer(path, than):
    try:
        return path.stat().st_mtime > than.stat().st_mtime
    except OSError:
        return False


@contextlib.contextmanager
def added_to(output):
    """Yields a temporary folder whose files are moved into a data folder on success.

    Mosaics first, the manifest last: whenever this is interrupted, the folder is what it was, or
    the whole new one.

    :param output: Path of the data folder
    """
    remove_leftovers(output, (output, None))
    temporary = Path(tempfile.mkdtemp(prefix=leftovers.prefix_of(output), dir=output))
    leftovers.claim(temporary)
    try:
        yield temporary
        for name in ("mosaics", "bias", "masks", "outlines", "dicom", "qc"):
            if (temporary / name).is_dir():
                (output / name).mkdir(exist_ok=True)
                for path in sorted((temporary / name).iterdir()):
                    os.replace(path, output / name / path.name)
        os.replace(temporary / manifest.FILE_NAMES[0], output / manifest.FILE_NAMES[0])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        leftovers.release(temporary)
