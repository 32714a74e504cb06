"""Pictures of brains. Left is on the left, anterior or superior is up; every picture says so."""
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mri.geometry import VIEWS, view_slice
from utils.escaping import printable
from utils.files import atomic_file

DPI = 130                       # pixels per inch of a figure
SIDES = {"axial": "LR", "coronal": "LR", "sagittal": "PA"}  # left and right end of each view
MARK_COLOR = "#f2c14e"          # of marks of sides, and positions
DIFFERENCE_COLORS = "inferno"   # color map of |difference|

# --------------------------------------------------------------------------------------- helpers

def save_figure(fig, path):
    """Writes a figure as PNG, atomically."""
    with atomic_file(path) as temporary:
        fig.savefig(temporary, dpi=DPI, facecolor=fig.get_facecolor())


def short_name(name, limit=28):
    """An id as a heading: a long one without its middle, `$` escaped for matplotlib."""
    name = printable(name)
    if len(name) > limit:
        name = f"{name[:limit // 2 - 1]}…{name[-(limit // 2):]}"
    return name.replace("$", r"\$")


def _show_slice(ax, volume, view, voxel_sizes, depth=0.5, colors="gray"):
    """Draws one view of a volume, true to the proportions of its voxels."""
    across, up = [axis for axis in range(3) if axis != VIEWS[view]]
    ax.imshow(view_slice(volume, view, depth), cmap=colors, vmin=0,
              vmax=255 if volume.dtype == np.uint8 else 1,
              aspect=voxel_sizes[up] / voxel_sizes[across], interpolation="bicubic")


def _mark_sides(ax, view):
    """Writes L and R, or P and A, at the sides of a slice."""
    for x, letter, side in zip((0.02, 0.98), SIDES[view], ("left", "right")):
        ax.text(x, 0.5, letter, color=MARK_COLOR, fontsize=6, ha=side, va="center",
                transform=ax.transAxes)


def _write_position(ax, volume, view, depth, affine):
    """Writes where a slice lies, such as "z = −12 mm"; nothing if there is no affine."""
    if affine is None:
        return
    position = round(slice_position(volume.shape, view, depth, affine))
    text = f"{'xyz'[VIEWS[view]]} = {f'{position:+d}' if position else 0} mm"
    ax.text(0.5, 0.015, text.replace("-", "−"), color=MARK_COLOR, fontsize=5, ha="center",
            va="bottom", transform=ax.transAxes)


def slice_position(shape, view, depth, affine):
    """World coordinate, along the axis across the view, of the middle of a slice.

    :param shape: of a RAS volume, (X, Y, Z)
    :param depth: as `mri.geometry.view_slice` takes it
    :param affine: of that volume, (4, 4), mm
    :return: mm
    """
    axis = VIEWS[view]
    index = (np.array(shape) - 1) / 2
    index[axis] = min(int(depth * shape[axis]), shape[axis] - 1)
    return float(np.asarray(affine, float)[axis] @ [*index, 1])


def _divide(fig, x, y):
    """Draws a line between two parts of a figure.

    :param x, y: pairs of figure coordinates, 0…1
    """
    fig.add_artist(Line2D(x, y, color="white", linewidth=0.8))


def _remove_frame(ax):
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("black")
    ax.spines[:].set_visible(False)


def _view_extents(shape, voxel_sizes):
    """Width of the widest view, and height of each view, of volumes of this shape, mm."""
    extent = np.array(shape) * voxel_sizes
    return max(extent[0], extent[1]), [extent[1], extent[2], extent[2]]


# -------------------------------------------------------------------------------------- pictures

def montage(path, columns, voxel_sizes, depths=(0.35, 0.5, 0.65), title=None, affine=None):
    """Three views at several depths of each volume, side by side, with lines between volumes.

    :param columns: list of (heading, volume (X, Y, Z) in [0, 1] or uint8)
    :param voxel_sizes: mm, (3,)
    :param depths: of the slices, 0…1 along the axis across the view
    :param affine: of the volumes, (4, 4), to write where the slices lie; None: not known
    """
    width, heights = _view_extents(columns[0][1].shape, voxel_sizes)
    n = len(columns) * len(depths)
    inches = 1.45 / width                                     # per mm
    fig = Figure(figsize=(1.45 * n + 0.3, sum(heights) * inches + 0.6), facecolor="black")
    top = 0.6 if title else 0.35                              # inches
    grid = fig.add_gridspec(
        3, n, height_ratios=heights, left=0.3 / fig.get_figwidth(), right=1, bottom=0,
        top=1 - top / fig.get_figheight(), wspace=0.02, hspace=0.02)
    axes = [[fig.add_subplot(grid[r, k]) for k in range(n)] for r in range(3)]
    for c, (heading, volume) in enumerate(columns):
        for r, view in enumerate(VIEWS):
            for d, depth in enumerate(depths):
                ax = axes[r][c * len(depths) + d]
                _show_slice(ax, volume, view, voxel_sizes, depth)
                _mark_sides(ax, view)
                _write_position(ax, volume, view, depth, affine)
                _remove_frame(ax)
                if r == 0 and d == len(depths) // 2:
                    ax.set_title(heading, color="white", fontsize=11)
                if c == 0 and d == 0:
                    ax.set_ylabel(view, color="white", fontsize=10)
    for c in range(1, len(columns)):
        left, right = (axes[0][c * len(depths) - k].get_position() for k in (1, 0))
        x = (left.x1 + right.x0) / 2
        _divide(fig, (x, x), (0, 1 - 0.05 / fig.get_figheight()))
    if title:
        fig.suptitle(title, color="white", fontsize=11)
    save_figure(fig, path)


def gallery(path, groups, voxel_sizes, limit=8, affine=None):
    """The center slices of several volumes of each group, to see a set at a glance.

    A group is a block of three rows, one per view; a volume is a column.

    :param groups: {heading: volumes (N, X, Y, Z) in [0, 1] or uint8}
    :param voxel_sizes: mm, (3,)
    :param limit: volumes shown of a group
    :param affine: of the volumes, (4, 4), to write where the slices lie; None: not known
    """
    n = min(limit, max(len(volumes) for volumes in groups.values()))
    width, heights = _view_extents(next(iter(groups.values()))[0].shape, voxel_sizes)
    block = 1.25 * sum(heights) / width                       # inches, of a group's images
    left, top = 0.3, 0.32                                     # inches
    fig = Figure(figsize=(1.25 * n + left, (block + top) * len(groups)), facecolor="black")
    for g, (heading, volumes) in enumerate(groups.items()):
        up = 1 - g / len(groups)
        grid = fig.add_gridspec(
            3, n, height_ratios=heights, left=left / fig.get_figwidth(), right=0.995,
            top=up - top / fig.get_figheight(), bottom=up - 1 / len(groups) + 0.001,
            wspace=0.03, hspace=0.03)
        if g:
            _divide(fig, (0, 1), (up, up))
        fig.text(left / fig.get_figwidth(), up - 0.2 / fig.get_figheight(), heading,
                 color="white", fontsize=10)
        for r, view in enumerate(VIEWS):
            for c in range(n):
                ax = fig.add_subplot(grid[r, c])
                _remove_frame(ax)
                if c < len(volumes):
                    _show_slice(ax, volumes[c], view, voxel_sizes)
                    _mark_sides(ax, view)
                if c == 0:
                    _write_position(ax, volumes[c], view, 0.5, affine)
                    ax.set_ylabel(view, color="white", fontsize=8)
    save_figure(fig, path)


def nearest_neighbors(path, rows, voxel_sizes, measure, affine=None):
    """Synthetic volumes next to their nearest training volumes, and the absolute difference.

    :param rows: list of (synthetic id, training id, similarity, synthetic volume, training
        volume), volumes (X, Y, Z) uint8
    :param voxel_sizes: mm, (3,)
    :param measure: name of the similarity
    :param affine: of the volumes, (4, 4), to write where the slices lie; None: not known
    """
    width, heights = _view_extents(rows[0][3].shape, voxel_sizes)
    heading_height = 0.3                                      # inches
    height = 1.2 * max(heights) / width + heading_height      # inches, of a row
    fig = Figure(figsize=(11.6, height * len(rows)), facecolor="black")
    axes = fig.subplots(len(rows), 9, squeeze=False)
    fig.subplots_adjust(
        left=0.005, right=0.94, bottom=0.005, top=1 - heading_height / (height * len(rows)),
        wspace=0.03, hspace=heading_height / (height - heading_height))
    for r, (synthetic_id, train_id, similarity, synthetic, training) in enumerate(rows):
        difference = np.abs(synthetic.astype(np.int16) - training).astype(np.uint8)
        shown = {f"synthetic {short_name(synthetic_id)}": synthetic,
                 f"training {short_name(train_id)}": training,
                 f"|difference|, {measure} {similarity:.3f}": difference}
        for g, (heading, volume) in enumerate(shown.items()):
            middle = axes[r, 3 * g + 1].get_position()
            fig.text((middle.x0 + middle.x1) / 2, middle.y1 + 0.08 / (height * len(rows)), heading,
                     color="white", fontsize=8, ha="center")
            for k, view in enumerate(VIEWS):
                ax = axes[r, 3 * g + k]
                _show_slice(ax, volume, view, voxel_sizes,
                            colors="gray" if g < 2 else DIFFERENCE_COLORS)
                ax.set_axis_off()
                if g < 2:
                    _mark_sides(ax, view)
                    _write_position(ax, volume, view, 0.5, affine)
    for g in (3, 6):
        x = (axes[0, g - 1].get_position().x1 + axes[0, g].get_position().x0) / 2
        _divide(fig, (x, x), (0, 1))
    _draw_difference_scale(fig)
    save_figure(fig, path)


def _draw_difference_scale(fig):
    """The color scale of |difference|, at the right of a figure."""
    scale = fig.colorbar(ScalarMappable(Normalize(0, 1), DIFFERENCE_COLORS),
                         cax=fig.add_axes((0.95, 0.15, 0.008, 0.7)), ticks=(0, 0.5, 1))
    scale.set_label("share of the intensity range", color="white", fontsize=6)
    scale.ax.tick_params(colors="white", labelsize=6)
    scale.outline.set_visible(False)
