"""Published numbers next to this evaluation's, and why they cannot be compared directly."""
from reporting.blocks import Heading, Paragraph, Table
from reporting.rounding import number

# All rows but the last are printed in the table of cDPM (Peng et al. 2023, "Generating Realistic
# Brain MRIs via a Conditional Diffusion Probabilistic Model"); the last row is from Y. Li,
# "Generating 3D Brain MRIs by Parameter Efficient Finetuning of Diffusion Transformer".
# N, MS-SSIM in %, MMD in 10³, FID-A, FID-C, FID-S; –: not printed
PUBLISHED = (
    ("3D-VAE-GAN", "500", "88.3", "5.15", "320", "247", "398"),
    ("3D-GAN-GP", "500", "81.0", "15.7", "141", "127", "281"),
    ("3D-α-WGAN", "500", "82.6", "13.2", "121", "116", "193"),
    ("CCE-GAN", "500", "81.5", "3.54", "69.4", "869", "191"),
    ("HA-GAN", "500", "36.8", "226", "477", "1090", "554"),
    ("3D-DPM", "500", "79.7", "15.2", "188", "–", "–"),
    ("cDPM", "500", "78.6", "3.14", "32.4", "45.8", "91.1"),
    # Its text bounds what its tables do not print: better than four of these seven in MMD and in
    # FID-A, and an MS-SSIM above that of real volumes
    ("finetuned DiT (the paper)", "32", "> 78.5", "5.15 … 13.2", "121 … 141", "279", "239"),
)
REAL_PUBLISHED = 78.5  # MS-SSIM of the paper's real volumes, %
MMD_UNIT = 1000
PUBLISHED_RANGE = 2    # of the voxels' intensities, [-1, 1], in 3dbraingen's loader


def published_blocks(content):
    """The table of published numbers with a row of this evaluation, and how to compare them.

    :param content: what metrics.json holds
    """
    entries = content["metrics"]
    n = {name: found["n"] for name, found in content["sets"].items()}
    rows = [list(row) for row in PUBLISHED]
    fid = [number(_value(entries, f"fid_{view}")) for view in "acs"]
    rows.append([f"**this evaluation**, {n['real']} real", str(n["synthetic"]),
                 _similarity(entries), number(_as_published(entries, "mmd_linear")), *fid])
    head = ["model", "N", "MS-SSIM, %", "MMD, 10³", "FID-A", "FID-C", "FID-S"]
    return [Heading(2, "Published numbers"), Table(head, rows), Paragraph(_real(entries)),
            Paragraph(_mmd(entries)), Paragraph(COMPARABILITY)]


COMPARABILITY = (
    "These rows are not comparable with one another directly. FID falls as N grows; at N = 32 or "
    "500, most of it can be that bias. MMD depends on the batch it is averaged over (not published "
    "there), on the range of intensities and on the number of voxels. MS-SSIM depends on the "
    "protocol and on the data (skull-stripped or not, registered or not, size), and says little "
    "without the real set's: a set that is as diverse as the real one has the real one's MS-SSIM, "
    "not the lowest. Numbers are comparable if data, preprocessing, N, batch, protocol and feature "
    "weights are the same. Where the paper prints no number, its row gives the bounds that its "
    "text implies.")


def _value(entries, key):
    return entries[key]["value"] if key in entries else None


def _as_published(entries, key):
    """A squared distance of voxels in 10³ and for voxels in [-1, 1], as published ones are."""
    value = _value(entries, key)
    if value is None:
        return None
    low, high = entries[key].get("range", (0, 1))
    return value * (PUBLISHED_RANGE / (high - low)) ** 2 / MMD_UNIT


def _similarity(entries):
    """MS-SSIM in %, with its standard deviation over pairs."""
    value = _value(entries, "ms_ssim")
    if value is None:
        return number(None)
    deviation = entries["ms_ssim"].get("std_of_pairs", {}).get("synthetic")
    spread = f" ± {number(100 * deviation, 3)}" if deviation is not None else ""
    return f"{number(100 * value)}{spread}"


def _real(entries):
    text = f"MS-SSIM of the paper's real volumes: {REAL_PUBLISHED}%."
    if "ms_ssim" in entries:
        own = entries["ms_ssim"]["target"]["value"]
        text += (f" Of the real volumes here: {number(100 * own if own is not None else None)}%. "
                 "±: standard deviation over the pairs, not of the mean.")
    return text


def _mmd(entries):
    text = ("MMD is the biased linear one, in units of 10³. 3dbraingen's loader maps voxels to "
            "[−1, 1], which makes its MMD 4 times that of voxels in [0, 1]; the row of this "
            "evaluation is converted to that range, whatever `--mmd-range` is.")
    distance = _as_published(entries, "mean_pair_distance")
    if distance is not None:
        text += (" \"Among all pairs formed by one synthetic and one real image\" can also be read "
                 "as the mean of ‖x − y‖² over the pairs, `mean_pair_distance`: here "
                 f"{number(distance)} · 10³, in the same range.")
    return text
