"""Volumes of structures in every volume of a set, and how sound each segmentation is.

Segmenting takes seconds a volume, so the numbers are kept in a file in the set's folder,
`anatomy-HASH.json`, under a key that voxels, voxel sizes and the network determine: what it holds
is never out of date, and an evaluation that was stopped resumes there.
"""
import hashlib
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from mri import geometry, meshnet, structures
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.progress import progress

FORMAT = "mosaicdit-anatomy"
DECIMALS = 6            # of what is kept; used at once, too, so that it makes no difference
METHOD = 1              # of measuring; another one has other keys
MIDLINE = ("3rd_ventricle", "4th_ventricle", "brain_stem")  # of one piece; the others have two
SYMMETRIC = tuple(name for name in structures.STRUCTURES
                  if name not in (*MIDLINE, "ventral_dc"))  # lie in one hemisphere each
QUALITIES = ("largest_piece", "cavities", "loose", "entropy", "asymmetry")
COLUMNS = (*structures.STRUCTURES, *QUALITIES)
_measured = {}          # {key: values}, of this process: a folder may not be writable


def measure(segmentation):
    """Volumes, and what tells whether the segmentation is sound.

    :param segmentation: mri.structures.Segmentation
    :return: (len(COLUMNS),): volumes of the structures, ml; then
        largest_piece: share of the brain in its largest piece
        cavities: volume of the background that the brain encloses, over that of the brain
        loose: share of the brain outside its structures' largest pieces, one of a structure of
            MIDLINE and two of the others
        entropy: of the network's probabilities, bits, mean over the brain
        asymmetry: |left - right| / (left + right), mean over the structures of SYMMETRIC, divided
            by the sagittal plane through the brain's center of mass
    """
    labels = segmentation.labels
    counts = np.bincount(labels.reshape(-1), minlength=1 + len(structures.STRUCTURES))[1:]
    volumes = counts * segmentation.voxel_sizes.prod() / 1000
    brain = labels > 0
    size = counts.sum()
    if not size:
        return np.array([*volumes, 0, 0, 0, np.nan, np.nan])
    largest = _pieces(brain)[0] / size
    cavities = (ndimage.binary_fill_holes(brain).sum() - size) / size
    return np.array([*volumes, largest, cavities, _loose(labels) / size, segmentation.entropy,
                     _asymmetry(labels)])


def _pieces(mask):
    """Sizes of a mask's connected pieces, the largest first; voxels touch by a corner."""
    found, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return np.sort(np.bincount(found.reshape(-1), minlength=count + 1)[1:])[::-1]


def _loose(labels):
    """Number of voxels outside the largest pieces of their structures."""
    loose = 0
    for k, box in enumerate(ndimage.find_objects(labels, len(structures.STRUCTURES))):
        if box is not None:
            expected = 1 if structures.STRUCTURES[k] in MIDLINE else 2
            loose += _pieces(labels[box] == k + 1)[expected:].sum()
    return loose


def _asymmetry(labels):
    across = (labels > 0).sum((1, 2))
    middle = (across * np.arange(len(across))).sum() / across.sum()
    left = np.arange(len(across)) < middle            # RAS: index 0 is the leftmost
    shares = []
    for name in SYMMETRIC:
        by_plane = (labels == 1 + structures.STRUCTURES.index(name)).sum((1, 2))
        total = by_plane.sum()
        if total:
            shares.append(abs(2 * by_plane[left].sum() - total) / total)
    return np.mean(shares) if shares else np.nan


class Segmenter:
    """Measures volumes with one network, which is loaded when the first needs it.

    :param folder: of the network, that structures.find_network accepts
    :param device: of the network
    """

    def __init__(self, folder, device):
        self.folder = folder
        self.device = device
        self.name = meshnet.fingerprint(folder)
        self._network = None

    def segment(self, volume, affine):
        """See `structures.segment`."""
        if self._network is None:
            self._network = meshnet.load(self.folder).to(self.device)
        return structures.segment(volume, affine, self._network, self.device)

    def measure_all(self, volumes, affines, ids, folder, label):
        """Measures what is not known yet, and keeps it in the folder of the set.

        :param volumes: (N, D, D, D) uint8
        :param affines: (N,) affines of (4, 4)
        :param ids: (N,) for a person who reads the file
        :param folder: where it is kept
        :param label: of the volumes, for the progress
        :return: (N, len(COLUMNS))
        """
        keys = [self.key(volume, affine) for volume, affine in zip(volumes, affines)]
        kept = _Kept(folder, self.name)
        _measured.update({key: kept.values[key] for key in keys if key in kept.values})
        missing = [i for i, key in enumerate(keys) if key not in _measured]
        if len(missing) < len(keys):
            print(f"{label}: {len(keys) - len(missing)} of {len(keys)} volumes are segmented "
                  f"already ({kept.path})", flush=True)
        for i in progress(missing, f"{label}, structures"):
            values = measure(self.segment(volumes[i], affines[i])).round(DECIMALS)
            _measured[keys[i]] = values
            kept.add(keys[i], ids[i], values)
        return np.array([_measured[key] for key in keys])

    def key(self, volume, affine):
        """What determines the measurements of a volume, as a text."""
        sizes = ",".join(f"{size:.6g}" for size in geometry.voxel_sizes(affine))
        dtype = structures.compute_dtype(self.device)
        voxels = hashlib.sha256(np.ascontiguousarray(volume)).hexdigest()
        return hashlib.sha256(f"{METHOD} {self.name} {dtype} {sizes} {voxels}".encode()).hexdigest()


class _Kept:
    """The file of measurements in a set's folder.

    A file that is not ours or cannot be written is left alone, which is said once.
    """

    def __init__(self, folder, network):
        digest = network.rsplit(" ", 1)[-1]
        self.path = Path(folder) / f"anatomy-{digest}.json"
        self.network = network
        self.values, self._ids, self._writable = {}, {}, True
        if self.path.exists():
            self._read()

    def _read(self):
        try:
            content = read_json(self.path)
            if content["format"] != FORMAT or content["columns"] != list(COLUMNS):
                raise ValueError("of another version")
            for key, (name, *values) in content["volumes"].items():
                found = np.array([np.nan if x is None else float(x) for x in values])
                if len(found) == len(COLUMNS):
                    self.values[key], self._ids[key] = found, str(name)
        except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError) as e:
            self._writable = False
            print(f"warning: {self.path}: not used, it holds no volumes of structures "
                  f"({e}); remove it, so that they are kept", flush=True)

    def add(self, key, name, values):
        """Writes one more volume's numbers."""
        if not self._writable:
            return
        self.values[key], self._ids[key] = values, name
        rows = {k: [self._ids[k], *(None if np.isnan(x) else float(x) for x in found)]
                for k, found in self.values.items()}
        content = {"format": FORMAT, "network": self.network, "columns": list(COLUMNS),
                   "volumes": rows}
        try:
            write_text(self.path, json.dumps(content, indent=0) + "\n")
        except OSError as e:
            self._writable = False
            print(f"warning: {self.path}: cannot be written ({e.strerror}), so volumes of "
                  "structures are not kept for the next evaluation", flush=True)
