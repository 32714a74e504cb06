"""Quality control of a cohort: contact sheets and a table, so that a person finds the bad scan in one look.

    page-001.png …  axial, coronal, sagittal centre slices of each scan as it was prepared, its id and its warnings under it
    qc.tsv          a row a scan, those that were skipped too

The warnings are rules of thumb on the prepared cube (0…255) and the source's header; thresholds are the constants below.
"""
import csv
import io
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mri import geometry
from mri import preparation as prep
from utils.files import write_bytes, write_text

COLUMNS = ("id", "page", "shape", "spacing_mm", "orientation", "window", "background", "mean", "masked", "warnings")
NEAR = 12                # grey levels about the border's that count as background, 5 % of the window
EMPTY = 0.03             # part of the cube that is not background, at least
COARSE, THICK = 2.4, 3   # mm, of a voxel's shortest edge: a functional series' size; ratio of its longest edge to its shortest
COHORT = 5               # scans from which on one is compared with the others
FAR, LEVELS = 3.5, 2     # robust standard deviations (1.4826 MAD) from the median, with 2 grey levels as the least deviation
TURNED = 0.15            # by how much another orientation must agree better with the cohort's
BINS, SMALL = 32, 12     # of the histogram; side of the cube that is compared with the cohort's
ACROSS, DOWN, VIEW, TEXT = 4, 6, 112, 46  # of a page: scans across and down, pixels of a view and of the text under it


def is_masked(array):
    """Whether a scan's background is one value already, all around and a third of it: skull-stripped, or masked."""
    value, part = prep.border(array)
    return bool(part >= 0.9 and np.count_nonzero(array == value) >= 0.3 * array.size)


def look(cube, edges, masked):
    """What the sheets and the table need of one prepared scan; 40 kB.

    :param cube: (D, D, D) uint8, RAS
    :param edges: its voxel sizes, mm
    :param masked: `is_masked` of the source
    """
    level, _ = prep.border(cube)
    levels = np.arange(256)
    counts = np.array(Image.fromarray(cube.reshape(cube.shape[0], -1, order="A")).histogram())
    counts[abs(levels - level) <= NEAR] = 0                   # what is not background
    inside = max(1, counts.sum())
    side = cube.shape[0] * np.asarray(edges)
    pixels = np.maximum(1, np.rint(VIEW * side / side.max())).astype(int)
    views = []
    for axis in (2, 1, 0):                                     # axial, coronal, sagittal: left on the left, anterior right
        x, y = (a for a in range(3) if a != axis)
        image = Image.fromarray(np.rot90(np.moveaxis(cube, axis, 0)[cube.shape[axis] // 2]).copy())
        views.append(np.asarray(image.resize((pixels[x], pixels[y]), Image.Resampling.BILINEAR)))
    return dict(views=views, level=level, background=1 - counts.sum() / cube.size, mean=float(counts @ levels / inside),
                histogram=counts.reshape(BINS, -1).sum(1) / inside, small=geometry.resample(cube, (SMALL,) * 3), masked=masked)


def warnings_of(entries, looks):
    """For each scan the list of what is odd about it: its file, its picture, and it among the others."""
    found, coarse = [], mostly_coarse(entries)
    for entry, seen in zip(entries, looks):
        edges, said = geometry.voxel_sizes(entry["affine"]), list(entry.get("warnings", []))
        size = " x ".join(f"{e:.3g}" for e in edges)
        if 1 - seen["background"] < EMPTY:
            said.append(f"nearly empty: {100 * (1 - seen['background']):.2g} % of it is not background")
        if edges.min() >= COARSE and not coarse:
            said.append(f"looks like a 4D mean or another functional image: voxels of {size} mm")
        elif edges.max() >= THICK * edges.min():
            said.append(f"thick slices: voxels of {size} mm")
        if seen["level"] > 2 * NEAR:
            said.append(f"background is not dark: {seen['level']:.0f} of 255")
        if entry.get("mask") and seen["masked"]:
            said.append("already masked, before --mask")
        found.append(said)
    masked = sum(seen["masked"] for seen in looks)
    for said, seen in zip(found, looks):
        if len(looks) >= COHORT and seen["masked"] != (masked > len(looks) / 2) and masked * 2 != len(looks):
            said.append("already masked, most are not" if seen["masked"] else "not masked, most are")
    if len(looks) >= COHORT:
        means = np.array([seen["mean"] for seen in looks])
        cumulative = np.cumsum([seen["histogram"] for seen in looks], 1)
        moved = np.abs(cumulative - np.median(cumulative, 0)).sum(1) * 256 / BINS   # earth mover's distance, grey levels
        far_mean, far_histogram, turns = far(means, abs), far(moved, lambda d: d), turned([seen["small"] for seen in looks])
        for i, said in enumerate(found):
            if far_mean[i]:
                said.append(f"outlier against the cohort in mean: {means[i]:.0f}, the median is {np.median(means):.0f} of 255")
            if far_histogram[i]:
                said.append(f"outlier against the cohort in histogram: {moved[i]:.0f} grey levels off, others {np.median(moved):.0f}")
            if turns[i]:
                said.append(turns[i])
    return found


def mostly_coarse(entries):
    """Whether most scans of a cohort have voxels as large as a functional image's: then it is the cohort that is so, not a scan."""
    large = [geometry.voxel_sizes(e["affine"]).min() >= COARSE for e in entries]
    return len(entries) >= COHORT and sum(large) > len(large) / 2


def far(values, side):
    """Which values are outliers: more than FAR robust standard deviations from the median. `side` of abs or of itself."""
    away = values - np.median(values)
    return side(away) / max(LEVELS, 1.4826 * np.median(np.abs(away))) > FAR


def turned(cubes):
    """For each small cube, a warning when the cohort's median agrees clearly better with it in another axis order or direction.

    Left and right cannot be told apart so: a brain is nearly its own mirror image.
    """
    def normal(x):
        x = x.ravel() - x.mean()
        return x / max(np.linalg.norm(x), 1e-9)

    median, said = normal(np.median(cubes, 0)), []
    for cube in cubes:
        best, name, as_is = -1.0, "", float(normal(cube) @ median)
        for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
            agreement = float(normal(np.flip(cube.transpose(order), [a for a in range(3) if flips[a] < 0])) @ median)
            if agreement > best:
                best, name = agreement, "".join("RAS"[a] if flips[i] > 0 else "LPI"[a] for i, a in enumerate(order))
        said.append(f"looks turned: agrees with the cohort by {as_is:.2f}, but by {best:.2f} with its axes read as {name}"
                    if best - as_is > TURNED else "")
    return said


# ---------------------------------------------------------------------------------------------------- sheets and table

def write(folder, entries, looks, skipped):
    """Writes the contact sheets and qc.tsv into a folder.

    :param entries, looks: of the scans that were used: manifest entries, and what `look` gave
    :param skipped: {id: reason} of the others
    :return: "id: warnings" of each scan that has any
    """
    found = warnings_of(entries, looks)
    per_page = ACROSS * DOWN
    pages = -(-len(entries) // per_page)
    rows = []
    for page in range(pages):
        part = slice(page * per_page, (page + 1) * per_page)
        title = f"page {page + 1} of {pages}     axial, coronal, sagittal     left is on the left, anterior on the right"
        buffer = io.BytesIO()
        sheet([e["id"] for e in entries[part]], looks[part], found[part], title).save(buffer, "PNG", compress_level=1)
        write_bytes(Path(folder) / f"page-{page + 1:03d}.png", buffer.getvalue())
    for i, (e, seen, said) in enumerate(zip(entries, looks, found)):
        rows.append((e["id"], i // per_page + 1, "x".join(map(str, e["shape"])),
                     "x".join(f"{s:.4g}" for s in geometry.voxel_sizes(e["affine"])),
                     "".join(nib.aff2axcodes(np.array(e["affine"]))), "..".join(f"{w:.6g}" for w in e["window"]),
                     f"{seen['background']:.3f}", f"{seen['mean']:.1f}", "yes" if seen["masked"] else "no", "; ".join(said)))
    rows += [(name, *[""] * (len(COLUMNS) - 2), f"skipped: {reason}") for name, reason in skipped.items()]
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerows([COLUMNS, *(tuple(" ".join(str(cell).split()) for cell in row) for row in sorted(rows))])
    write_text(Path(folder) / "qc.tsv", text.getvalue())
    return [f"{e['id']}: {'; '.join(said)}" for e, said in zip(entries, found) if said]


def sheet(ids, looks, found, title):
    """One page as an image: scans row by row, three views each; a scan with warnings has a red frame."""
    width, height, top = 3 * (VIEW + 2) + 10, VIEW + TEXT + 8, 26
    page = Image.new("RGB", (ACROSS * width + 4, -(-len(ids) // ACROSS) * height + top + 4), (16, 16, 16))
    draw, font, small = ImageDraw.Draw(page), ImageFont.load_default(13), ImageFont.load_default(11)
    draw.text((8, 5), title, (190, 190, 190), font)
    for i, (name, seen, said) in enumerate(zip(ids, looks, found)):
        x, y = i % ACROSS * width + 4, i // ACROSS * height + top
        for k, view in enumerate(seen["views"]):
            page.paste(Image.fromarray(view).convert("RGB"), (x + 4 + k * (VIEW + 2) + (VIEW - view.shape[1]) // 2,
                                                              y + 3 + (VIEW - view.shape[0]) // 2))
        draw.text((x + 5, y + VIEW + 4), fit(name, width - 16, font), (235, 235, 235), font)
        for line, text in enumerate(wrap("; ".join(said), width - 16, small, 2)):
            draw.text((x + 5, y + VIEW + 20 + 12 * line), text, (255, 120, 90), small)
        if said:
            draw.rectangle((x, y, x + width - 5, y + height - 5), outline=(255, 70, 50), width=2)
    return page


def fit(text, width, font):
    """The text, or as much of it as is `width` pixels wide."""
    while font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def wrap(text, width, font, most):
    """The text in lines of `width` pixels, `most` of them."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    if len(lines) > most:
        lines[most - 1] = " ".join(lines[most - 1:])
    return [fit(line, width, font) for line in lines[:most]]
