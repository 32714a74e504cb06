"""metrics.json in words: report.md, a self-contained report.html, and lines for the terminal."""
from pathlib import Path

from mri.origin import describe
from reporting.blocks import (
    Bullets,
    Heading,
    Paragraph,
    Picture,
    Table,
    html_page,
    markdown_page,
)
from reporting.published import published_blocks
from reporting.rounding import number, with_range, with_span
from reporting.structures import main_entries, structure_blocks
from utils.escaping import code, markup, sentence
from utils.files import write_text
from utils.skipped import by_reason, lines_of_skipped

CAPTIONS = {
    # file: caption
    "montage.png":
        "One of {real} real and one of {synthetic} synthetic volumes, three views at three depths.",
    "gallery.png":
        "The center slices of up to eight volumes of each set, of {real} real and {synthetic} "
        "synthetic ones.",
    "intervals.png":
        "The numbers (red), each with its 95% interval if it has one, next to its floor (gray: two "
        "random halves of the real set), the same number with as few synthetic subjects as the "
        "floor has (orange), "
        "and, with --vae, its ceiling (blue and green: real volumes after the VAE).",
    "structures.png":
        "How much the volumes of structures differ between {synthetic} synthetic and {real} real "
        "volumes: Cohen's d with its 95% interval.",
    "outlines.png":
        "The structures that the network found in one of {real} real and one of {synthetic} "
        "synthetic volumes. Outlines that miss what they should follow make the numbers of anatomy "
        "worthless.",
    "smoothness.png":
        "Gradient energy in each direction, relative to the real set. Above 1: rougher than real; "
        "below 1: smoother. Gray: the floor, between two halves of the real set.",
    "fid.png": "FID of subsets of N volumes against 1/N, and its extrapolation to N = ∞.",
    "copies.png":
        "The clearest copies, up to four, beside the training volumes that they match, which are "
        "mirrored and moved as found, with their difference as a share of the intensity range.",
    "nearest.png":
        "The synthetic volumes, of {synthetic}, that come closest to one of {train} training "
        "volumes, next to it, with their difference as a share of the intensity range.",
    "distances.png":
        "Distance to the nearest of {train} training volumes, of {synthetic} synthetic and {real} "
        "held-out real volumes. A "
        "curve to the left of the real one can mean copying, or volumes that are smoother or less "
        "diverse than real ones: look at the pairs.",
}


def write_report(folder, content, viewers=()):
    """Writes report.md and report.html.

    :param folder: folder of the evaluation, whose figures/ are written already
    :param content: what metrics.json holds
    :param viewers: of viewer.make_viewers
    """
    folder = Path(folder)
    blocks = report_blocks(content, folder / "figures", viewers)
    write_text(folder / "report.md", markdown_page(blocks))
    write_text(folder / "report.html",
               html_page(blocks, folder / "figures", "MosaicDiT evaluation"))


def report_blocks(content, figures, viewers=()):
    """The report of an evaluation as a list of blocks.

    :param content: what metrics.json holds
    :param figures: folder of its figures, already written
    :param viewers: of viewer.make_viewers
    """
    entries = main_entries(content["metrics"])
    layouts = sorted({layout for entry in entries.values() for layout in entry.get("vae", {})})
    blocks = [Heading(1, "Evaluation"), _table_of_sets(content)]
    blocks += [Paragraph(f"**Warning:** {sentence(warning)}.") for warning in content["warnings"]]
    blocks.append(Heading(2, "Numbers"))
    if entries:
        blocks.append(_table_of_numbers(entries, layouts))
    if "copies" in entries:
        blocks += _copies(entries["copies"], content["sets"])
    blocks += [_not_computed(titles, reason)
               for reason, titles in by_reason(content["skipped"]).items()]
    if entries:
        blocks += [Bullets(_notes(content, layouts)), Heading(2, "What each number is"),
                   Bullets(_definitions(entries))]
    blocks += structure_blocks(content["metrics"], layouts)
    if "by_class" in content:
        blocks += by_class_blocks(content)
    for viewer in viewers:
        blocks += [Heading(2, viewer.heading), viewer]
    blocks.append(Heading(2, "Pictures"))
    n = {name: found["n"] for name, found in content["sets"].items()}
    blocks += [Picture(file, caption.format(**{"train": 0, **n}))
               for file, caption in CAPTIONS.items() if (Path(figures) / file).is_file()]
    blocks += published_blocks(content)
    return blocks + [Heading(2, "How it was computed"), Bullets(_provenance(content))]


# ---------------------------------------------------------------------------------- parts of it

def _mean_and_range(found):
    if not found:
        return "–"
    return with_range(found["mean"], found["low"], found["high"])


def _table_of_sets(content):
    rows = []
    for name, found in content["sets"].items():
        voxels = " × ".join(f"{size:.3g}" for size in found["voxel_mm"])
        rows.append([name, code(found["path"]), found["split"] or "–", str(found["n"]),
                     str(found["subjects"]), f"{content['size']}³", voxels])
    return Table(["set", "folder", "split", "volumes (N)", "subjects", "size", "voxels, mm"], rows)


def _table_of_numbers(entries, layouts):
    """A row per number: value and interval, target, p, floor, ceiling."""
    tested = any("p" in entry for entry in entries.values())
    rows = []
    for entry in entries.values():
        value, span = with_span(entry["value"], entry.get("interval"))
        target = entry["aim"]
        if "target" in entry:
            target = "real: " + "".join(with_span(*_own(entry["target"])))
        p = [number(entry.get("p"), 2), number(entry.get("p_adjusted"), 2)] if tested else []
        ceilings = [number(entry.get("vae", {}).get(layout)) for layout in layouts]
        rows.append([entry["name"], f"**{value}**{span}", target, *p,
                     _mean_and_range(entry.get("floor")),
                     _mean_and_range(entry.get("at_floor_n")), *ceilings])
    head = ["metric", "synthetic [95% interval]", "target", *(["p", "p, adjusted"] * tested),
            "floor: two halves of real", "synthetic, as few subjects"]
    return Table(head + [f"ceiling: real after VAE, {layout}" for layout in layouts], rows)


def _not_computed(titles, reason, where=""):
    """A line as the terminal shows it, see utils/skipped.py."""
    return Paragraph(f"**{markup(where + ', '.join(titles))}**: not computed, {sentence(reason)}.")


def _own(target):
    return target["value"], target.get("interval")


def _copies(entry, sets):
    """Each flagged synthetic volume beside its source, and what the search would have found."""
    n, trained = sets["synthetic"]["n"], sets["train"]["n"]
    power = (f"The same search found {entry['planted_found']} of {entry['planted']} copies that "
             "were made of training volumes, mirrored, shifted by up to 3 voxels, with 0.8 times "
             "the contrast and 5% noise.")
    auc = entry.get("planted_auc", {})      # none in evaluations of earlier versions
    if auc.get("features") is not None:
        power += (" Against real volumes, their ratios have an AUC of "
                  f"{number(auc['correlation'], 3)}; ratios of features of a random 3D network, "
                  f"which flag nothing, {number(auc['features'], 3)} (`copies.tsv`).")
    warnings = [Paragraph(f"**Warning:** {sentence(warning)}.")
                for warning in entry.get("warnings", ())]
    if not entry["flagged"]:
        return [*warnings, Paragraph(
            f"**No copies found**: none of {n} synthetic volumes is far closer to one of {trained} "
            f"training volumes than to all others. {power} It does not see copies of parts of a "
            "volume, or copies that are deformed.")]
    rows = [[code(found["volume"]), code(found["source"]), number(found["ratio"], 2),
             found["mirrored"] or "no", ", ".join(f"{step:+d}" for step in found["shift"])]
            for found in entry["flagged"]]
    head = ["synthetic volume", "training volume", "ratio of distances", "mirrored",
            "shift, voxels"]
    return [
        *warnings,
        Paragraph(f"**Warning: {len(rows)} of {n} synthetic volumes look like copies of one of "
                  f"{trained} training volumes**: the ratio of the distances to the nearest and "
                  f"the second nearest one is below {number(entry['threshold'], 2)}. {power}"),
        Table(head, rows)]


def by_class_blocks(content):
    """A table with each number for each class and overall."""
    classes = content["by_class"]
    names = list(classes)
    keys = dict.fromkeys(key for found in (content, *classes.values())
                         for key in main_entries(found["metrics"]))
    rows = []
    for key in keys:
        entries = [found["metrics"].get(key, {}) for found in (content, *classes.values())]
        title = next(entry["name"] for entry in entries if entry)
        rows.append([title, *("".join(with_span(entry.get("value"), entry.get("interval")))
                              for entry in entries)])
    head = ["metric", "overall", *(f"{markup(name)} ({classes[name]['n']['real']} real, "
                                   f"{classes[name]['n']['synthetic']} synthetic)"
                                   for name in names)]
    lines = [_not_computed(titles, reason, f"{', '.join(of)}: ")
             for (of, reason), titles in _skipped_by_class(content).items()]
    return [Heading(2, "By class"), Table(head, rows), *lines]


def _skipped_by_class(content):
    """{(classes, reason): titles} of what is not computed for some classes alone."""
    classes_of = {}     # {(title, reason): classes}
    for name, found in content["by_class"].items():
        for title, reason in found["skipped"].items():
            if title not in content["skipped"]:
                classes_of.setdefault((title, reason), []).append(name)
    together = {}
    for (title, reason), names in classes_of.items():
        together.setdefault((tuple(names), reason), []).append(title)
    return together


def _notes(content, layouts):
    """How to read the table of numbers."""
    settings, notes = content["settings"], []
    entries = main_entries(content["metrics"]).values()
    notes += _note_on_intervals([entry for entry in entries if "interval" in entry],
                                settings["bootstrap"])
    tested = [entry for entry in entries if "p" in entry]
    if tested:
        notes.append(
            "*p*: how often a difference at least as large appears if both sets come from one "
            "distribution. From permutations of the subjects between the sets, with one volume per "
            "subject; for the difference in MS-SSIM, from Student's t.")
        notes.append(
            f"*p, adjusted*: for {len(tested)} numbers (Holm). Even for a perfect generator, one "
            "in twenty p is below 0.05 and one in twenty intervals misses its target, so many "
            "reports have one; the chance that any *adjusted* p is below 0.05 is at most 5%.")
    notes.append(
        "*Floor*: the same number between two random halves of the real set, which is what even a "
        "perfect generator gets with as few subjects. Mean (lowest … highest) over random splits "
        "by subject.")
    notes.append(
        "*Synthetic, as few subjects*: real against synthetic, with as many subjects on each side "
        "as in the floor. Compare it with the floor: a number that is biased at small N is higher "
        "in both.")
    if layouts:
        psnr = ", ".join(f"{layout} {value:.2f} dB"
                         for layout, value in content["vae_psnr_db"].items())
        notes.append(
            "*Ceiling*: the real volumes after a round trip through the VAE "
            f"({code(settings['vae'])}), the best that samples can reach with it. `rgb` against "
            "`gray` shows what it costs to store three slices in the three colors of a pixel. MMD, "
            "FID and KID are lower than they would be for other subjects, because the subjects are "
            f"the same. PSNR of the round trip: {psnr}.")
    return notes


def _note_on_intervals(entries, replicates):
    """What the intervals are of which there are some; a list.

    :param entries: that have an interval
    """
    of_splits = "corrected resampled t over splits of the subjects"
    over_splits = ["splits" in entry for entry in entries]
    if not entries:
        return []
    if all(over_splits):
        return [f"*Interval*: 95%, {of_splits}."]
    usefulness = f"; of usefulness, {of_splits}" if any(over_splits) else ""
    return [
        f"*Interval*: 95%, from {replicates} bootstrap replicates over subjects, or Student's t "
        "with the jackknife's error where a set has fewer than 50 subjects; of shares, "
        f"beta-binomial{usefulness}. It is for the average over many evaluations with as many "
        "volumes. Distances of two sets have none, as none covers what it says near 0: they have "
        "a p."]


def _definitions(entries):
    """What each number is; those that are computed alike share a line."""
    names = {}
    for entry in entries.values():
        names.setdefault(entry["how"], []).append(entry["name"])
    return [f"**{'; '.join(same)}**: {definition}." for definition, same in names.items()]


def _provenance(content):
    """Version, seed, device and weights."""
    settings = content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    commit = content.get("git_commit")
    lines = [f"MosaicDiT {content['mosaicdit_version']}{f', commit {commit}' if commit else ''}, "
             f"{versions}",
             f"{content.get('date', 'date not recorded')}, seed {settings['seed']}, device "
             f"{settings['device']}"]
    for name, found in content["sets"].items():
        if found.get("made_by"):
            lines.append(f"{name} set: {markup(', '.join(describe(found['made_by'])))}")
    weights = next((entry["weights"] for entry in content["metrics"].values()
                    if "weights" in entry), None)
    if weights:
        lines.append(f"Inception weights {code(weights['file'])}, SHA-256 {weights['sha256']}")
    networks = [entry["network"] for entry in content["metrics"].values() if "network" in entry]
    for name, sha256 in dict.fromkeys((found["name"], found["sha256"]) for found in networks):
        lines.append(f"network of features {code(name)}, SHA-256 {sha256}")
    return lines + ["every number, setting and id: `metrics.json`"]


def terminal_lines(content):
    """The numbers, and what was not computed, as lines for the terminal."""
    entries = main_entries(content["metrics"]).values()
    width = max([len(entry["name"]) for entry in entries], default=0)
    lines = []
    for entry in entries:
        value, span = with_span(entry["value"], entry.get("interval"))
        line = f"{entry['name']:{width}} {value:>10}{span}"
        if "target" in entry:
            line += "   real " + "".join(with_span(*_own(entry["target"])))
        if "p" in entry:
            line += f"   p {number(entry['p'], 2)}, adjusted {number(entry['p_adjusted'], 2)}"
        lines.append(line)
    copies = content["metrics"].get("copies", {})
    lines += [f"warning: {warning}" for warning in copies.get("warnings", [])]
    for found in copies.get("flagged", []):
        lines.append(f"warning: {found['volume']} looks like a copy of the training volume "
                     f"{found['source']}")
    return lines + lines_of_skipped(content["skipped"], "not computed")
