"""Charts of the numbers in metrics.json, and of benchmarks."""
import numpy as np
from matplotlib.figure import Figure

from reporting.figures import save_figure
from reporting.structures import main_entries

SYNTHETIC = "synthetic"
FLOOR = "floor: halves of real"
AT_FLOOR_N = "synthetic, as few subjects"
COLORS = {SYNTHETIC: "C3", FLOOR: "0.6", AT_FLOOR_N: "C1",
          "ceiling: VAE rgb": "C0", "ceiling: VAE gray": "C2",
          "ceiling: VAE rgb, refined": "C4", "ceiling: VAE gray, refined": "C6"}


def draw_all(folder, entries):
    """Draws the charts of an evaluation that its numbers allow, as PNGs in `folder`.

    :param entries: {key: entry} of metrics.json
    """
    with_range = {}
    for key, entry in main_entries(entries).items():
        certain = "interval" in entry or "floor" in entry
        elsewhere = key.startswith("gradient_") or key == "copies"
        if entry["value"] is not None and certain and not elsewhere:
            with_range[key] = entry
    if with_range:
        intervals(folder / "intervals.png", with_range)
    gradients = {key: entry for key, entry in _starting_with("gradient_", entries).items()
                 if entry["value"]}
    if gradients:
        ratios(folder / "smoothness.png", gradients)
    extrapolated = _starting_with("fid_infinity_", entries)
    if extrapolated:
        extrapolation(folder / "fid.png", extrapolated)
    nearest = _starting_with("nearest_", entries)
    if nearest:
        distances(folder / "distances.png", nearest)


def _starting_with(prefix, entries):
    return {key: entry for key, entry in entries.items() if key.startswith(prefix)}


def _variant(entry):
    """What follows the comma in the name of a number: "measure, variant"."""
    return entry["name"].split(", ", 1)[-1]


def _remove_box(ax):
    ax.spines[["top", "right"]].set_visible(False)


# ------------------------------------------------------------------------------------ evaluation

def intervals(path, entries):
    """Each number with its 95% interval, next to its floor, its ceiling and its target.

    One small chart per number, as no two share a scale.

    :param entries: {key: entry of metrics.json with an interval or a floor}
    """
    columns = 2
    rows = max(1, -(-len(entries) // columns))
    fig = Figure(figsize=(11, 1.15 * rows + 0.7))
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(entries):]:
        ax.set_visible(False)
    for ax, entry in zip(axes.flat, entries.values()):
        marks = _marks(entry)[::-1]
        for y, (label, value, low, high) in enumerate(marks):
            ax.plot([low, high], [y, y], color=COLORS[label], lw=3, alpha=0.45,
                    solid_capstyle="butt")
            ax.plot(value, y, "o", color=COLORS[label], ms=5)
        _draw_target(ax, entry)
        ax.set_yticks(range(len(marks)), [label for label, *_ in marks], fontsize=7)
        ax.set_ylim(-0.7, len(marks) - 0.3)
        p = f"   p {entry['p']:.2g}" if "p" in entry else ""
        ax.set_title(entry["name"] + p, fontsize=9, loc="left")
        ax.tick_params(axis="x", labelsize=7)
        _remove_box(ax)
    fig.suptitle("bar: 95% interval (synthetic), lowest to highest of the splits (floor, as few "
                 "subjects); dotted line: target, shaded: its 95% interval", fontsize=8)
    fig.tight_layout()
    save_figure(fig, path)


def _marks(entry):
    """(label, value, low, high) of the number, its floor and its ceiling."""
    value = entry["value"]
    marks = [(SYNTHETIC, value, *(entry.get("interval") or [value, value]))]
    for label, key in ((FLOOR, "floor"), (AT_FLOOR_N, "at_floor_n")):
        if entry.get(key):
            marks.append((label, entry[key]["mean"], entry[key]["low"], entry[key]["high"]))
    return marks + _ceiling_marks(entry)


def _ceiling_marks(entry):
    return [(f"ceiling: VAE {layout}", value, value, value)
            for layout, value in entry.get("vae", {}).items() if value is not None]


def _draw_target(ax, entry):
    if entry["aim"] == "real":
        ax.axvline(entry["target"]["value"], color="black", lw=1, ls=":")
        if entry["target"].get("interval"):
            ax.axvspan(*entry["target"]["interval"], color="black", alpha=0.08, lw=0)
    elif entry["aim"] != "low":
        ax.axvline(float(entry["aim"]), color="black", lw=1, ls=":")


def ratios(path, entries):
    """Gradient energy relative to the real set in each direction.

    :param entries: {key: entry of metrics.json}
    """
    fig = Figure(figsize=(9, 3.6))
    ax = fig.subplots()
    for x, entry in enumerate(entries.values()):
        value = entry["value"]
        marks = [(SYNTHETIC, value, *(entry.get("interval") or [value, value]))]
        marks += [mark for mark in _ceiling_marks(entry) if mark[1]]  # no 0 on a log scale
        for k, (label, middle, low, high) in enumerate(marks):
            at = x + 0.14 * (k - (len(marks) - 1) / 2)
            ax.plot([at, at], [low, high], color=COLORS[label], lw=4, alpha=0.45,
                    solid_capstyle="butt")
            ax.plot(at, middle, "o", color=COLORS[label], label=label if x == 0 else None)
        if entry.get("floor"):
            ax.fill_between([x - 0.4, x + 0.4], entry["floor"]["low"], entry["floor"]["high"],
                            color="0.85", zorder=0, label=FLOOR if x == 0 else None)
    ax.axhline(1, color="black", lw=1, ls=":", label="target")
    names = [_variant(entry).replace(" rgb", "\nrgb") for entry in entries.values()]
    ax.set_xticks(range(len(entries)), names, fontsize=8)
    ax.set_ylabel("gradient energy relative to real")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="both", labelsize=7)
    _remove_box(ax)
    ax.legend(fontsize=8, frameon=False)
    fig.tight_layout()
    save_figure(fig, path)


def extrapolation(path, entries):
    """FID of subsets against 1/N, with the line whose value at 0 is FID-infinity.

    :param entries: {key: entry of metrics.json with value, n, fid, r2}
    """
    fig = Figure(figsize=(6, 3.6))
    ax = fig.subplots()
    for k, entry in enumerate(entries.values()):
        x = 1 / np.array(entry["n"])
        slope = np.polyfit(x, entry["fid"], 1)[0]
        ends = [entry["value"], entry["value"] + slope * x.max()]
        ax.plot(x, entry["fid"], "o", color=f"C{k}", ms=4)
        ax.plot([0, x.max()], ends, color=f"C{k}", lw=1,
                label=f"{entry['name']}: {entry['value']:.3g} (r² {entry['r2']:.3f})")
    ax.set_xlim(left=0)
    ax.set_xlabel("1 / N, N volumes in each set")
    ax.set_ylabel("FID")
    _remove_box(ax)
    ax.legend(fontsize=8, frameon=False)
    fig.tight_layout()
    save_figure(fig, path)


def distances(path, entries):
    """How close volumes come to the training set: synthetic ones and held-out real ones.

    :param entries: {key: entry of metrics.json with of_volumes, the similarity of each volume,
        and threshold, a distance}
    """
    fig = Figure(figsize=(4.8 * len(entries), 3.2))
    axes = fig.subplots(1, len(entries), squeeze=False)
    for ax, entry in zip(axes.flat, entries.values()):
        for name, color in (("real", "0.45"), ("synthetic", COLORS[SYNTHETIC])):
            distance = np.sort(1 - np.array(entry["of_volumes"][name]))
            share = np.arange(len(distance) + 1) / len(distance)
            ax.step([distance[0], *distance], share, where="post", color=color,
                    label=f"{name}, N = {len(distance)}")
        ax.axvline(entry["threshold"], color="black", lw=1, ls=":", label="5th percentile of real")
        ax.set_xlabel(f"distance (1 − {_variant(entry)}) to the nearest training volume",
                      fontsize=9)
        ax.set_ylabel("share of volumes up to this distance", fontsize=9)
        ax.set_ylim(0, 1.02)
        ax.locator_params(axis="x", nbins=6)
        ax.tick_params(labelsize=8)
        _remove_box(ax)
        ax.legend(fontsize=8, frameon=False)
    fig.tight_layout()
    save_figure(fig, path)


# ------------------------------------------------------------------------------------ benchmarks

def scaling(path, points, title):
    """Time and memory of a training step against tokens and against batch size.

    Against tokens at the first point's batch size, and against batch size at its tokens; one line
    for each way.

    :param points: list of {"way", "tokens", "batch", "seconds", "peak"}: "all" or "foreground",
        tokens of the whole mosaic, peak memory in GB
    """
    first = points[0]
    series = {"tokens": [p for p in points if p["batch"] == first["batch"]],
              "batch": [p for p in points if p["tokens"] == first["tokens"]]}
    varied = {axis: found for axis, found in series.items()
              if len({p[axis] for p in found}) > 1}
    if not varied:
        varied = {"tokens": series["tokens"]}
    fig = Figure(figsize=(5.2 * len(varied), 6.4))
    axes = fig.subplots(2, len(varied), squeeze=False)
    for column, (axis, found) in zip(axes.T, varied.items()):
        _scaling_chart(column[0], found, axis, "seconds", "seconds per step")
        _scaling_chart(column[1], found, axis, "peak", "peak memory, GB")
        column[0].set_yscale("log")
        column[0].minorticks_off()
        column[1].set_ylim(0, 1.15 * max(p["peak"] for p in found))
    fig.suptitle(title)
    fig.tight_layout()
    save_figure(fig, path)


def _scaling_chart(ax, found, axis, key, label):
    """One quantity of the points against another one."""
    for way, color, offset in (("all", "#2a6f97", 7), ("foreground", "#bc6c25", -14)):
        own = [p for p in found if p["way"] == way]
        ax.plot([p[axis] for p in own], [p[key] for p in own], "o-", color=color,
                label=f"{way} tokens")
        for p in own:
            ax.annotate(f"{p[key]:.3g}", (p[axis], p[key]), textcoords="offset points",
                        xytext=(0, offset), ha="center", fontsize=8, color=color)
    x = sorted({p[axis] for p in found})
    ax.legend()
    ax.set(xlabel=axis, ylabel=label, xscale="log", xticks=x, xticklabels=[f"{n:,}" for n in x])
    ax.minorticks_off()
    ax.margins(0.12)
    ax.grid(alpha=0.3)


def layouts(path, ways):
    """What is left of real volumes: PSNR by view and by place in the tile, and roughness.

    :param ways: {"LAYOUT, DECODER": numbers of `benchmarks.layouts.measure`}
    """
    panels = {"PSNR of slices, dB": ["axial", "coronal", "sagittal"],
              "PSNR by place in a tile of three, dB": ["place_0", "place_1", "place_2"],
              "gradient energy over real": ["gradient_right", "gradient_anterior",
                                            "gradient_superior"]}
    fig = Figure(figsize=(14, 4.2))
    axes = fig.subplots(1, len(panels))
    width = 0.8 / len(ways)
    for ax, (title, keys) in zip(axes, panels.items()):
        for k, (name, numbers) in enumerate(ways.items()):
            x = np.arange(len(keys)) + width * (k - (len(ways) - 1) / 2)
            ax.bar(x, [numbers[key] for key in keys], width, color=f"C{k // 2}",
                   alpha=1 if k % 2 else 0.45, label=name)
        ax.set_xticks(range(len(keys)), [key.replace("_", " ") for key in keys])
        ax.set_title(title, fontsize=10)
        ax.tick_params(labelsize=8)
        shown = [numbers[key] for numbers in ways.values() for key in keys]
        ax.set_ylim(min(shown) - 0.25 * (max(shown) - min(shown)), None)
        _remove_box(ax)
    axes[2].axhline(1, color="black", lw=1, ls=":")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8,
               frameon=False)
    fig.tight_layout(rect=(0, 0.12, 1, 1))
    save_figure(fig, path)
