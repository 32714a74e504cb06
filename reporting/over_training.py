"""Quality against copying by training step: a figure, a table and a short report."""
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reporting.blocks import Bullets, Heading, Paragraph, Picture, Table, markdown_page
from reporting.figures import save_figure
from reporting.rounding import number
from utils.escaping import code
from utils.files import write_text

FIGURE = "over-training.png"
TABLE = "over-training.tsv"
REPORT = "report.md"
QUALITY, COPYING, HELD_OUT = "#2a6f97", "#bc6c25", "0.45"


def write(folder, rows, columns, run, covariates=()):
    """Writes the figure, the table and the report.

    :param folder: Path, exists
    :param rows: list of dicts, in the order of their steps; None: not computed
    :param columns: {column: what it is}
    :param run: folder of the run, as text
    :param covariates: names of those that the samples were asked to have
    """
    lines = ["\t".join(columns)]
    for row in rows:
        lines.append("\t".join("n/a" if row[name] is None else repr(row[name])
                               for name in columns))
    write_text(folder / TABLE, "\n".join(lines) + "\n")
    (folder / "figures").mkdir(exist_ok=True)
    draw(folder / "figures" / FIGURE, rows)
    write_text(folder / REPORT, markdown_page(report_blocks(rows, columns, run,
                                                             covariates)))


def report_blocks(rows, columns, run, covariates=()):
    """The report as blocks; parameters as `write` takes them."""
    table = Table(list(columns), [[number(row[name]) if isinstance(row[name], float)
                                   else "–" if row[name] is None else str(row[name])
                                   for name in columns] for row in rows])
    asked = (f" Each sample was asked to have the {_covariates_in_words(covariates)} of a random "
             "training volume of its class." if covariates else "")
    return [
        Heading(1, "Quality and copying over training"),
        Paragraph(f"Run {code(run)}, {len(rows)} checkpoint{'s' * (len(rows) > 1)}, "
                  f"{rows[0]['samples']} samples each.{asked}"),
        Bullets(findings(rows)), table,
        Picture(FIGURE, "By training step. Quality: MMD (lower is better) and coverage (higher is "
                "better). Copying: how much nearer samples are to one training volume than to all "
                "others (low is copying), with held-out real volumes for comparison, and the share "
                "of samples flagged as copies."),
        Bullets([f"{name}: {text}" for name, text in columns.items()])]


def _covariates_in_words(names):
    """"covariates `age` and `sex`", or with one name "covariate `age`"."""
    *others, last = map(code, names)
    if not others:
        return f"covariate {last}"
    return f"covariates {', '.join(others)} and {last}"


def findings(rows):
    """What the rows say, as sentences."""
    found = []
    best = min((row for row in rows if row["mmd"] is not None), key=lambda row: row["mmd"],
               default=None)
    if best:
        found.append(f"Lowest MMD: step {best['step']}")
    copying = [row["step"] for row in rows if row["copies"]]
    if copying:
        found.append(f"Samples flagged as copies: first at step {copying[0]}, at {len(copying)} of "
                     f"{len(rows)} checkpoints")
    else:
        found.append("No sample of any checkpoint is flagged as a copy")
    losses = [row for row in rows if row["held_out_loss"] is not None]
    if losses:
        least = min(losses, key=lambda row: row["held_out_loss"])
        found.append(f"Lowest held-out loss: step {least['step']}")
    else:
        found.append("The run's log.jsonl holds no held-out loss (`held_out_loss`)")
    found.append("With few samples, a difference between two checkpoints is mostly chance: see "
                 "how far the numbers move between neighbors")
    return found


def draw(path, rows):
    """The panels over the steps; that of the held-out loss if there is one."""
    losses = any(row["held_out_loss"] is not None for row in rows)
    fig = Figure(figsize=(7.5, 2.5 * (2 + losses) + 0.4))
    axes = fig.subplots(2 + losses, 1, sharex=True)
    _two_scales(axes[0], rows, ("mmd", "MMD, Gaussian", QUALITY),
                ("coverage", "coverage", "#5fa55a"))
    _two_scales(axes[1], rows, ("ratio", "ratio of distances, samples", COPYING),
                ("copied_share", "share flagged as copies", "#a11d33"))
    _line(axes[1], rows, "ratio_of_held_out", "ratio of distances, held-out real", HELD_OUT, "--")
    axes[1].set_ylim(0, 1.05)
    axes[1].legend(fontsize=8, frameon=False, loc="lower left")
    if losses:
        _line(axes[2], rows, "held_out_loss", "held-out loss", QUALITY)
        axes[2].set_ylabel("held-out loss", fontsize=9)
        axes[2].spines[["top", "right"]].set_visible(False)
    for ax in axes:
        ax.tick_params(labelsize=8)
    axes[-1].set_xlabel("training step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    fig.tight_layout()
    save_figure(fig, path)


def _two_scales(ax, rows, left, right):
    """Two numbers over the steps, (column, label, color) each, with a scale on either side."""
    other = ax.twinx()
    for side, (column, label, color), style in ((ax, left, "-"), (other, right, ":")):
        _line(side, rows, column, label, color, style)
        side.set_ylabel(label, color=color, fontsize=9)
        side.tick_params(labelsize=8)
        side.spines["top"].set_visible(False)
    other.set_ylim(-0.03, 1.05)     # a share


def _line(ax, rows, column, label, color, style="-"):
    known = [row for row in rows if row[column] is not None]
    ax.plot([row["step"] for row in known], [row[column] for row in known], "o" + style,
            color=color, label=label, ms=4)
