"""Volumes to scroll through in report.html, real beside synthetic."""
from dataclasses import dataclass

import numpy as np

from reporting import packed_volumes
from reporting.page import embedded_json, embedded_text, web_file
from utils.escaping import printable

MAX_BYTES = 27_000_000  # of the volumes in a page: with its pictures, it stays below 30 MB


@dataclass(frozen=True)
class Viewer:
    """A block of a report, see reporting/blocks.py."""
    sets: list      # of {"name", "n", "voxel_mm", "affine", "ids", "packed"}
    side: int       # voxels
    wanted: int     # volumes of each set that were asked for

    styles = ("volumes.css", "viewer.css")
    scripts = ("volumes.js", "viewer.js")

    def counts(self):
        """Which share of each set is shown, in words."""
        return " and ".join(f"{len(found['ids'])} of {found['n']} {found['name']}"
                            for found in self.sets)

    def note(self):
        """What was left out because the page would be too large; "" if nothing."""
        shown = len(self.sets[0]["ids"]), len(self.sets[1]["ids"])
        if shown == tuple(min(self.wanted, found["n"]) for found in self.sets):
            return ""
        return (f"--viewer-volumes {self.wanted}: the page holds {self.counts()} volumes, as more "
                f"would take over {MAX_BYTES / 1e6:g} MB")

    def markdown(self):
        return f"`report.html` shows {self.counts()} volumes in three views to scroll through."

    def html(self, figures):
        described = [{key: found[key] for key in ("name", "voxel_mm", "affine", "ids")}
                     for found in self.sets]
        volumes = "\n".join(
            embedded_text(f"volume-{found['name']}-{index}", text)
            for found in self.sets for index, text in enumerate(found["packed"]))
        description = embedded_json("viewer-description", {"side": self.side, "sets": described})
        note = self.note() and f" {self.note()}."
        return (f"<p>{self.counts()} volumes, evenly spaced in the order of their ids.{note}</p>\n"
                f"{web_file('viewer.html')}\n{description}\n{volumes}")


def make_viewer(pool, wanted):
    """The viewer of an evaluation.

    :param pool: metrics.statistic.Pool, loaded
    :param wanted: largest number of volumes of each set
    :return: Viewer, or None if none are wanted
    """
    if wanted == 0:
        return None
    chosen = {name: _spread(len(pool.sets[name]), wanted) for name in ("real", "synthetic")}
    packed = {name: [] for name in chosen}
    room = MAX_BYTES
    for turn in range(max(map(len, chosen.values()))):
        for name, indices in chosen.items():
            if turn < len(indices):
                volume = pool.part(name)[indices[turn]]
                text = packed_volumes.packed(packed_volumes.deflate(volume))
                room -= len(text)
                if room >= 0 or turn == 0:
                    packed[name].append(text)
    sets = []
    for name, texts in packed.items():
        found = pool.sets[name]
        sets.append({
            "name": name, "n": len(found), "packed": texts,
            "voxel_mm": [round(float(size), 3) for size in found.voxel_sizes],
            "affine": None if found.affine is None else np.asarray(found.affine)[:3].tolist(),
            "ids": [printable(found.ids[i]) for i in chosen[name][:len(texts)]]})
    return Viewer(sets, pool.side, wanted)


def _spread(count, wanted):
    """Indices of at most so many of a set's volumes, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
