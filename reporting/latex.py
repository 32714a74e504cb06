"""The numbers of an evaluation as LaTeX tables, as a paper prints them (package booktabs)."""
import re

from reporting.rounding import number, with_range, with_span
from reporting.structures import main_entries
from utils.escaping import latex_text

HEAD = "% Needs \\usepackage{booktabs}. Made from metrics.json.\n"


def tables(content):
    """The numbers of the report's table, and of each class if there are any, as tables.

    :param content: what metrics.json holds
    :return: text of a .tex file that a paper can \\input
    """
    parts = [HEAD, _table(*_numbers(content), _caption(content), "tab:evaluation")]
    if "by_class" in content:
        parts.append(_table(*_numbers_by_class(content),
                            "The same numbers for each class.", "tab:evaluation-classes"))
    return "\n".join(parts)


def _caption(content):
    sets = content["sets"]
    return latex_text(
        f"{sets['synthetic']['n']} synthetic against {sets['real']['n']} real volumes of "
        f"{content['size']}³ voxels. Synthetic: value [95% interval]. Floor: the same number "
        "between two random halves of the real set, mean over splits.")


def _numbers(content):
    """Heading and rows of the table of all numbers."""
    entries = main_entries(content["metrics"]).values()
    tested = any("p" in entry for entry in entries)
    rows = []
    for entry in entries:
        value, span = with_span(entry["value"], entry.get("interval"))
        target = entry["aim"]
        if "target" in entry:
            target = "".join(with_span(entry["target"]["value"], entry["target"].get("interval")))
        p = [number(entry.get("p"), 2)] if tested else []
        rows.append([entry["name"], value + span, target, *p, _floor(entry.get("floor"))])
    return ["metric", "synthetic", "real or target", *(["p"] * tested), "floor"], rows


def _floor(found):
    """The mean of the floor, rounded by its range."""
    if not found:
        return number(None)
    return with_range(found["mean"], found["low"], found["high"]).split(" ")[0]


def _numbers_by_class(content):
    """Heading and rows of the table with a column per class."""
    classes = content["by_class"]
    keys = dict.fromkeys(key for found in classes.values()
                         for key in main_entries(found["metrics"]))
    rows = []
    for key in keys:
        entries = [found["metrics"].get(key, {}) for found in classes.values()]
        name = next(entry["name"] for entry in entries if entry)
        rows.append([name, *("".join(with_span(entry.get("value"), entry.get("interval")))
                             for entry in entries)])
    return ["metric", *classes], rows


def _table(head, rows, caption, label):
    """A table environment with the rules of booktabs.

    :param caption: LaTeX; the cells are plain texts
    """
    lines = [_row(head), r"\midrule", *map(_row, rows)]
    return "\n".join((
        r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", f"\\label{{{label}}}",
        r"\scriptsize", r"\setlength{\tabcolsep}{3pt}",
        f"\\begin{{tabular}}{{p{{0.28\\linewidth}}{'l' * (len(head) - 1)}}}", r"\toprule",
        *lines, r"\bottomrule",
        r"\end{tabular}", r"\end{table}", ""))


def _row(cells):
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(text):
    """A cell; brackets at its beginning would be an option of the command before it."""
    return re.sub(r"^\[", "{[}", latex_text(text))
