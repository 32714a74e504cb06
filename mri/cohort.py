"""The scans that a command names, with their classes and the given sides of their split."""
from dataclasses import dataclass

from mri import covariates, labels, manifest, preparation, scan_formats, scans, split
from utils.errors import UserError


@dataclass(frozen=True)
class Cohort:
    """The scans of --input."""
    count: int              # without masks that lie among them
    usable: list            # those with a label, a Scan each
    labels: labels.Labels
    given: split.Split      # sides of the split that are given
    notes: list             # lines for a person
    warnings: list          # lines that a person should not miss
    covariates: covariates.Covariates | None    # None: the command names none


def find_cohort(source, choice, *, subject_pattern=None, id_pattern=None, mask=None,
                skull_strip=False, dicom=None, affine=None, orientation=None, label_table=None,
                label_column=None, covariate_names=(), split_from=None):
    """The scans of --input, their classes and given sides; what was found and left out.

    :param source: of --input
    :param choice: scan_search.Choice
    :param subject_pattern, id_pattern: see `scans.search`
    :param mask: pattern of the masks' paths; see `preparation.mask_paths`
    :param skull_strip: whether scans without a mask are skull-stripped
    :param dicom: dicom.Converted, what `source` became; None: it holds scans
    :param affine, orientation: what these flags say, for a warning where no scan needs them
    :param label_table, label_column: see `labels.read_labels`
    :param covariate_names: of --covariates, see `covariates.read_covariates`
    :param split_from: see `split.given_sides`
    :return: Cohort
    :raises UserError: no scans, more than a manifest holds, or labels that do not fit
    """
    def masks_of(cohort):
        return preparation.masks_of(mask, cohort)

    if dicom:
        found = dicom.search(choice, subject_pattern, id_pattern)
    else:
        found = scans.search(source, choice, subject_pattern, id_pattern, masks_of)
    count = len(found.scans)
    if count > manifest.MAX_VOLUMES:
        raise UserError(f"--input {source}: {count} scans, more than the {manifest.MAX_VOLUMES} "
                        "that a manifest holds; split the cohort")
    left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(found.left_out.items()))
    notes = [*found.notes,
             f"--input {source}: {count} scans of {len({scan.subject for scan in found.scans})} "
             f"subjects; left out: {left_out or 'nothing'}"]
    warnings = list(found.warnings)
    masked = sum(scan.mask is not None for scan in found.scans)
    if skull_strip and masked:
        notes.append(f"--skull-strip: {masked} of {count} scans have a mask in {source}, which is "
                     "used; take its column `mask` out to strip them, too")
    for flag, value, needs in (("affine", affine, scan_formats.needs_affine),
                               ("orientation", orientation, scan_formats.may_be_analyze)):
        if value and not any(needs(scan.path) for scan in found.scans):
            warnings.append(f"--{flag} {value}: not used, as every scan has its own affine")
    known = labels.read_labels(found.scans, label_table, label_column)
    usable = [scan for scan in found.scans if scan.id not in known.unlabeled]
    given = split.given_sides(usable, split_from) if usable else split.Split({})
    known_of = None
    if covariate_names and usable:
        known_of = covariates.read_covariates(usable, label_table, covariate_names)
        notes += known_of.notes
    return Cohort(count, usable, known, given, [*notes, *known.notes], warnings, known_of)
