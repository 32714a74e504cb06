"""Pictures that more than one command writes. Views are radiologists' habit but for the side: left is on the left."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from cli import atomic  # noqa: E402

VIEWS = ("axial", "coronal", "sagittal")
NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of a RAS volume across the view


def view(volume, name, depth=0.5):
    """One slice of a RAS volume as an image: anterior or superior up, left on the left (sagittal: anterior right).

    :param volume: (X, Y, Z)
    :param depth: 0…1 along the axis across the view
    """
    axis = NORMAL[name]
    k = min(int(depth * volume.shape[axis]), volume.shape[axis] - 1)
    return np.rot90(np.take(volume, k, axis))


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
    grid = fig.add_gridspec(3, n, height_ratios=heights, left=0.02, right=1, bottom=0, wspace=0.02, hspace=0.02,
                            top=1 - (0.6 if title else 0.35) / fig.get_figheight())
    for c, (heading, volume) in enumerate(columns):
        vmax = 255 if volume.dtype == np.uint8 else 1
        for r, name in enumerate(VIEWS):
            x, y = [a for a in range(3) if a != NORMAL[name]]
            for d, depth in enumerate(depths):
                ax = fig.add_subplot(grid[r, c * len(depths) + d])
                ax.imshow(view(volume, name, depth), cmap="gray", vmin=0, vmax=vmax, aspect=spacing[y] / spacing[x],
                          interpolation="bicubic")
                ax.set_xticks([]), ax.set_yticks([])
                ax.set_facecolor("black")
                for spine in ax.spines.values():
                    spine.set_visible(False)
                if r == 0 and d == len(depths) // 2:
                    ax.set_title(heading, color="white", fontsize=11)
                if c == d == 0:
                    ax.set_ylabel(name, color="white", fontsize=10)
    if title:
        fig.suptitle(title, color="white", fontsize=11)
    save(fig, path)


def gallery(path, groups, spacing, most=8):
    """The centre slices of several volumes of each group, a group a block of three rows, so that a set is seen at a look.

    :param groups: {heading: volumes (N, X, Y, Z) in [0, 1] or uint8}
    :param spacing: voxel sizes, mm, (3,)
    """
    n = min(most, max(len(v) for v in groups.values()))
    fig, axes = plt.subplots(3 * len(groups), n, figsize=(1.25 * n + 0.3, 4.0 * len(groups)), facecolor="black", squeeze=False)
    for g, (heading, volumes) in enumerate(groups.items()):
        vmax = 255 if volumes.dtype == np.uint8 else 1
        for r, name in enumerate(VIEWS):
            x, y = [a for a in range(3) if a != NORMAL[name]]
            for c in range(n):
                ax = axes[3 * g + r, c]
                ax.set_xticks([]), ax.set_yticks([])
                ax.set_facecolor("black")
                for spine in ax.spines.values():
                    spine.set_visible(False)
                if c < len(volumes):
                    ax.imshow(view(volumes[c], name), cmap="gray", vmin=0, vmax=vmax, aspect=spacing[y] / spacing[x],
                              interpolation="bicubic")
                if c == 0:
                    ax.set_ylabel(f"{heading}\n{name}", color="white", fontsize=9)
    fig.subplots_adjust(0.05, 0.005, 0.995, 0.995, 0.03, 0.03)
    save(fig, path)


def save(fig, path, dpi=130):
    with atomic(path) as tmp:
        fig.savefig(tmp, dpi=dpi, facecolor=fig.get_facecolor())
    plt.close(fig)
