"""Volumes to scroll through in report.html: real beside synthetic, copies beside their sources."""
from dataclasses import dataclass

import numpy as np

from reporting import packed_volumes
from reporting.copy_pairs import copy_and_source, how_moved
from reporting.page import embedded_json, embedded_text, web_file
from utils.escaping import printable

MAX_BYTES = 27_000_000  # of the volumes in a page: with its pictures, it stays below 30 MB


@dataclass(frozen=True)
class Viewer:
    """A block of a report, see reporting/blocks.py."""
    name: str       # in the page, of this viewer alone
    heading: str
    sets: list      # of {"name", "title", "n", "voxel_mm", "affines", "ids", "packed"}
    side: int       # voxels
    wanted: int     # volumes of each set that were asked for
    paired = False  # volumes of the two sets belong together

    styles = ("volumes.css", "viewer.css")
    scripts = ("volumes.js", "viewer.js")
    order = "evenly spaced in the order of their ids"

    def counts(self):
        """Which share of each set is shown, in words."""
        return " and ".join(f"{len(found['ids'])} of {found['n']} {found['name']}"
                            for found in self.sets) + " volumes"

    def note(self):
        """What was left out because the page would be too large; "" if nothing."""
        shown = [len(found["ids"]) for found in self.sets]
        if shown == [min(self.wanted, found["n"]) for found in self.sets]:
            return ""
        return (f"--viewer-volumes {self.wanted}: the page holds {self.counts()}, as more "
                f"would take over {MAX_BYTES / 1e6:g} MB")

    def markdown(self):
        return f"`report.html` shows {self.counts()} in three views to scroll through."

    def html(self, figures):
        described = [{key: found[key] for key in ("name", "title", "voxel_mm", "affines", "ids")}
                     for found in self.sets]
        volumes = "\n".join(
            embedded_text(f"volume-{found['name']}-{index}", text)
            for found in self.sets for index, text in enumerate(found["packed"]))
        description = embedded_json(f"{self.name}-description", {
            "side": self.side, "paired": self.paired, "sets": described})
        note = self.note() and f" {self.note()}."
        return (f"<p>{self.counts()}, {self.order}.{note}</p>\n"
                f'<section class="viewer" data-name="{self.name}" aria-label="{self.heading}">\n'
                f"{web_file('viewer.html')}</section>\n{description}\n{volumes}")


@dataclass(frozen=True)
class CopiesViewer(Viewer):
    """Flagged copies, each beside its source: choosing one chooses the other."""
    paired = True
    order = ("each beside the training volume that it matches, which is mirrored and moved as it "
             "matches; the clearest first")

    def counts(self):
        copies = self.sets[0]
        return f"{len(copies['ids'])} of {copies['n']} flagged copies"


class _Room:
    """How many bytes of packed volumes a page can still take."""

    def __init__(self):
        self.left = MAX_BYTES

    def pack(self, volumes, always=False):
        """Volumes that belong together, packed; [] if they do not fit, as all after them.

        :param always: they are taken even if they do not fit
        """
        texts = [packed_volumes.packed(packed_volumes.deflate(volume)) for volume in volumes]
        self.left -= sum(map(len, texts))
        return texts if always or self.left >= 0 else []


def make_viewers(pool, wanted, flagged=()):
    """The viewers of an evaluation: of the sets and, if there are any, of flagged copies.

    If not all fit, a page holds one volume of each set and one copy, then more of the sets.

    :param pool: metrics.statistic.Pool, loaded
    :param wanted: largest number of volumes of each set, and of copies
    :param flagged: of metrics.json's entry "copies"
    :return: list of Viewer; empty if none are wanted
    """
    if wanted == 0:
        return []
    room = _Room()
    first_pair = [room.pack(copy_and_source(pool, found), always=True) for found in flagged[:1]]
    viewers = [_of_sets(pool, wanted, room)]
    if first_pair:
        others = [room.pack(copy_and_source(pool, found)) for found in flagged[1:wanted]]
        pairs = [*first_pair, *filter(None, others)]
        viewers.append(_of_copies(pool, wanted, flagged, pairs))
    return viewers


def _of_sets(pool, wanted, room):
    """Volumes of the real and the synthetic set, by turns."""
    chosen = {name: _spread(len(pool.sets[name]), wanted) for name in ("real", "synthetic")}
    packed = {name: [] for name in chosen}
    for turn in range(max(map(len, chosen.values()))):
        for name, indices in chosen.items():
            if turn < len(indices):
                volume = pool.part(name)[indices[turn]]
                packed[name] += room.pack([volume], always=turn == 0)
    sets = []
    for name, texts in packed.items():
        found, shown = pool.sets[name], chosen[name][:len(texts)]
        sets.append(_described(name, name, len(found), found.voxel_sizes, _affines(found, shown),
                               [found.ids[i] for i in shown], texts))
    return Viewer("viewer", "Volumes", sets, pool.side, wanted)


def _of_copies(pool, wanted, flagged, pairs):
    """Copies beside their sources.

    :param pairs: list of [packed copy, packed source], of the first of `flagged`
    """
    copies, sources = map(list, zip(*pairs))
    shown = flagged[:len(pairs)]
    found = pool.sets["synthetic"]
    affines = _affines(found, [found.ids.index(copy["volume"]) for copy in shown])
    sets = [
        _described("copy", "flagged synthetic volume", len(flagged), found.voxel_sizes, affines,
                   [copy["volume"] for copy in shown], copies),
        _described("source", "training volume that it matches", len(flagged),
                   pool.train.voxel_sizes, None,
                   [copy["source"] + how_moved(copy) for copy in shown], sources)]
    return CopiesViewer("copies", "Copies beside their sources", sets, pool.side, wanted)


def _affines(found, indices):
    """The upper three rows of the affine of each volume; None where world coordinates are not
    known."""
    if found.affine is None:
        return None
    own = found.affine_of or (lambda i: found.affine)
    return [np.asarray(own(i))[:3].tolist() for i in indices]


def _described(name, title, n, voxel_sizes, affines, ids, packed):
    """One of the sets of a Viewer."""
    return {"name": name, "title": title, "n": n, "packed": packed, "affines": affines,
            "voxel_mm": [round(float(size), 3) for size in voxel_sizes],
            "ids": [printable(one) for one in ids]}


def _spread(count, wanted):
    """Indices of at most so many of a set's volumes, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
