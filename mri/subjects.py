"""Whose scan a file is, of which session and run, as its path tells.

Known are BIDS' entities, the names of public cohorts (PATTERNS) and FreeSurfer's SUBJECTS_DIR. The
file's name is asked first, then its folders from the nearest on.
"""
import re
from collections import Counter

from mri.scan_formats import stem

# BIDS allows letters and digits alone in sub-LABEL; dashes are common (sub-NDAR-INV01)
_BIDS = r"(?:^|(?<=[/_]))(sub-[A-Za-z0-9+]+(?:-(?!(?:ses|run)-)[A-Za-z0-9+]+)*)(?=[/_.-]|$)"

PATTERNS = (
    _BIDS,
    r"(?<![A-Za-z0-9])(\d{3}_S_\d{4,5})(?!\d)",                        # ADNI 003_S_0907
    r"(?<![A-Za-z0-9])(OAS\d_\d{4})(?!\d)",                            # OASIS-1 and -2 OAS1_0001
    r"(?<![A-Za-z0-9])(OAS\d{5})(?!\d)",                               # OASIS-3 and -4 OAS30001
    r"(?<![A-Za-z0-9])(IXI\d{3})(?!\d)",                               # IXI002-Guys-0828-T1
    r"(?<![A-Za-z0-9])(BraTS(?:20)?\d\d_(?:[A-Za-z0-9]+_)*?\d{3,5})(?!\d)",  # BraTS2021_00000_t1
    r"(?<![A-Za-z0-9])(BraTS-[A-Za-z]+-\d{5})(?!\d)",                  # BraTS-GLI-00000-000
)


def subject_of(parts):
    """The subject that a path names, or None.

    :param parts: of the path below the folder that was searched, that folder's own name first
    """
    for part in reversed(parts):
        for pattern in PATTERNS:
            found = re.search(pattern, part)
            if found:
                return found[1]
    if len(parts) >= 3 and parts[-2] == "mri":                         # FreeSurfer: bert/mri/T1.mgz
        return parts[-3]
    return None


def entity_of(parts, key):
    """A BIDS entity of a path such as "ses-1" for the key "ses", or None."""
    for part in reversed(parts):
        found = re.search(rf"(?:^|[_-])({key}-[A-Za-z0-9+]+)(?=[_.]|$)", part)
        if found:
            return found[1]
    return None


def shared_prefix_note(scans):
    """A warning where each file is its own subject although names share a beginning, or None.

    Names P01_v1, P01_v2, P02_v1 share P01; what all names begin with tells nothing.
    """
    if len({scan.subject for scan in scans}) < len(scans) or len(scans) < 3:
        return None
    names = [re.split(r"[_\-. ]+", stem(scan.path)) for scan in scans]
    if any(scan.subject != scan.id for scan in scans):
        return None                                                    # they were named
    while all(len(name) > 1 for name in names) and len({name[0] for name in names}) == 1:
        names = [name[1:] for name in names]
    count = Counter(name[0] for name in names if len(name) > 1)
    if len(count) < 2 or max(count.values()) < 2:
        return None
    prefix, number = count.most_common(1)[0]
    same = [scan.path.name for scan, name in zip(scans, names) if name[0] == prefix][:2]
    return (f"each of {len(scans)} files counts as its own subject, although names begin alike "
            f"({prefix}: {number} files, such as {same[0]} and {same[1]}); if they are of one "
            "person, say so by --subject-pattern, or both sides of the split may get that person")
