"""The report's part about anatomy: a table with a row per structure, and how to read it."""
from mri.structures import name_in_text
from reporting.blocks import Heading, Paragraph, Table
from reporting.rounding import number, with_span
from utils.escaping import code, markup

NAMED = 8       # unreliable volumes of a set


def main_entries(entries):
    """The entries of the table of numbers: those that have no table of their own.

    :param entries: {key: entry} of metrics.json
    """
    return {key: entry for key, entry in entries.items() if "family" not in entry}


def effects_by_structure(entries):
    """{structure: {family: entry}} of what metrics.json says of single structures."""
    found = {}
    for entry in entries.values():
        if "family" in entry:
            found.setdefault(entry["structure"], {})[entry["family"]] = entry
    return found


def structure_blocks(entries, layouts):
    """Heading, warnings, table and explanation; empty without anatomy.

    :param entries: {key: entry} of metrics.json
    :param layouts: names of the ceilings
    """
    by_structure = effects_by_structure(entries)
    if not by_structure:
        return []
    whole = entries["anatomy_small_effects"]
    lines = [Paragraph(f"**Note:** {markup(warning)}.") for warning in whole["warnings"]]
    lines += _unreliable(entries.get("anatomy_reliable"))
    rows = [_row(name, found, layouts) for name, found in by_structure.items()]
    head = ["structure", "real, ml", "synthetic, ml", "d of volume [95% interval]", "p, adjusted",
            "d of share of brain [95% interval]", "p, adjusted", "d given the others",
            "p, adjusted", "floor of d of volume",
            *(f"d of volume, real after VAE, {layout}" for layout in layouts)]
    how = (f"Volumes: {whole['source']}; means over volumes. *d*: Cohen's, synthetic − real; "
           "below 0.2 is small. *Share of brain*: of all structures but the ventricles. *Given the "
           "others*: d of what a regression on all other structures does not explain: whether a "
           "structure fits the brain around it. *p, adjusted*: for the structures in its column "
           "(Holm). "
           "*Floor*: lowest … highest of halves of the real set.")
    return [Heading(2, "Anatomy"), *lines, Table(head, rows), Paragraph(how)]


def _row(name, found, layouts):
    volume = found["volume"]
    cells = [name_in_text(name), *(number(volume["mean_ml"][side], 4)
                                       for side in ("real", "synthetic"))]
    for family in ("volume", "share", "conditional"):
        value, span = with_span(found[family]["value"], found[family].get("interval"))
        if not span:
            value = number(found[family]["value"], 2)
        cells += [f"**{value}**{span}", number(found[family].get("p_adjusted"), 2)]
    floor = volume.get("floor")
    cells.append(f"{number(floor['low'], 2)} … {number(floor['high'], 2)}" if floor else "–")
    return cells + [number(volume.get("vae", {}).get(layout), 2) for layout in layouts]


def _unreliable(entry):
    """Which segmentations are not reliable."""
    if not entry or not any(entry["unreliable"].values()):
        return []
    parts = []
    for name, ids in entry["unreliable"].items():
        if ids:
            more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            parts.append(f"{len(ids)} {name}: {', '.join(map(code, ids[:NAMED]))}{more}")
    return [Paragraph(f"Segmentations that are not reliable: {'; '.join(parts)}.")]
