"""The scores of a reader study in words: lines for the terminal, and scores.md."""
from reporting.blocks import Bullets, Heading, Paragraph, Table, markdown_page
from reporting.rounding import number, with_span
from utils.escaping import markup

HOW = (
    "*AUC*: chance that a synthetic volume is rated higher than a real one; 0.5: the reader cannot "
    "tell. 95% interval from bootstrap replicates of the volumes, readers as they are; none where "
    "replicates do not vary, as when all synthetic volumes are rated higher than all real ones. "
    "*p*: of AUC = 0.5, from permutations.",
    "*Called synthetic*: rated 4 or 5. *Sensitivity*: share of synthetic volumes called so. "
    "*Specificity*: share of real ones that are not. Exact 95% intervals. A 3, \"cannot tell\", "
    "counts as not called so.",
    "*Agreement*: kappa, 0 as by chance, 1 full. Of what volumes are called: Cohen's for two "
    "readers, Fleiss' for more. Of the ratings: Cohen's with quadratic weights, the mean over "
    "pairs of readers.")


def terminal_lines(scores):
    """The scores as lines.

    :param scores: of metrics.reader_scores.score
    """
    return incomplete_lines(scores) + [
        f"{found['reader']}: AUC {_text(found['auc'])}, p {number(found['auc']['p'], 2)}; "
        f"sensitivity {_text(found['sensitivity'])}; specificity {_text(found['specificity'])}"
        for found in scores["readers"]] + _of_all(scores)


def incomplete_lines(scores):
    """Which readers have not rated all cases, with counts."""
    total = sum(scores["cases"].values())
    return [f"warning: {found['reader']} rated {found['rated']} of {total} cases; the numbers are "
            "of these" for found in scores["readers"] if found["rated"] < total]


def markdown(scores):
    """scores.md."""
    n = scores["cases"]
    rows = [[markup(found["reader"]), str(found["rated"]), str(found["undecided"]),
             _text(found["auc"]), number(found["auc"]["p"], 2), _text(found["sensitivity"]),
             _text(found["specificity"])] for found in scores["readers"]]
    head = ["reader", "rated", "rated 3", "AUC [95% interval]", "p", "sensitivity", "specificity"]
    warnings = [Paragraph(f"**Warning:** {markup(line.removeprefix('warning: '))}.")
                for line in incomplete_lines(scores)]
    blocks = [Heading(1, "Reader study"),
              Paragraph(f"{n['real']} real and {n['synthetic']} synthetic volumes, study "
                        f"`{scores['study']}`."),
              Table(head, rows), *warnings]
    if _of_all(scores):
        blocks.append(Bullets(_of_all(scores)))
    return markdown_page([*blocks, Bullets(list(HOW))])


def _of_all(scores):
    """Mean AUC and agreement, of two or more readers."""
    if "agreement" not in scores:
        return []
    agreement = scores["agreement"]
    lines = [f"mean AUC of {len(scores['readers'])} readers: {_text(scores['mean_auc'])}"]
    if not agreement["cases"]:
        return [*lines, "agreement: not known, as no case is rated by all"]
    return [*lines, f"agreement on {agreement['cases']} cases, kappa: of what they are called "
            f"{_text(agreement['calls'])}; of the ratings {_text(agreement['ratings'])}"]


def _text(found):
    return "".join(with_span(found["value"], found["interval"]))
