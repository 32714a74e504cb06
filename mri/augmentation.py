"""Variants of a volume for training: mirrored, moved a little, of another contrast."""
import json
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mri import geometry, mosaic


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which each variant is drawn, uniformly; 0 leaves a property as it is.

    :param flip: probability that left and right are swapped, 0…1
    :param rotate: largest rotation about each axis, degrees
    :param scale: largest change of the size along each axis, a fraction of it, below 1
    :param shift: largest shift along each axis, mm
    :param gamma: largest absolute logarithm of the exponent of the intensities (in [0, 1])
    """
    flip: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    gamma: float = 0.0

    @property
    def is_identity(self):
        return not any(asdict(self).values())

    @property
    def key(self):
        """Text that names the ranges."""
        return json.dumps(asdict(self), sort_keys=True)


def augmented_mosaic(pixels, header, augmentation, seed):
    """The mosaic of a variant of a mosaic's volume.

    :param pixels: (side, side, 3) uint8
    :param header: of its manifest
    :param augmentation: Augmentation
    :param seed: list of whole numbers; the same seed gives the same variant
    :return: (side, side, 3) uint8
    """
    volume = mosaic.untile(pixels, header["size"], header["layout"])
    voxel_sizes = geometry.voxel_sizes(header["affine"])
    return mosaic.tile(augment(volume, voxel_sizes, augmentation, np.random.default_rng(seed)),
                       header["layout"])


def augment(volume, voxel_sizes, augmentation, rng):
    """A variant of a volume.

    It is moved about its center and interpolated linearly, once; what comes from outside is 0.

    :param volume: (D, D, D) uint8, axes right, anterior, superior
    :param voxel_sizes: (3,), mm
    :param augmentation: Augmentation
    :param rng: numpy generator
    :return: (D, D, D) uint8
    """
    # all draws come first and always, so that one range does not change what another one draws
    is_flipped = rng.random() < augmentation.flip
    angles = rng.uniform(-1, 1, 3) * augmentation.rotate
    scales = 1 + rng.uniform(-1, 1, 3) * augmentation.scale
    shift = rng.uniform(-1, 1, 3) * augmentation.shift
    exponent = np.exp(rng.uniform(-1, 1) * augmentation.gamma)
    out = volume[::-1] if is_flipped else volume
    if augmentation.rotate or augmentation.scale or augmentation.shift:
        out = _move(out, voxel_sizes, angles, scales, shift)
    if augmentation.gamma:
        out = np.rint(255 * (out / 255) ** exponent)
    return np.ascontiguousarray(out, np.uint8)


def _move(volume, voxel_sizes, angles, scales, shift):
    """Rotates, scales and shifts a volume about its center.

    :param angles: (3,), degrees about the three axes
    :param scales: (3,), along the three axes, before the rotation
    :param shift: (3,), mm
    :return: like `volume`, rounded
    """
    sizes = np.asarray(voxel_sizes, float)
    in_mm = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * scales
    back = np.linalg.inv(in_mm)                     # from the variant to the volume, mm
    matrix = back * sizes / sizes[:, None]          # in voxels
    center = (np.array(volume.shape) - 1) / 2
    offset = center - matrix @ (center + shift / sizes)
    moved = ndimage.affine_transform(volume.astype(np.float32), matrix, offset, order=1)
    return np.rint(moved)
