"""Figures of anatomy: how much each structure differs, and where it was found."""
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mri.geometry import VIEWS, resample, view_slice
from mri.structures import name_in_text
from reporting.figures import save_figure
from reporting.structures import effects_by_structure

PANELS = {"volume": "d of the volume", "share": "d of the share of the brain",
          "conditional": "d given the other structures"}
SMALL_EFFECT = 0.2
SYNTHETIC, FLOOR, CEILING = "C3", "0.85", "C0"
# of the 17 structures, in their order: neighbors differ
OUTLINE_COLORS = (
    "#f2c14e", "#4aa3df", "#e4572e", "#c77dff", "#a7c957", "#9b5de5", "#2ec4b6", "#ff9f1c",
    "#ff6b9d", "#80ed99", "#ffffff", "#e4572e", "#bc8a5f", "#f15bb5", "#00bbf9", "#fee440",
    "#7bdff2")


def effects(path, entries):
    """Cohen's d of each structure with its interval, its floor and its ceiling.

    :param entries: {key: entry} of metrics.json
    """
    by_structure = effects_by_structure(entries)
    names = sorted(by_structure, key=lambda name: by_structure[name]["volume"]["value"] or 0)
    fig = Figure(figsize=(12, 0.26 * len(names) + 1.3))
    axes = fig.subplots(1, len(PANELS), sharey=True)
    for ax, (family, title) in zip(axes, PANELS.items()):
        for y, name in enumerate(names):
            _draw_effect(ax, y, by_structure[name][family])
        ax.axvspan(-SMALL_EFFECT, SMALL_EFFECT, color="C2", alpha=0.12, lw=0)
        ax.axvline(0, color="black", lw=1, ls=":")
        ax.set_title(title, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [name_in_text(name) for name in names])
    fig.suptitle("Cohen's d, synthetic − real. Red: with its 95% interval, filled where its "
                 "adjusted p < 0.05; gray: between halves of the real set; blue: real after the "
                 "VAE; green: |d| < 0.2", fontsize=8)
    fig.tight_layout()
    save_figure(fig, path)


def _draw_effect(ax, y, entry):
    if entry.get("floor"):
        ax.barh(y, entry["floor"]["high"] - entry["floor"]["low"], 0.7, entry["floor"]["low"],
                color=FLOOR, zorder=0)
    if entry["value"] is None:
        return
    if entry.get("interval"):
        ax.plot(entry["interval"], [y, y], color=SYNTHETIC, lw=2, alpha=0.5)
    is_certain = (entry.get("p_adjusted") or 1) < 0.05
    ax.plot(entry["value"], y, "o", color=SYNTHETIC, ms=5,
            markerfacecolor=SYNTHETIC if is_certain else "white")
    for value in entry.get("vae", {}).values():
        if value is not None:
            ax.plot(value, y, "|", color=CEILING, ms=9, mew=2)


def outlines(path, rows):
    """Volumes with the outlines of their structures, three views of each.

    :param rows: list of (heading, volume (X, Y, Z) uint8, labels (X', Y', Z') of the same field of
        view, 0 for background)
    """
    fig = Figure(figsize=(9.6, 3.3 * len(rows)), facecolor="black")
    axes = fig.subplots(len(rows), len(VIEWS), squeeze=False)
    for line, (heading, volume, labels) in zip(axes, rows):
        conformed = resample(volume, labels.shape) / 255
        for ax, view in zip(line, VIEWS):
            ax.imshow(_with_outlines(view_slice(conformed, view), view_slice(labels, view)),
                      interpolation="nearest")
            ax.set_axis_off()
        line[1].set_title(heading, color="white", fontsize=10)
    fig.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.14 / len(rows), hspace=0.12,
                        wspace=0.02)
    save_figure(fig, path)


def _with_outlines(image, labels):
    """(H, W) in [0, 1] and labels -> (2H, 2W, 3), each structure's border in its color."""
    image = np.clip(np.kron(image, np.ones((2, 2))), 0, 1)
    labels = np.kron(labels, np.ones((2, 2), labels.dtype))
    out = np.repeat(image[..., None], 3, axis=2)
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        border |= (labels != np.roll(labels, 1, axis)) | (labels != np.roll(labels, -1, axis))
    colors = np.array([(0, 0, 0), *map(to_rgb, OUTLINE_COLORS)])
    drawn = border & (labels > 0)
    out[drawn] = colors[labels[drawn]]
    return out
