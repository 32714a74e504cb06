"""The results of a study as a table and a figure."""
import dataclasses
import json
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from benchmarks.study import KEYS  # noqa: E402
from utils.files import atomic_file, write_text  # noqa: E402

TITLES = {"mmd_linear": "MMD, linear", "ms_ssim": "MS-SSIM within the set",
          "through_plane": "through-plane roughness"}
DIGITS = {"mmd_linear": 1, "ms_ssim": 3, "through_plane": 3}


def table(study, seconds, equal_steps, equal_time):
    """The results as lines of Markdown: mean (lowest … highest) over the seeds.

    :param study: study.Study
    :param seconds: {variant: seconds per step}
    :param equal_steps, equal_time: lists of Outcomes
    """
    head = ["variant", "trainable parameters", "s per step", "relative",
            *(f"{TITLES[key]}, equal steps" for key in KEYS), "steps in equal time",
            *(f"{TITLES[key]}, equal time" for key in KEYS)]
    lines = [f"{study.seeds} seeds, {study.steps} steps; mean (lowest … highest) over the seeds. "
             f"{describe_targets(equal_steps)}", "",
             f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    reference = next(iter(seconds.values()))
    for name in study.variants:
        first = of_variant(equal_steps, name)
        second = of_variant(equal_time, name)
        cells = [name, f"{first[0].trainable:,}", f"{seconds[name]:.3g}",
                 f"{seconds[name] / reference:.2f}",
                 *(spread(first, key) for key in KEYS), str(second[0].steps),
                 *(spread(second, key) for key in KEYS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe_targets(outcomes):
    """What the real volumes have, as a phrase."""
    return "; ".join(f"{TITLES[key]} of the real set: {value:.{DIGITS[key]}f}"
                     for key, value in outcomes[0].targets.items())


def of_variant(outcomes, name):
    return [outcome for outcome in outcomes if outcome.variant == name]


def spread(outcomes, key):
    """Mean (lowest … highest) of one number."""
    values = [outcome.numbers[key] for outcome in outcomes]
    digits = DIGITS[key]
    return (f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} … "
            f"{max(values):.{digits}f})")


def draw(path, study, equal_steps, equal_time):
    """A panel per number: a dot per seed, at equal steps and at equal time."""
    names = list(study.variants)
    figure, panels = plt.subplots(1, len(KEYS), figsize=(4.2 * len(KEYS), 1.2 + 0.45 * len(names)),
                                  sharey=True, layout="constrained")
    for panel, key in zip(panels, KEYS):
        for shift, outcomes, color, label in ((-0.12, equal_steps, "tab:blue", "equal steps"),
                                              (0.12, equal_time, "tab:orange", "equal time")):
            values = [outcome.numbers[key] for outcome in outcomes]
            rows = [names.index(outcome.variant) + shift for outcome in outcomes]
            panel.scatter(values, rows, s=22, color=color, label=label)
        if key in equal_steps[0].targets:
            panel.axvline(equal_steps[0].targets[key], color="gray", label="real")
        panel.set_xlabel(TITLES[key])
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    handles, labels = panels[KEYS.index("ms_ssim")].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def write(study, lines, seconds, equal_steps, equal_time):
    """Writes study.md, study.json and study.png into the study's folder."""
    write_text(study.output / "study.md", "\n".join(lines) + "\n")
    content = {
        "variants": study.variants, "train_flags": study.train_flags,
        "sample_flags": study.sample_flags, "data_path": str(study.data_path),
        "step_seconds": seconds,
        "equal_steps": [dataclasses.asdict(outcome) for outcome in equal_steps],
        "equal_time": [dataclasses.asdict(outcome) for outcome in equal_time]}
    write_text(study.output / "study.json", json.dumps(content, indent=1) + "\n")
    draw(study.output / "study.png", study, equal_steps, equal_time)
