"""The three views of a volume as images of square pixels."""
import numpy as np
from PIL import Image

from mri.geometry import VIEWS, view_slice, voxel_sizes


def view_images(volume, affine):
    """The center slices of a RAS volume, true to its proportions in mm.

    A pixel is as large as the smallest edge of a voxel.

    :param volume: (X, Y, Z) uint8
    :param affine: of the volume, (4, 4)
    :return: {view: (rows, columns) uint8}, a key of VIEWS each; left on the left, anterior or
        superior up, in the sagittal view anterior on the right
    """
    millimeters = voxel_sizes(affine)
    scale = millimeters / millimeters.min()
    images = {}
    for view, across in VIEWS.items():
        horizontal, vertical = (axis for axis in range(3) if axis != across)
        image = view_slice(volume, view)
        size = (round(image.shape[1] * scale[horizontal]), round(image.shape[0] * scale[vertical]))
        picture = Image.fromarray(np.ascontiguousarray(image))
        images[view] = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return images
