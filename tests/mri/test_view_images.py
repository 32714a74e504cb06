"""The three views of a volume as images."""
import numpy as np

from mri.geometry import view_slice
from mri.view_images import view_images


def test_cubic_voxels_are_pixels():
    volume = np.random.default_rng(0).integers(0, 256, (6, 8, 10), np.uint8)
    images = view_images(volume, np.diag([2.0, 2, 2, 1]))
    assert {view: image.shape for view, image in images.items()} == {
        "axial": (8, 6), "coronal": (10, 6), "sagittal": (10, 8)}
    assert all(np.array_equal(image, view_slice(volume, view)) for view, image in images.items())


def test_images_are_true_to_the_proportions():
    """Voxels of 1 x 1.5 x 3 mm: 20 mm right, 30 mm anterior, 30 mm superior."""
    images = view_images(np.full((20, 20, 10), 7, np.uint8), np.diag([1, 1.5, 3, 1]))
    assert {view: image.shape for view, image in images.items()} == {
        "axial": (30, 20), "coronal": (30, 20), "sagittal": (30, 30)}
    assert all((image == 7).all() for image in images.values())
