"""Structures of a brain: 17 of them, found by a MeshNet such as model18cls in a volume of any grid.

The network sees the brain at 1 mm. Left and right are found together, as one structure.
"""
from dataclasses import dataclass

import numpy as np
import torch

from mri import geometry, meshnet
from mri.meshnet_inference import infer
from utils.errors import UserError
from utils.precision import cpu_computes_bf16

NETWORK_FOLDER = "meshnet/model18cls"   # in weights/
STRUCTURES = (
    "cerebral_white_matter", "cerebral_cortex", "lateral_ventricle", "inferior_lateral_ventricle",
    "cerebellum_white_matter", "cerebellum_cortex", "thalamus", "caudate", "putamen", "pallidum",
    "3rd_ventricle", "4th_ventricle", "brain_stem", "hippocampus", "amygdala", "accumbens_area",
    "ventral_dc")                       # in the order of the network's classes, from 1
VOXEL_MM = 1.0          # that the network knows
FOREGROUND = 0.05       # of the intensity range, above which there is a head
MARGIN = 4              # voxels kept around it
SPELLINGS = {"VentralDC": "ventral_dc"}    # of colormap.json that differ in more than case
ABBREVIATED = {"csf": "CSF", "ventral_dc": "ventral DC"}    # in texts: cerebrospinal fluid, and
                                                            #   diencephalon


@dataclass(frozen=True)
class Segmentation:
    """The structures of one volume."""
    labels: np.ndarray      # (X, Y, Z) uint8, RAS, about 1 mm: 0, or 1 + index in STRUCTURES
    voxel_sizes: np.ndarray  # (3,) mm, exact
    entropy: float          # mean over the brain's voxels, bits: how unsure the network was


def find_network(folder=None):
    """The folder of the network for structures, once it is known to be one.

    :param folder: Path; None: in weights/
    :return: Path
    :raises UserError: it is not there, damaged, or another network
    """
    path, network = meshnet.find(folder, NETWORK_FOLDER, "structures")
    names = [_plain_name(name) for name in meshnet.label_names(path)[1:]]
    if network.classes != 1 + len(STRUCTURES) or names != list(STRUCTURES):
        raise UserError(f"{path}: a network of {network.classes} classes, not of background and "
                        f"the {len(STRUCTURES)} structures; give model18cls by --meshnet")
    return path


def _plain_name(name):
    """A structure as STRUCTURES has it: "3rd-Ventricle" -> "3rd_ventricle"."""
    return SPELLINGS.get(name, name.replace("-", "_").lower())


def name_in_text(name):
    """A structure or tissue as texts and figures write it: "brain_stem" -> "brain stem"."""
    return ABBREVIATED.get(name, name.replace("_", " "))


def compute_dtype(device):
    """Of the activations: bfloat16 where the processor or the GPU computes with it."""
    quick = torch.device(device).type == "cuda" or cpu_computes_bf16()
    return torch.bfloat16 if quick else torch.float32


def segment(volume, affine, network, device="cpu"):
    """Finds the structures of a volume.

    :param volume: (X, Y, Z), RAS, any intensities; a constant one has no brain
    :param affine: of the volume, (4, 4); its voxel sizes count
    :param network: MeshNet that `find_network` accepts, on the device
    :return: Segmentation
    """
    sizes = geometry.voxel_sizes(affine)
    extent = np.array(volume.shape) * sizes                          # mm
    shape = tuple(int(n) for n in np.maximum(1, np.rint(extent / VOXEL_MM)))
    conformed = geometry.resample(volume, shape)
    low, high = conformed.min(), conformed.max()
    if low == high:
        return Segmentation(np.zeros(shape, np.uint8), extent / np.array(shape), float("nan"))
    scaled = (conformed - low) / (high - low)
    box = _foreground_box(scaled)
    seen = torch.from_numpy(np.ascontiguousarray(meshnet.to_lia(scaled[box]))).to(device)
    unsure = _Uncertainty()
    with torch.inference_mode():
        found = infer(network, seen, unsure.labels_of_scores, compute_dtype(device))
    labels = np.zeros(shape, np.uint8)
    labels[box] = meshnet.from_lia(found.cpu().numpy())
    return Segmentation(labels, extent / np.array(shape), unsure.mean_entropy())


class _Uncertainty:
    """Sums the entropy of the classes' probabilities while labels are made of scores."""

    def __init__(self):
        self._sum = self._count = 0.0

    def labels_of_scores(self, scores):
        """(classes, x, Y, Z) -> (x, Y, Z) uint8."""
        labels = scores.argmax(0)
        inside = scores[:, labels > 0]                               # (classes, voxels)
        logarithm = inside.log_softmax(0)
        self._sum -= float((logarithm.exp() * logarithm).sum()) / np.log(2)
        self._count += inside.shape[1]
        return labels.to(torch.uint8)

    def mean_entropy(self):
        """Bits; NaN where there is no brain."""
        return self._sum / self._count if self._count else float("nan")


def _foreground_box(scaled):
    """Slices around what is brighter than the background, with a margin."""
    inside = scaled > FOREGROUND
    slices = []
    for axis, length in enumerate(scaled.shape):
        across = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(inside.any(axis=across))
        slices.append(slice(max(0, int(found[0]) - MARGIN),
                            min(length, int(found[-1]) + 1 + MARGIN)))
    return tuple(slices)
