"""Cost of a recipe of preprocess.py: seconds of each stage, scan by scan in one process."""
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.preprocessing_cost import make_scans
from mri import conversion, recipes, scans, skull_strip
from utils.errors import UserError
from utils.progress import progress

DEFAULTS = {"size": 128, "layout": "rgb", "fit": "stretch", "window": (0.0, 99.9)}


def measure(source, count, recipe):
    """Runs a recipe on scans of heads.

    :param source: folder of .nii.gz files, used repeatedly
    :param count: number of scans
    :param recipe: a key of recipes.RECIPES
    :return: {stage: list of seconds, one for each scan}, in the order of the stages
    :raises UserError: no scans, no network, or a scan that cannot be prepared
    """
    settings = settings_of(recipe)
    settings.template_regions()     # the template is read once, for whatever number of scans
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_scans(folder / "in", count, source)
        for name in settings.subfolders:
            (folder / name).mkdir()
        for scan in progress(scans.search(folder / "in").scans, "scans"):
            done = conversion.prepare_scan(scan, folder, settings, torch.get_num_threads())
            if isinstance(done, conversion.SkippedScan):
                raise UserError(f"--input {source}: {done.reason}")
            for stage, value in done.seconds.items():
                seconds.setdefault(stage, []).append(value)
    return seconds


def settings_of(recipe):
    """conversion.Settings of a recipe."""
    flags = recipes.RECIPES[recipe]
    values = {key: flags.get(key, default) for key, default in DEFAULTS.items()}
    space = flags["register"]
    extent = flags.get("field_of_view")
    return conversion.Settings(
        **values, n4=flags["n4"], crop_to_brain=flags["crop"] == "brain", crop_margin=5.0,
        meshnet=skull_strip.find_network(), space=None if space == "none" else space,
        field_of_view=extent and tuple(extent), recipe=recipe)


def report(seconds, recipe):
    """Lines that tell the user what was measured."""
    count = len(next(iter(seconds.values())))
    lines = [f"--recipe {recipe}: {recipes.expand(recipe)}",
             f"{count} scans in one process; threads of the skull strip: {torch.get_num_threads()}",
             "| stage | median, s | longest, s |", "|---|---|---|"]
    for stage, values in seconds.items():
        lines.append(f"| {stage} | {np.median(values):.2f} | {max(values):.2f} |")
    totals = np.sum(list(seconds.values()), axis=0)
    lines.append(f"| all | {np.median(totals):.2f} | {max(totals):.2f} |")
    return lines
