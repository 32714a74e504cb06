"""metrics.json in words: report.md, a self-contained report.html, and lines for the terminal."""
from pathlib import Path

from reporting.blocks import (
    Bullets,
    Heading,
    Paragraph,
    Picture,
    Table,
    html_page,
    markdown_page,
)
from utils.files import write_text

# All rows but the last are printed in the table of cDPM (Peng et al. 2023, "Generating Realistic
# Brain MRIs via a Conditional Diffusion Probabilistic Model"); the last row is from Y. Li,
# "Generating 3D Brain MRIs by Parameter Efficient Finetuning of Diffusion Transformer".
# N, MS-SSIM in %, MMD, FID-A, FID-C, FID-S; –: not printed
PUBLISHED = (
    ("3D-VAE-GAN", "500", "88.3", "5.15", "320", "247", "398"),
    ("3D-GAN-GP", "500", "81.0", "15.7", "141", "127", "281"),
    ("3D-α-WGAN", "500", "82.6", "13.2", "121", "116", "193"),
    ("CCE-GAN", "500", "81.5", "3.54", "69.4", "869", "191"),
    ("HA-GAN", "500", "36.8", "226", "477", "1090", "554"),
    ("3D-DPM", "500", "79.7", "15.2", "188", "–", "–"),
    ("cDPM", "500", "78.6", "3.14", "32.4", "45.8", "91.1"),
    ("finetuned DiT (the paper)", "32", "–", "–", "–", "279", "239"),
)
REAL_PUBLISHED = 78.5  # MS-SSIM of the paper's real volumes, %

CAPTIONS = {
    # file: caption
    "montage.png": "A real and a synthetic volume, three views at three depths.",
    "gallery.png": "The center slices of up to eight volumes of each set.",
    "intervals.png":
        "Every number (red) with its 95% interval, next to its floor (gray: two random halves of "
        "the real set), the same number with as few synthetic volumes as the floor has (orange), "
        "and, with --vae, its ceiling (blue and green: real volumes after the VAE).",
    "smoothness.png":
        "Gradient energy in each direction, relative to the real set. Above 1: rougher than real; "
        "below 1: smoother. Gray: the floor, between two halves of the real set.",
    "fid.png": "FID of subsets of N volumes against 1/N, and its extrapolation to N = ∞.",
    "nearest.png":
        "The four synthetic volumes that come closest to a training volume, next to it.",
    "distances.png":
        "Distance to the nearest training volume, of N synthetic and N held-out real volumes. A "
        "curve to the left of the real one can mean copying, or volumes that are smoother or less "
        "diverse than real ones: look at the pairs.",
}


def write_report(folder, content):
    """Writes report.md and report.html.

    :param folder: folder of the evaluation, whose figures/ are written already
    :param content: what metrics.json holds
    """
    folder = Path(folder)
    blocks = report_blocks(content, folder / "figures")
    write_text(folder / "report.md", markdown_page(blocks))
    write_text(folder / "report.html",
               html_page(blocks, folder / "figures", "MosaicDiT evaluation"))


def report_blocks(content, figures):
    """The report of an evaluation as a list of blocks.

    :param content: what metrics.json holds
    :param figures: folder of its figures, already written
    """
    entries = content["metrics"]
    layouts = sorted({layout for entry in entries.values() for layout in entry.get("vae", {})})
    blocks = [Heading(1, "Evaluation"), _table_of_sets(content)]
    blocks += [Paragraph(f"**Warning:** {warning}.") for warning in content["warnings"]]
    blocks.append(Heading(2, "Numbers"))
    if entries:
        blocks.append(_table_of_numbers(entries, layouts))
    blocks += [Paragraph(f"**{title}** was not computed: {reason}.")
               for title, reason in content["skipped"].items()]
    if entries:
        blocks += [Bullets(_notes(content, layouts)), Heading(2, "What each number is"),
                   Bullets(_definitions(entries))]
    blocks.append(Heading(2, "Pictures"))
    blocks += [Picture(file, caption) for file, caption in CAPTIONS.items()
               if (Path(figures) / file).is_file()]
    blocks += _published(content)
    return blocks + [Heading(2, "How it was computed"), Bullets(_provenance(content))]


# ------------------------------------------------------------------------------------- formatting

def number(x, digits=4):
    """A number for a table; a dash for None and NaN."""
    if x is None or x != x:
        return "–"
    return f"{x:.{digits}g}".replace("-", "−")


def _span(pair):
    return f" [{number(pair[0])}, {number(pair[1])}]" if pair else ""


def _mean_and_range(found):
    if not found:
        return "–"
    return f"{number(found['mean'])} ({number(found['low'])} … {number(found['high'])})"


# ---------------------------------------------------------------------------------- parts of it

def _table_of_sets(content):
    rows = []
    for name, found in content["sets"].items():
        voxels = " × ".join(f"{size:.3g}" for size in found["voxel_mm"])
        rows.append([name, f"`{found['path']}`", found["split"] or "–", str(found["n"]),
                     str(found["subjects"]), f"{content['size']}³", voxels])
    return Table(["set", "folder", "split", "volumes (N)", "subjects", "size", "voxels, mm"], rows)


def _table_of_numbers(entries, layouts):
    """A row per number: value and interval, target, floor, ceiling."""
    rows = []
    for entry in entries.values():
        target = entry["aim"]
        if "target" in entry:
            own = entry["target"]
            target = f"real: {number(own['value'])}{_span(own.get('interval'))}"
        ceilings = [number(entry.get("vae", {}).get(layout)) for layout in layouts]
        rows.append([entry["name"], f"**{number(entry['value'])}**{_span(entry.get('interval'))}",
                     target, _mean_and_range(entry.get("floor")),
                     _mean_and_range(entry.get("at_floor_n")), *ceilings])
    head = ["metric", "synthetic [95% interval]", "target", "floor: two halves of real",
            "synthetic at the floor's N"]
    return Table(head + [f"ceiling: real after VAE, {layout}" for layout in layouts], rows)


def _notes(content, layouts):
    """How to read the table of numbers."""
    settings, notes = content["settings"], []
    if any("interval" in entry for entry in content["metrics"].values()):
        notes.append(
            f"*Interval*: 95%, from {settings['bootstrap']} bootstrap replicates over subjects. It "
            "is for the average over many evaluations with as many volumes, so it does not cover "
            "a bias that shrinks as N grows. Shares have Jeffreys' interval, averaged over the "
            "replicates of their threshold.")
    notes.append(
        "*Floor*: the same number between two random halves of the real set, which is what even a "
        "perfect generator gets with as few volumes. Mean (lowest … highest) over random splits "
        "by subject.")
    notes.append(
        "*Synthetic at the floor's N*: real against synthetic, with as many volumes on each side "
        "as in the floor. Compare it with the floor: a number that is biased at small N is higher "
        "in both.")
    if layouts:
        psnr = ", ".join(f"{layout} {value:.2f} dB"
                         for layout, value in content["vae_psnr_db"].items())
        notes.append(
            "*Ceiling*: the real volumes after a round trip through the VAE "
            f"(`{settings['vae']}`), the best that samples can reach with it. `rgb` against `gray` "
            "shows what it costs to store three slices in the three colors of a pixel. MMD, FID "
            "and KID are lower than for other subjects, as these are the same ones. PSNR of the "
            f"round trip: {psnr}.")
    return notes


def _definitions(entries):
    """What each number is; those that are computed alike share a line."""
    names = {}
    for entry in entries.values():
        names.setdefault(entry["how"], []).append(entry["name"])
    return [f"**{'; '.join(same)}**: {definition}." for definition, same in names.items()]


def _published(content):
    """Published numbers with this evaluation's, and why they cannot be compared directly."""
    entries = content["metrics"]
    n = {name: found["n"] for name, found in content["sets"].items()}

    def own(key, scale=1):
        value = entries[key]["value"] if key in entries else None
        return number(None if value is None else value * scale)

    rows = [list(row) for row in PUBLISHED]
    rows.append([f"**this evaluation**, {n['real']} real", str(n["synthetic"]),
                 own("ms_ssim", 100), own("mmd_linear"), *(own(f"fid_{view}") for view in "acs")])
    real = f"MS-SSIM of the paper's real volumes: {REAL_PUBLISHED}%."
    if "ms_ssim" in entries:
        own_real = entries["ms_ssim"]["target"]["value"]
        real += f" Of the real volumes here: {number(100 * own_real)}%."
    return [
        Heading(2, "Published numbers"),
        Table(["model", "N", "MS-SSIM, %", "MMD", "FID-A", "FID-C", "FID-S"], rows),
        Paragraph(real),
        Paragraph(
            "These rows are not comparable with one another directly. FID falls as N grows; at "
            "N = 32 or 500, most of it can be that bias. MMD depends on the batch it is averaged "
            "over (not published there), on the range of intensities and on the number of voxels. "
            "MS-SSIM depends on the protocol and on the data (skull-stripped or not, registered or "
            "not, size), and says little without the real set's: a set that is as diverse as the "
            "real one has the real one's MS-SSIM, not the lowest. Numbers are comparable if data, "
            "preprocessing, N, batch, protocol and feature weights are the same."),
    ]


def _provenance(content):
    """Version, seed, device and weights."""
    settings = content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [f"MosaicDiT {content['mosaicdit_version']}, {versions}",
             f"seed {settings['seed']}, device {settings['device']}"]
    weights = next((entry["weights"] for entry in content["metrics"].values()
                    if "weights" in entry), None)
    if weights:
        lines.append(f"Inception weights `{weights['file']}`, SHA-256 {weights['sha256']}")
    return lines + ["every number, setting and id: `metrics.json`"]


def terminal_lines(content):
    """The numbers, and what was not computed, as lines for the terminal."""
    entries = content["metrics"].values()
    width = max([len(entry["name"]) for entry in entries], default=0)
    lines = []
    for entry in entries:
        line = (f"{entry['name']:{width}} {number(entry['value']):>10}"
                f"{_span(entry.get('interval'))}")
        if "target" in entry:
            target = entry["target"]
            line += f"   real {number(target['value'])}{_span(target.get('interval'))}"
        lines.append(line)
    return lines + [f"{title}: not computed, {reason}"
                    for title, reason in content["skipped"].items()]
