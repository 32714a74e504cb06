"""Skull stripping: where the brain is in the scan of a head, by a MeshNet such as mindgrab.

The network sees the head at 1 mm; what it finds is brought back onto the scan's own grid.
"""
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from mri import geometry, intensity, meshnet, preparation
from mri.meshnet_inference import infer
from utils.errors import UserError
from utils.precision import cpu_computes_bf16

NETWORK_FOLDER = "meshnet/mindgrab"   # in weights/
BRAIN_ML = (700, 2100)                # plausible volumes of a brain, ml
MIN_BRAIN_ML = 20                     # below which there is none
HOLE_PROBABILITY = 0.75               # of a hole that is filled to be brain
BRAIN_CLASS = 1                       # of the network's scores
VOXEL_MM = 1.0                        # that the network knows
MAX_PERCENTILE = 99.9                 # of the intensities; brighter ones are a few odd voxels
HEAD_BLOCK = 4                        # voxels that are averaged to find the head
HEAD_LEVEL = 0.25                     # from the mean of what is dark to that of what is bright
HEAD_MARGIN = 8                       # voxels kept around the head
CUT_MARGIN = 32                       # voxels added where the field of view cuts it off
STRIPPED_WARNING = ("already skull-stripped: all that differs from its background is taken for the "
                    "brain, without the network")


def brain_mask(array, affine, network, threads=1):
    """Where the brain is.

    :param array: (X, Y, Z) float32, RAS, of any voxel size
    :param affine: of the array
    :param network: MeshNet of two classes, the second of which is the brain
    :param threads: of the network
    :return: bool, of the array's shape
    :raises UserError: no brain is found
    """
    shape = np.maximum(1, np.rint(np.array(array.shape) * geometry.voxel_sizes(affine) / VOXEL_MM))
    conformed = geometry.resample(array, tuple(shape.astype(int)))
    box, padding = head_box(conformed)
    head = np.pad(conformed[box], padding, constant_values=conformed.min())
    found = _brain_probability(head, network, threads)
    probability = np.zeros(conformed.shape, np.float32)
    inside = tuple(slice(before, length - after)
                   for (before, after), length in zip(padding, head.shape))
    probability[box] = found[inside]
    mask = _one_solid_piece(probability > 0.5)
    if volume_ml(mask, np.eye(4)) < MIN_BRAIN_ML:
        raise UserError("--skull-strip: no brain is found in it; leave the scan out, or give its "
                        "mask by --mask")
    if conformed.shape == array.shape:
        return mask
    # between the voxels' centers, the edge is where the probability is one half
    probability[~mask] = 0
    np.maximum(probability, HOLE_PROBABILITY, out=probability, where=mask)
    return geometry.resample(probability, array.shape) > 0.5


def mask_of_stripped(array, affine):
    """The mask of a scan that is skull-stripped already; None for a head.

    Networks know heads, and cut into what has lost its skull. A stripped scan has a background of
    one value, and what differs from it is no larger than a brain; a head with such a background is.

    :param array, affine: RAS
    :return: bool, of the array's shape, or None
    """
    value, fraction = preparation.border(array)
    if fraction < preparation.MIN_BORDER_FRACTION:
        return None
    mask = _one_solid_piece(array != value)
    return mask if MIN_BRAIN_ML <= volume_ml(mask, affine) <= BRAIN_ML[1] else None


def volume_ml(mask, affine):
    """Volume of a mask, ml.

    :param mask: bool
    :param affine: of the mask's grid
    """
    return float(np.count_nonzero(mask) * abs(np.linalg.det(np.asarray(affine)[:3, :3])) / 1000)


def volume_warning(volume):
    """A line about a brain of implausible volume, ml; None where it is plausible."""
    low, high = BRAIN_ML
    if low <= volume <= high:
        return None
    return (f"the skull strip found a brain of {volume:.0f} ml, brains have {low} to {high}; look "
            "at its mask")


def find_network(folder=None):
    """The folder of the network for skull stripping, once it is known to be one.

    :param folder: Path; None: in weights/
    :return: Path
    :raises UserError: it is not there, damaged, or another network
    """
    path, network = meshnet.find(folder, NETWORK_FOLDER, "--skull-strip")
    if network.classes != 2:
        raise UserError(f"{path}: a network of {network.classes} classes; --skull-strip needs one "
                        "of two, background and brain, such as mindgrab")
    return path


def head_box(array):
    """The part of a scan that the head fills.

    Where the field of view cuts the head off, the network needs to see that there is nothing more.

    :param array: (X, Y, Z), 1 mm
    :return: slices along each axis; voxels of background to add before and after, by axis
    """
    blocks = F.avg_pool3d(torch.from_numpy(np.ascontiguousarray(array))[None], HEAD_BLOCK,
                          ceil_mode=True)
    coarse = blocks[0].numpy()
    dark, bright = _two_levels(np.minimum(coarse, np.percentile(coarse, MAX_PERCENTILE)))
    head = _largest_piece(coarse > dark + HEAD_LEVEL * (bright - dark))
    slices, padding = [], []
    for axis, length in enumerate(array.shape):
        across = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(head.any(axis=across))
        first, last = int(inside[0]) * HEAD_BLOCK, (int(inside[-1]) + 1) * HEAD_BLOCK
        start = first - (HEAD_MARGIN if first > 0 else CUT_MARGIN)
        stop = last + (HEAD_MARGIN if last < length else CUT_MARGIN)
        slices.append(slice(max(0, start), min(length, stop)))
        padding.append((max(0, -start), max(0, min(stop, length + CUT_MARGIN) - length)))
    return tuple(slices), tuple(padding)


def _two_levels(array):
    """Means of the dark and the bright values, separated as well as possible.

    Otsu 1979 (IEEE SMC 9:62): the variance between the two classes is the largest.
    """
    counts, edges = np.histogram(array, preparation.OTSU_BINS)
    sums = counts * (edges[:-1] + edges[1:]) / 2
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(sums)[:-1]    # of each threshold
    above, sum_above = counts.sum() - below, sums.sum() - sum_below
    dark, bright = sum_below / below, sum_above / above
    best = (below * above * (bright - dark) ** 2).argmax()
    return dark[best], bright[best]


def _brain_probability(head, network, threads):
    """Probability of brain in each voxel of a head at 1 mm, float32."""
    low, high = intensity.intensity_window(head, (0, MAX_PERCENTILE))
    dtype = torch.bfloat16 if cpu_computes_bf16() else torch.float32
    scaled = np.clip((head - np.float32(low)) / np.float32(high - low), 0, 1)
    scaled = np.ascontiguousarray(meshnet.to_lia(scaled))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            probability = infer(network, torch.from_numpy(scaled), _brain_of_scores, dtype).numpy()
    finally:
        torch.set_num_threads(before)
    return meshnet.from_lia(probability)


def _brain_of_scores(scores):
    return torch.sigmoid(scores[BRAIN_CLASS] - scores[0])


def _largest_piece(mask):
    """The largest connected piece of a mask."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def _one_solid_piece(mask):
    """The largest connected piece, its holes filled."""
    return ndimage.binary_fill_holes(_largest_piece(mask))
