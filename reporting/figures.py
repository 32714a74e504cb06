"""Pictures that more than one command writes. Views are radiologists' habit but for the side: left is on the left."""
import matplotlib

from mri.geometry import NORMAL, VIEWS, view_slice
from utils.files import atomic_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402


def _show(ax, volume, name, spacing, depth=0.5):
    """One view of a volume in a pair of axes without ticks or frame, true to the voxels' proportions."""
    x, y = [a for a in range(3) if a != NORMAL[name]]
    ax.imshow(view_slice(volume, name, depth), cmap="gray", vmin=0, vmax=255 if volume.dtype == np.uint8 else 1, aspect=spacing[y] / spacing[x],
              interpolation="bicubic")


def _bare(ax):
    ax.set_xticks([]), ax.set_yticks([])
    ax.set_facecolor("black")
    ax.spines[:].set_visible(False)


def montage(path, columns, spacing, depths=(0.35, 0.5, 0.65), title=None):
    """Three views by several depths of each volume, side by side, true to the voxels' proportions.

    :param columns: list of (heading, volume (X, Y, Z) in [0, 1] or uint8)
    :param spacing: voxel sizes, mm, (3,)
    """
    n = len(columns) * len(depths)
    size = np.array(columns[0][1].shape) * spacing  # mm
    heights = [size[1], size[2], size[2]]                         # of the three views
    width = max(size[0], size[1]) * n
    inches = 1.45 * n / width                                     # per mm
    fig = plt.figure(figsize=(width * inches + 0.3, sum(heights) * inches + 0.6), facecolor="black")
    grid = fig.add_gridspec(3, n, height_ratios=heights, left=0.3 / fig.get_figwidth(), right=1, bottom=0, wspace=0.02, hspace=0.02,
                            top=1 - (0.6 if title else 0.35) / fig.get_figheight())
    for c, (heading, volume) in enumerate(columns):
        for r, name in enumerate(VIEWS):
            for d, depth in enumerate(depths):
                ax = fig.add_subplot(grid[r, c * len(depths) + d])
                _show(ax, volume, name, spacing, depth)
                _bare(ax)
                if r == 0 and d == len(depths) // 2:
                    ax.set_title(heading, color="white", fontsize=11)
                if c == d == 0:
                    ax.set_ylabel(name, color="white", fontsize=10)
    if title:
        fig.suptitle(title, color="white", fontsize=11)
    save_figure(fig, path)


def gallery(path, groups, spacing, most=8):
    """The centre slices of several volumes of each group, a group a block of three rows, so that a set is seen at a look.

    :param groups: {heading: volumes (N, X, Y, Z) in [0, 1] or uint8}
    :param spacing: voxel sizes, mm, (3,)
    """
    n = min(most, max(len(v) for v in groups.values()))
    fig, axes = plt.subplots(3 * len(groups), n, figsize=(1.25 * n + 0.3, 4.0 * len(groups)), facecolor="black", squeeze=False)
    for g, (heading, volumes) in enumerate(groups.items()):
        for r, name in enumerate(VIEWS):
            for c in range(n):
                ax = axes[3 * g + r, c]
                _bare(ax)
                if c < len(volumes):
                    _show(ax, volumes[c], name, spacing)
                if c == 0:
                    ax.set_ylabel(f"{heading}\n{name}", color="white", fontsize=9)
    fig.subplots_adjust(0.05, 0.005, 0.995, 0.995, 0.03, 0.03)
    save_figure(fig, path)










def nearest_neighbors(path, rows, spacing, measure):
    """Synthetic volumes beside their nearest training volumes, three views each, and the absolute difference.

    :param rows: list of (synthetic id, training id, similarity, synthetic volume, training volume), uint8
    :param spacing: voxel sizes, mm, (3,)
    """
    fig, axes = plt.subplots(len(rows), 9, figsize=(11, 1.5 * len(rows) + 0.5), facecolor="black", squeeze=False)
    for r, (ours, theirs, similarity, synthetic, training) in enumerate(rows):
        difference = np.abs(synthetic.astype(np.int16) - training).astype(np.uint8)
        for g, volume in enumerate((synthetic, training, difference)):
            for k, name in enumerate(VIEWS):
                ax = axes[r, 3 * g + k]
                _show(ax, volume, name, spacing)
                ax.set_axis_off()
                if k == 1:
                    text = (f"synthetic {short_name(ours)}", f"training {short_name(theirs)}", f"|difference|, {measure} {similarity:.3f}")[g]
                    ax.set_title(text, color="white", fontsize=8)
    fig.tight_layout(pad=0.4)
    save_figure(fig, path)






def short_name(name, most=28):
    """A long id with its middle left out; `$` as it is, which matplotlib would take for mathematics."""
    name = name if len(name) <= most else f"{name[:most // 2 - 1]}…{name[-(most // 2):]}"
    return name.replace("$", r"\$")


def save_figure(fig, path, dpi=130):
    with atomic_file(path) as tmp:
        fig.savefig(tmp, dpi=dpi, facecolor=fig.get_facecolor())
    plt.close(fig)
