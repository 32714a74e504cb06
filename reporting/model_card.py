"""The README.md of published weights: what they are, what from, how good, and how to use them."""
from reporting.rounding import with_span
from reporting.structures import main_entries
from utils.errors import UserError
from utils.escaping import code, markup
from utils.files import read_json

EVALUATION_FORMAT = "mosaicdit-evaluation"
BASE_LICENSE = "cc-by-nc-4.0"   # of the public DiT weights
UNKNOWN_LICENSE = "other"
CAUTION = (
    "Synthetic volumes can copy training volumes: before you share weights or samples, look for "
    "copies (`evaluate.py --train`) and read the terms under which the scans were given to you. "
    "Not a medical device.")


def read_metrics(path, checkpoint, sha256):
    """The content of evaluate.py's metrics.json, for samples of one checkpoint.

    :param checkpoint, sha256: path and SHA-256 of the checkpoint
    :raises UserError: no such file, or about samples of something else
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != EVALUATION_FORMAT \
            or not isinstance(content.get("metrics"), dict):
        raise UserError(f"--metrics {path}: not written by evaluate.py; give its metrics.json")
    judged = _recipe(content).get("ckpt_sha256")
    if judged != sha256:
        of = "not recorded of which checkpoint" if judged is None else "of another checkpoint"
        raise UserError(f"--metrics {path}: its samples are {of}; evaluate samples of "
                        f"{checkpoint}, or leave it out")
    return content


def _recipe(content):
    """How the evaluated samples were made; {} if the folder does not say it."""
    found = content
    for key in ("sets", "synthetic", "made_by", "recipe"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def model_card(metadata, *, sha256, weights, files, usage, notes, metrics=None, covariates=None):
    """The Markdown text of a model card.

    :param metadata: of the checkpoint
    :param sha256: of the checkpoint
    :param weights: "ema" or "raw"
    :param files: {name: what it holds}
    :param usage: Markdown, how the files are loaded
    :param notes: sentences about what is different from the checkpoint
    :param metrics: content of metrics.json, or None
    :param covariates: phrase on what the model is conditioned on, or None
    """
    header = metadata["header"]
    size = header["size"]
    license_name, license_text = _license(metadata)
    parts = [
        "---", f"license: {license_name}", "tags:", "- mri", "- brain", "- diffusion", "- dit",
        "---", "", f"# {markup(metadata['model'])} for brain MRIs of {size} × {size} × {size} "
        "voxels", "", "Exported by MosaicDiT, which generates a 3D volume as one 2D mosaic of its "
        "slices.", "", "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(metadata, sha256, weights, covariates)),
        "", "## Files", "", *(f"- {code(name)}: {text}" for name, text in files.items()),
        "", "## Use", "", usage, ""]
    if notes:
        parts += ["**Differences.**", "", *(f"- {markup(note)}" for note in notes), ""]
    if metrics:
        parts += ["## Evaluation", "", *_table(metrics), ""]
    parts += ["## Limits", "", CAUTION, "", "## License", "", license_text, ""]
    return "\n".join(parts)


def _facts(metadata, sha256, weights, covariates):
    """(name, value in Markdown) of what there is to know about the weights."""
    header, vae, base = metadata["header"], metadata["vae"], metadata.get("begun_from")
    counts = metadata.get("class_counts")
    classes = [f"{i}: {markup(name)}" for i, name in enumerate(header["classes"])]
    if counts and len(counts) == len(classes):
        classes = [f"{name} ({count})" for name, count in zip(classes, counts)]
    pixels = metadata["image_size"]
    conditioned = [("covariates", markup(covariates))] if covariates else []
    yield "training volumes", f"{sum(counts):,}" if counts else "not recorded"
    yield "classes", ", ".join(classes)
    yield from conditioned
    yield "mosaics", f"{pixels} × {pixels} pixels, layout {markup(header['layout'])}"
    yield "base weights", (f"{code(base['name'])}, SHA-256 {code(base['sha256'])}" if base
                           else "none, trained from random weights")
    yield "tuning method", code(metadata["tune"]) + _adapters(metadata)
    yield "steps", f"{metadata['step']:,}"
    yield "weights", {"ema": "moving average (EMA)", "raw": "last values"}[weights]
    yield "VAE", f"{code(vae['name'].rsplit('/', 1)[-1])}, SHA-256 {code(vae['sha256'])}"
    yield "checkpoint", f"SHA-256 {code(sha256)}"
    yield "written by", f"MosaicDiT {markup(metadata.get('mosaicdit_version', 'before 0.5.0'))}"


def _adapters(metadata):
    lora = metadata.get("lora")
    return f", rank {markup(lora['rank'])}, alpha {markup(lora['alpha'])}" if lora else ""


def _license(metadata):
    """Name for the card's header, and a paragraph."""
    if metadata.get("begun_from"):
        return BASE_LICENSE, (
            "Finetuned from pretrained weights. The public DiT weights (facebookresearch/DiT) are "
            "licensed under CC-BY-NC 4.0, which excludes commercial use and extends to what is "
            "finetuned from them.")
    return UNKNOWN_LICENSE, (
        "Trained from random weights: no license of pretrained weights applies, and none is "
        "chosen yet.")


def _table(metrics):
    """Lines of a Markdown table of the numbers of metrics.json; of single structures none."""
    synthetic = metrics["sets"]["synthetic"]
    refined = ", refined" if _recipe(metrics).get("refiner_sha256") else ""
    lines = [f"{markup(synthetic.get('n', '?'))} samples{refined}, against "
             f"{markup(metrics['sets'].get('real', {}).get('n', '?'))} real volumes "
             f"(`evaluate.py`, {markup(metrics.get('date', 'no date'))}):", "",
             "| metric | value | aim |", "|---|---|---|"]
    for found in main_entries(metrics["metrics"]).values():
        value, interval = with_span(found.get("value"), found.get("interval"))
        lines.append(f"| {markup(found.get('name'))} | {value}{interval} | "
                     f"{markup(_aim(found))} |")
    return lines


def _aim(found):
    """What the number should be; "real" stands for the number of the real volumes."""
    target = found.get("target")
    if found.get("aim") == "real" and isinstance(target, dict):
        value, _ = with_span(target.get("value"), target.get("interval"))
        return f"{value}, as of the real volumes"
    return found.get("aim")
