"""Pictures that more than one command writes. Views are radiologists' habit but for the side: left is on the left."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from utils.cli import atomic  # noqa: E402

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


def _show(ax, volume, name, spacing, depth=0.5):
    """One view of a volume in a pair of axes without ticks or frame, true to the voxels' proportions."""
    x, y = [a for a in range(3) if a != NORMAL[name]]
    ax.imshow(view(volume, name, depth), cmap="gray", vmin=0, vmax=255 if volume.dtype == np.uint8 else 1, aspect=spacing[y] / spacing[x],
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
    save(fig, path)


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
    save(fig, path)


COLOURS = {"synthetic": "C3", "real halves": "0.6", "synthetic, as few": "C1", "vae rgb": "C0", "vae gray": "C2"}


def intervals(path, entries):
    """Each number with its 95 % interval, beside its floor, its ceiling and its aim: small multiples, as no two share a scale.

    :param entries: {key: entry of metrics.json with an interval}
    """
    n, columns = len(entries), 2
    rows = max(1, -(-n // columns))
    fig, axes = plt.subplots(rows, columns, figsize=(11, 1.15 * rows + 0.7), squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    for ax, e in zip(axes.flat, entries.values()):
        marks = [("synthetic", e["value"], *(e.get("interval") or [e["value"]] * 2))]
        if e.get("floor"):
            marks.append(("real halves", e["floor"]["mean"], e["floor"]["low"], e["floor"]["high"]))
        if e.get("at_floor_n"):
            marks.append(("synthetic, as few", e["at_floor_n"]["mean"], e["at_floor_n"]["low"], e["at_floor_n"]["high"]))
        marks += [(f"vae {k}", v, v, v) for k, v in e.get("vae", {}).items() if v is not None]
        for y, (label, value, low, high) in enumerate(reversed(marks)):
            ax.plot([low, high], [y, y], color=COLOURS[label], lw=3, alpha=0.45, solid_capstyle="butt")
            ax.plot(value, y, "o", color=COLOURS[label], ms=5)
        aim = e["target"]["value"] if e["aim"] == "real" else None if e["aim"] == "low" else float(e["aim"])
        if aim is not None:
            ax.axvline(aim, color="black", lw=1, ls=":")
        if e.get("target", {}).get("interval"):
            ax.axvspan(*e["target"]["interval"], color="black", alpha=0.08, lw=0)
        ax.set_yticks(range(len(marks)), [m[0] for m in reversed(marks)], fontsize=7)
        ax.set_ylim(-0.7, len(marks) - 0.3)
        ax.set_title(e["name"], fontsize=9, loc="left")
        ax.tick_params(axis="x", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle("bars: 95 % interval (synthetic), lowest to highest of the splits (halves); dotted: the aim, shaded: its interval",
                 fontsize=8)
    fig.tight_layout()
    save(fig, path)


def ratios(path, entries):
    """Gradient energies over real, axis by axis: above 1 rougher than real, below 1 smoother.

    :param entries: {key: entry of metrics.json}
    """
    fig, ax = plt.subplots(figsize=(9, 3.6))
    labels = [e["name"].removeprefix("gradient energy, ").replace(" rgb", "\nrgb") for e in entries.values()]
    for x, e in enumerate(entries.values()):
        marks = [("synthetic", e["value"], e.get("interval") or [e["value"]] * 2)]
        marks += [(f"vae {k}", v, [v, v]) for k, v in e.get("vae", {}).items() if v]
        for k, (label, value, span) in enumerate(marks):
            at = x + 0.14 * (k - (len(marks) - 1) / 2)
            ax.plot([at, at], span, color=COLOURS[label], lw=4, alpha=0.45, solid_capstyle="butt")
            ax.plot(at, value, "o", color=COLOURS[label], label=label if x == 0 else None)
        if e.get("floor"):
            ax.fill_between([x - 0.4, x + 0.4], e["floor"]["low"], e["floor"]["high"], color="0.85", zorder=0,
                            label="between halves of the real set" if x == 0 else None)
    ax.axhline(1, color="black", lw=1, ls=":")
    ax.set_xticks(range(len(entries)), labels, fontsize=8)
    ax.set_ylabel("gradient energy over real")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="both", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)
    fig.tight_layout()
    save(fig, path)


def extrapolation(path, entries):
    """FID of subsets against 1/N, with the line whose value at 0 is FID-infinity.

    :param entries: {heading: dict(value, n, fid, r2)}
    """
    fig, ax = plt.subplots(figsize=(6, 3.6))
    for k, (heading, e) in enumerate(entries.items()):
        x = 1 / np.array(e["n"])
        slope, label = np.polyfit(x, e["fid"], 1)[0], f"{heading}: {e['value']:.3g}, r² {e['r2']:.3f}"
        ax.plot(x, e["fid"], "o", color=f"C{k}", ms=4)
        ax.plot([0, x.max()], [e["value"], e["value"] + slope * x.max()], color=f"C{k}", lw=1, label=label)
    ax.set_xlim(left=0)
    ax.set_xlabel("1 / N")
    ax.set_ylabel("FID")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, title="at N = ∞")
    fig.tight_layout()
    save(fig, path)


def neighbours(path, rows, spacing, measure):
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
                    text = (f"synthetic {short(ours)}", f"training {short(theirs)}", f"|difference|, {measure} {similarity:.3f}")[g]
                    ax.set_title(text, color="white", fontsize=8)
    fig.tight_layout(pad=0.4)
    save(fig, path)


def distances(path, entries):
    """How many volumes come how near to the training set: synthetic against held-out real ones.

    :param entries: {key: entry of metrics.json with the similarity of each volume and the threshold of distance}
    """
    fig, axes = plt.subplots(1, len(entries), figsize=(4.8 * len(entries), 3.2), squeeze=False)
    for ax, e in zip(axes.flat, entries.values()):
        for name, colour in (("real", "0.45"), ("synthetic", COLOURS["synthetic"])):
            d = np.sort(1 - np.array(e["of_volumes"][name]))
            ax.step([d[0], *d], np.arange(len(d) + 1) / len(d), where="post", color=colour, label=f"{name}, N = {len(d)}")
        ax.axvline(e["threshold"], color="black", lw=1, ls=":", label="5th percentile of real")
        ax.set_xlabel(f"1 − {e['name'].split(', ')[-1]} to the nearest training volume")
        ax.set_ylabel("share of volumes at most so far")
        ax.set_ylim(0, 1.02)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, frameon=False)
    fig.tight_layout()
    save(fig, path)


def scaling(path, points, title):
    """Time and memory of a step against tokens (at the first batch size) and against batch (at the first image size).

    :param points: dicts of tokens, batch, seconds, peak (GB)
    """
    first = points[0]
    series = [("tokens", [p for p in points if p["batch"] == first["batch"]]),
              ("batch", [p for p in points if p["tokens"] == first["tokens"]])]
    series = [(axis, found) for axis, found in series if len(found) > 1] or series[:1]
    fig, axes = plt.subplots(2, len(series), figsize=(5.2 * len(series), 6.4), squeeze=False)
    for column, (axis, found) in zip(axes.T, series):
        x = [p[axis] for p in found]
        for ax, key, label in zip(column, ("seconds", "peak"), ("seconds a step", "peak memory, GB")):
            ax.plot(x, [p[key] for p in found], "o-", color="#2a6f97")
            for p in found:
                ax.annotate(f"{p[key]:.3g}", (p[axis], p[key]), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
            ax.set(xlabel=axis, ylabel=label, xscale="log", yscale="log" if key == "seconds" else "linear", xticks=x,
                   xticklabels=[f"{n:,}" for n in x])
            ax.minorticks_off()
            ax.margins(0.12)
            if key == "peak":
                ax.set_ylim(0, 1.15 * max(p[key] for p in found))
            ax.grid(alpha=0.3)
    fig.suptitle(title)
    fig.tight_layout()
    save(fig, path)


def short(name, most=28):
    """A long id with its middle left out; `$` as it is, which matplotlib would take for mathematics."""
    name = name if len(name) <= most else f"{name[:most // 2 - 1]}…{name[-(most // 2):]}"
    return name.replace("$", r"\$")


def save(fig, path, dpi=130):
    with atomic(path) as tmp:
        fig.savefig(tmp, dpi=dpi, facecolor=fig.get_facecolor())
    plt.close(fig)
