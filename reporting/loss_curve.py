"""The losses of a training run against its steps, from log.jsonl."""
import sys

from matplotlib.figure import Figure

from reporting.figures import save_figure
from utils.escaping import printable

LOG_SCALE_FROM = 30     # last step / first one: from here on the steps are on a logarithmic scale
LOSSES = {              # of a log.jsonl: label, marker, color
    "loss": ("training, mean since the last log line", "", "0.65"),
    "held_out_train_loss": ("training volumes, measured as the held-out ones (EMA)", "o", "C0"),
    "held_out_loss": ("held-out volumes (EMA)", "o", "C3"),
}


def draw(path, entries):
    """Draws the losses that a log has, and marks the lowest of held-out volumes.

    Nothing is drawn if there are not two points to connect.

    :param entries: of log.jsonl, dicts with "step" and some of LOSSES; null: not finite. Of
        held-out losses those of the last entry's volumes ("key") are drawn
    """
    curves = {name: _points(entries, name) for name in LOSSES}
    if max(map(len, curves.values())) < 2:
        return
    fig = Figure(figsize=(7.5, 4.2))
    ax = fig.subplots()
    for name, points in curves.items():
        if points:
            label, marker, color = LOSSES[name]
            ax.plot(*zip(*points), marker=marker, ms=3, lw=1.3, color=color, label=label)
    if curves["held_out_loss"]:
        _mark_lowest(ax, curves["held_out_loss"])
    steps = [step for points in curves.values() for step, _ in points]
    if max(steps) >= LOG_SCALE_FROM * min(steps):
        ax.set_xscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss (mse + vb)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    save_figure(fig, path)


def draw_or_warn(path, entries):
    """Draws as `draw` does; a picture that cannot be written is no failure of a training."""
    try:
        draw(path, entries)
    except OSError as e:
        print(f"warning: {printable(path)}: cannot be written ({e.strerror})", file=sys.stderr,
              flush=True)


def _points(entries, name):
    """(step, value) of a loss, by step."""
    found = [entry for entry in entries if isinstance(entry.get(name), float)]
    if found and "key" in found[-1]:
        found = [entry for entry in found if entry.get("key") == found[-1]["key"]]
    return sorted((entry["step"], entry[name]) for entry in found)


def _mark_lowest(ax, points):
    step, value = min(points, key=lambda point: point[1])
    ax.plot(step, value, "o", ms=9, mfc="none", mec="C3")
    ax.annotate(f"lowest: step {step:,}", (step, value), xytext=(0, -14), fontsize=8, color="C3",
                textcoords="offset points", ha="center", va="top")
