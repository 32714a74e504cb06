"""."""
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from reporting.figures import save_figure

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
    save_figure(fig, path)


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
    save_figure(fig, path)


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
    save_figure(fig, path)


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
    save_figure(fig, path)


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
    save_figure(fig, path)
