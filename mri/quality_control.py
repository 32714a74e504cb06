"""Quality control of a cohort: what is odd about each scan, for a person to look at.

Writes qc.tsv, a row per scan with those that were skipped, and contact sheets (contact_sheet.py).
The warnings are rules of thumb about the prepared cube (0…255) and the source's header, with the
thresholds below. "Levels" are gray levels, 0…255.
"""
import csv
import hashlib
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from mri import axis_orders, contact_sheet, geometry, preparation
from utils import escaping
from utils.files import write_text

TABLE_NAME = "qc.tsv"
COLUMNS = ("id", "page", "shape", "spacing_mm", "orientation", "window", "background", "mean",
           "masked", "warnings")
BRAIN_COLUMNS = ("brain_ml", "overlap", "scaling")  # before the last, where a brain was outlined
MASKED_BORDER_FRACTION = 0.9      # of a masked scan's border that has one value
MASKED_BACKGROUND_FRACTION = 0.3  # of a masked scan's voxels that have it
BACKGROUND_LEVELS = 12            # around the border's level that count as background
MIN_FOREGROUND_FRACTION = 0.03    # of the cube that is not background
MAX_DARK_LEVEL = 24               # of a dark background
COARSE_VOXEL_MM = 2.4             # shortest edge of a voxel of a functional series
THICK_SLICE_RATIO = 3             # longest edge of a voxel over its shortest
MIN_COHORT_SCANS = 5              # below which scans are not compared with one another
OUTLIER_DEVIATIONS = 3.5          # robust standard deviations from the median
MAD_TO_DEVIATION = 1.4826         # standard deviation over median absolute deviation, normal values
MIN_DEVIATION_LEVELS = 2          # least standard deviation that is assumed
TURNED_MIN_GAIN = 0.15            # in correlation with the cohort, by another orientation
HISTOGRAM_BINS = 32
SMALL_CUBE_SIZE = 12              # side of the cube that is compared with the cohort's, voxels


@dataclass(frozen=True)
class ScanSummary:
    """What the table and the warnings need of one prepared scan; 3 kB, as all are in memory."""
    level: float             # most common level of the border
    background: float        # fraction of the cube
    mean: float              # level of what is not background
    histogram: np.ndarray    # (HISTOGRAM_BINS,) of what is not background, sum 1
    small: np.ndarray        # (SMALL_CUBE_SIZE,) * 3, uint8
    masked: bool             # whether the source was masked already
    digest: str = ""         # of the mosaic: equal for equal images


def is_masked(array):
    """Whether a scan's background has one value already: skull-stripped, or masked.

    :param array: (X, Y, Z), before any preparation
    """
    value, fraction = preparation.border(array)
    if fraction < MASKED_BORDER_FRACTION:
        return False
    return bool(np.count_nonzero(array == value) >= MASKED_BACKGROUND_FRACTION * array.size)


def digest_of(pixels):
    """SHA-256 of a mosaic in hex: equal for scans that show the same image."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def summarize(cube, masked, digest=""):
    """The ScanSummary of a prepared scan.

    :param cube: (D, D, D) uint8, RAS
    :param masked: `is_masked` of the source
    :param digest: `digest_of` its mosaic
    """
    level, _ = preparation.border(cube)
    levels = np.arange(256)
    # PIL counts faster than numpy.bincount; order "A": without a copy
    flat = Image.fromarray(cube.reshape(cube.shape[0], -1, order="A"))
    counts = np.array(flat.histogram())
    counts[abs(levels - level) <= BACKGROUND_LEVELS] = 0
    foreground = max(1, counts.sum())
    return ScanSummary(
        level=level,
        background=1 - counts.sum() / cube.size,
        mean=float(counts @ levels / foreground),
        histogram=counts.reshape(HISTOGRAM_BINS, -1).sum(1) / foreground,
        small=np.rint(geometry.resample(cube, (SMALL_CUBE_SIZE,) * 3)).astype(np.uint8),
        masked=masked,
        digest=digest)


# --------------------------------------------------------------------------------------- warnings

def find_warnings(entries, summaries):
    """What is odd about each scan: its file, its cube, and the cube among the others.

    :param entries: of the manifest
    :param summaries: ScanSummary of each
    :return: for each scan, a list of lines
    """
    cohort_is_coarse = is_mostly_coarse(entries)
    found = [_own_warnings(entry, summary, cohort_is_coarse)
             for entry, summary in zip(entries, summaries)]
    if len(summaries) >= MIN_COHORT_SCANS:
        for of_cohort in (_mask_warnings, _intensity_warnings, _orientation_warnings):
            for lines, more in zip(found, of_cohort(summaries)):
                lines.extend(more)
    return found


def _own_warnings(entry, summary, cohort_is_coarse):
    """Warnings about a scan that need no other scan."""
    voxel_sizes = geometry.voxel_sizes(entry["affine"])
    size_text = " x ".join(f"{size:.3g}" for size in voxel_sizes)
    lines = list(entry.get("warnings", []))
    foreground = 1 - summary.background
    if foreground < MIN_FOREGROUND_FRACTION:
        lines.append(f"nearly empty: {100 * foreground:.2g} % of it is not background")
    if voxel_sizes.min() >= COARSE_VOXEL_MM and not cohort_is_coarse:
        lines.append("looks like a 4D mean or another functional image: voxels of "
                     f"{size_text} mm")
    elif voxel_sizes.max() >= THICK_SLICE_RATIO * voxel_sizes.min():
        lines.append(f"thick slices: voxels of {size_text} mm")
    if summary.level > MAX_DARK_LEVEL:
        lines.append(f"background is not dark: {summary.level:.0f} of 255")
    if entry.get("mask") and summary.masked:
        lines.append("already masked, before --mask")
    return lines


def is_mostly_coarse(entries):
    """Whether most scans of a cohort have voxels as large as a functional image's.

    Then the cohort is so, and no single scan is odd.
    """
    coarse = [geometry.voxel_sizes(entry["affine"]).min() >= COARSE_VOXEL_MM for entry in entries]
    return len(entries) >= MIN_COHORT_SCANS and sum(coarse) > len(coarse) / 2


def _mask_warnings(summaries):
    masked_count = sum(summary.masked for summary in summaries)
    if masked_count * 2 == len(summaries):
        return [[] for _ in summaries]
    mostly_masked = masked_count > len(summaries) / 2
    line = "not masked, most are" if mostly_masked else "already masked, most are not"
    return [[line] if summary.masked != mostly_masked else [] for summary in summaries]


def _intensity_warnings(summaries):
    """Scans whose mean or histogram is far from the cohort's median."""
    means = np.array([summary.mean for summary in summaries])
    cumulative = np.cumsum([summary.histogram for summary in summaries], 1)
    # earth mover's distance to the median histogram, levels
    differences = np.abs(cumulative - np.median(cumulative, 0))
    distances = differences.sum(1) * 256 / HISTOGRAM_BINS
    mean_deviations = means - np.median(means)
    distance_deviations = distances - np.median(distances)
    far_mean = np.abs(mean_deviations) / _robust_deviation(mean_deviations) > OUTLIER_DEVIATIONS
    far_histogram = (distance_deviations / _robust_deviation(distance_deviations)
                     > OUTLIER_DEVIATIONS)
    found = [[] for _ in summaries]
    for i, lines in enumerate(found):
        if far_mean[i]:
            lines.append(f"outlier against the cohort in mean: {means[i]:.0f}, the median is "
                         f"{np.median(means):.0f} of 255")
        if far_histogram[i]:
            lines.append(f"outlier against the cohort in histogram: {distances[i]:.0f} gray levels "
                         f"off, others {np.median(distances):.0f}")
    return found


def _robust_deviation(deviations):
    """Standard deviation estimated from deviations from the median, levels."""
    return max(MIN_DEVIATION_LEVELS, MAD_TO_DEVIATION * np.median(np.abs(deviations)))


def _orientation_warnings(summaries):
    """Scans that agree clearly better with the cohort's median in another axis order or direction.

    Left and right cannot be distinguished this way: a brain is nearly its own mirror image.
    """
    median = np.median([summary.small for summary in summaries], 0)
    found = []
    for summary in summaries:
        cube = summary.small.astype(np.float32)
        as_is = axis_orders.all_orders(cube, median)[0].correlation
        best = axis_orders.best_order(cube, median)
        line = (f"looks turned: agrees with the cohort by {as_is:.2f}, but by "
                f"{best.correlation:.2f} with its axes read as {best.codes}")
        found.append([line] if best.correlation - as_is > TURNED_MIN_GAIN else [])
    return found


def find_twins(ids, digests):
    """Scans that show the same image: the same mosaic, whatever their files are called.

    :param digests: of the ScanSummary of each
    :return: list of lists of ids
    """
    by_digest = defaultdict(list)
    for scan_id, digest in zip(ids, digests):
        by_digest[digest].append(scan_id)
    return [same for digest, same in by_digest.items() if digest and len(same) > 1]


# ----------------------------------------------------------------------------------------- output

def write(folder, entries, summaries, skipped, view_paths, pictures):
    """Writes the contact sheets and qc.tsv into a folder.

    :param entries, summaries: of the scans that were used
    :param skipped: {id: reason} of the others
    :param view_paths: of each scan that was used, the path that `contact_sheet.write_views` wrote
    :param pictures: of each scan that was used, the path of its outlined picture, or None
    :return: "id: warnings" of each scan that has any
    """
    found = find_warnings(entries, summaries)
    ids = [entry["id"] for entry in entries]
    contact_sheet.write_pages(folder, ids, view_paths, found, pictures)
    of_brain = BRAIN_COLUMNS if any("brain_ml" in entry for entry in entries) else ()
    rows = [(*_row(entry, summary, contact_sheet.page_number(i)),
             *_brain_cells(entry)[:len(of_brain)], "; ".join(lines))
            for i, (entry, summary, lines) in enumerate(zip(entries, summaries, found))]
    columns = (*COLUMNS[:-1], *of_brain, COLUMNS[-1])
    for scan_id, reason in skipped.items():
        rows.append((scan_id, *[""] * (len(columns) - 2), f"skipped: {reason}"))
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(columns)
    for row in sorted(rows):
        table.writerow(map(escaping.cell, row))
    write_text(Path(folder) / TABLE_NAME, text.getvalue())
    return [f"{scan_id}: {'; '.join(lines)}" for scan_id, lines in zip(ids, found) if lines]


def _row(entry, summary, page):
    """A row of qc.tsv, without what is said of the brain, and without warnings."""
    return (
        entry["id"],
        page,
        "x".join(map(str, entry["shape"])),
        "x".join(f"{size:.4g}" for size in geometry.voxel_sizes(entry["affine"])),
        "".join(nib.aff2axcodes(np.array(entry["affine"]))),
        "..".join(f"{intensity:.6g}" for intensity in entry["window"]),
        f"{summary.background:.3f}",
        f"{summary.mean:.1f}",
        "yes" if summary.masked else "no")


def _brain_cells(entry):
    """What a row says in BRAIN_COLUMNS."""
    volume = f"{entry['brain_ml']:.0f}" if "brain_ml" in entry else ""
    registered = entry.get("registration")
    if not registered:
        return volume, "", ""
    low, _, high = registered["scaling"]
    return volume, f"{registered['overlap']:.3f}", f"{low:.3f}..{high:.3f}"
