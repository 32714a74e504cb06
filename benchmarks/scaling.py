"""Cost of the optimized training step as tokens and batch size grow."""
import dataclasses

import numpy as np

from benchmarks import measure, networks, training_cost
from reporting import charts
from utils.files import write_text

WAYS = {"all": training_cost.optimized_step, "foreground": training_cost.foreground_step}
HEADING = ("| mosaic | tokens | batch | s/step | images/s | TFLOP/s | peak GB |",
           "|---|---|---|---|---|---|---|")


def measure_all(setup, image_sizes, batch_sizes):
    """Measures all image sizes with the first batch size, then the first with all batch sizes.

    :param setup: TrainingSetup of everything but the sizes
    :param image_sizes: sides of the mosaics, pixels
    :param batch_sizes: mosaics per step
    :return: yields (name in WAYS, TrainingSetup, TrainingCost; None if out of memory), one after
        another
    """
    sizes = [(image_size, batch_sizes[0]) for image_size in image_sizes]
    sizes += [(image_sizes[0], batch_size) for batch_size in batch_sizes[1:]]
    for image_size, batch_size in sizes:
        measured = dataclasses.replace(setup, image_size=image_size, batch_size=batch_size)
        for name, way in WAYS.items():
            yield name, measured, measure.alone(way, measured)


def computed_tokens(name, setup):
    """Number of tokens that a way computes."""
    return setup.tokens if name == "all" else len(networks.foreground_tokens(setup))


def row(name, setup, cost):
    """One line of the Markdown table under HEADING."""
    tokens = f"{computed_tokens(name, setup)}, {name}"
    start = f"| {setup.image_size} x {setup.image_size} | {tokens} | {setup.batch_size} |"
    if cost is None:
        return f"{start} out of memory | | | |"
    seconds = float(np.median(cost.step_seconds))
    rate = cost.operations * setup.batch_size / seconds
    return (f"{start} {seconds:.3f} | {setup.batch_size / seconds:.4f} | {rate / 1e12:.3f} | "
            f"{cost.peak_gb:.2f} |")


def write(folder, lines, measured, title):
    """Writes scaling.md, the table, and scaling.png.

    :param measured: list of (name in WAYS, TrainingSetup, TrainingCost)
    """
    points = [dict(way=name, image=setup.image_size, tokens=setup.tokens, batch=setup.batch_size,
                   seconds=float(np.median(cost.step_seconds)), peak=cost.peak_gb)
              for name, setup, cost in measured]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scaling.md", "\n".join(lines) + "\n")
    charts.scaling(folder / "scaling.png", points, title)
