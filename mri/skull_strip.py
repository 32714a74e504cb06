"""Skull stripping: where the brain is in the scan of a head, by a MeshNet such as mindgrab.

The network sees the head at 1 mm; what it finds is brought back onto the scan's own grid.
"""
import numpy as np
import torch
from scipy import ndimage

from mri import geometry, meshnet
from mri.meshnet_inference import infer
from utils.errors import UserError
from utils.files import weights_path
from utils.precision import cpu_computes_bf16

NETWORK_FOLDER = "meshnet/mindgrab"   # in weights/
BRAIN_ML = (700, 2100)                # plausible volumes of a brain, ml
BRAIN_CLASS = 1                       # of the network's scores
VOXEL_MM = 1.0                        # that the network knows
HEAD_BLOCK = 4                        # voxels that are averaged to find the head
HEAD_MARGIN = 8                       # voxels kept around the head
OTSU_BINS = 200


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
    box = head_box(conformed)
    head = conformed[box]
    probability = np.zeros(conformed.shape, np.float32)
    probability[box] = _brain_probability(head, network, threads)
    mask = _one_solid_piece(probability > 0.5)
    probability[~mask] = 0
    np.maximum(probability, 0.5 + 1e-3, out=probability, where=mask)   # filled holes
    if conformed.shape == array.shape:
        return mask
    found = geometry.resample(probability, array.shape, padding="border") > 0.5
    if not found.any():
        raise UserError("no brain is found in it; leave the scan out, or give --mask")
    return found


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
    path = folder or weights_path(NETWORK_FOLDER)
    if not (path / meshnet.MODEL_FILE).is_file():
        raise UserError(f"{path}: holds no network for --skull-strip; run download.py meshnet "
                        "where there is internet and copy weights/ here, or give --meshnet")
    network = meshnet.load(path)
    if network.classes != 2:
        raise UserError(f"{path}: a network of {network.classes} classes; --skull-strip needs one "
                        "of two, background and brain, such as mindgrab")
    return path


def head_box(array):
    """The part of a scan that the head fills: slices along each axis.

    :param array: (X, Y, Z), 1 mm
    """
    coarse = ndimage.zoom(array, 1 / HEAD_BLOCK, order=1, grid_mode=True, mode="nearest")
    head = _largest_piece(coarse > _otsu_threshold(coarse) / 2)
    slices = []
    for axis in range(3):
        across = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(head.any(axis=across))
        start, stop = inside[0] * HEAD_BLOCK, (inside[-1] + 1) * HEAD_BLOCK
        slices.append(slice(max(0, int(start) - HEAD_MARGIN),
                            min(array.shape[axis], int(stop) + HEAD_MARGIN)))
    return tuple(slices)


def _otsu_threshold(array):
    """The intensity that separates two classes best (Otsu 1979, IEEE SMC 9:62)."""
    counts, edges = np.histogram(array, OTSU_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centers)[:-1]
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = ((counts * centers).sum() - sum_below) / np.maximum(above, 1)
    return edges[1 + (below * above * (mean_below - mean_above) ** 2).argmax()]


def _brain_probability(head, network, threads):
    """Probability of brain in each voxel of a head at 1 mm, float32."""
    low, high = head.min(), head.max()
    dtype = torch.bfloat16 if cpu_computes_bf16() else torch.float32
    scaled = np.ascontiguousarray(meshnet.to_lia((head - low) / (high - low)))
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
    if not mask.any():
        raise UserError("no brain is found in it; leave the scan out, or give --mask")
    return ndimage.binary_fill_holes(_largest_piece(mask))
