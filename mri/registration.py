"""Affine registration of brains to a template, such as MNI152: 12 degrees of freedom.

Mattes' mutual information (Mattes et al. 2003, IEEE TMI 22:120) of the brains alone, from coarse to
fine, by SimpleITK on one thread: the same scan always gives the same matrix. World coordinates are
RAS, in mm, in ITK, too: both images are handed over so.
"""
import functools
import itertools
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry, preparation
from mri.template import field_of_view, load_template
from utils.errors import UserError, shorten

SPACES = ("mni",)

WORK_MM = 2.0             # voxels of the images that are registered
WORK_MARGIN_MM = 10.0     # around the brain in them
REGION_MM = 8.0           # around the template's brain, that is compared, too
BINS = 32                 # of the joint histogram
TOP_PERCENTILE = 99.5     # of a brain's intensities; brighter ones are cut
FIRST_ROTATIONS = (-40, -20, 0, 20, 40)  # degrees about each axis, of the first guesses
REFINED_GUESSES = 3       # best ones, that are refined
GUESS_SHRINK = 4          # of the work grid, for the first guesses
SAMPLED_FRACTION = 0.3    # of the region's voxels, at the finest level
FIRST_STEP_MM = 1.0       # of the optimizer: by how much the region's corners move at most
LAST_STEP_MM = 0.01
MAX_ITERATIONS = 200      # of each level
SEED = 1                  # of the sampled voxels; ITK takes 0 for the time

MIN_OVERLAP = 0.85        # Dice of the registered brain mask with the template's
MIN_SCALING = 0.7         # of the brain, along any direction
MAX_SCALING = 1.4


@dataclass(frozen=True)
class Registration:
    """Where a scan lies in the template's space."""
    matrix: np.ndarray      # (4, 4), world of the scan -> world of the template, mm
    overlap: float          # Dice of the brain masks, 0…1
    scaling: tuple          # of the brain along three perpendicular directions, ascending


@dataclass(frozen=True)
class _WorkImage:
    """A brain on a coarse grid whose axes are the world's."""
    array: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


def brain_mask(array):
    """Which voxels of a skull-stripped scan are brain: all but the background's one value.

    :param array: (X, Y, Z)
    :return: bool, of the array's shape, without holes
    :raises UserError: its background has several values
    """
    mask = preparation.differs_from_border(
        array, "--register: the scan is not skull-stripped; give --skull-strip or --mask")
    return ndimage.binary_fill_holes(mask)


def check_flags(space, template_path, extent, crop):
    """Checks --register and the flags beside it, and that what it needs is installed.

    :param space: of --register, or "none"
    :param template_path, extent, crop: of --template, --field-of-view and --crop
    :raises UserError: they contradict each other, or SimpleITK or the template is missing
    """
    if space == "none":
        if template_path or extent:
            raise UserError("--template and --field-of-view: are for --register mni; give that, "
                            "too")
        return
    preparation.load_sitk("--register")
    if crop != "none":
        raise UserError("--crop brain: registered volumes show --field-of-view; leave out --crop, "
                        "or --register")
    field_of_view(load_template(template_path), extent and tuple(extent))


def register(array, affine, mask, template):
    """Finds the affine transform that brings a brain onto a template.

    :param array, affine: of the scan, RAS
    :param mask: bool, of the array's shape: the brain
    :param template: template.Template
    :return: Registration
    :raises UserError: it failed, see `problem_of`
    """
    sitk = preparation.load_sitk("--register")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed = _template_image(template)
    moving = _work_image(array, affine, mask)
    images = _Images(sitk, fixed, moving)
    found = []
    try:
        for guess in images.best_guesses():
            found.append(_registration(images.refine(guess), fixed, moving))
            if problem_of(found[-1]) is None:
                return found[-1]
    except RuntimeError as e:      # of ITK, for brains of a few voxels
        raise UserError(f"--register: the registration failed ({shorten(str(e)[-120:])}); check "
                        "the brain mask, or leave the scan out") from None
    best = max(found, key=lambda registration: registration.overlap)
    raise UserError(f"--register: the registration failed, {problem_of(best)}; check the brain "
                    "mask and the scan's axes, or leave the scan out")


def problem_of(registration):
    """Why a registration cannot be right, or None.

    Left and right exchanged, a scaling that no brain needs, or masks that do not overlap.
    """
    if np.linalg.det(registration.matrix[:3, :3]) <= 0:
        return "its matrix mirrors the brain"
    smallest, _, largest = registration.scaling
    if smallest < MIN_SCALING or largest > MAX_SCALING:
        return (f"it scales the brain by {smallest:.2f} to {largest:.2f}, beyond {MIN_SCALING} to "
                f"{MAX_SCALING}")
    if registration.overlap < MIN_OVERLAP:
        return (f"the brain overlaps with the template's by {registration.overlap:.2f} (Dice), "
                f"less than {MIN_OVERLAP}")
    return None


def _registration(to_scan, fixed, moving):
    """The Registration of a matrix template -> scan."""
    matrix = np.linalg.inv(to_scan)
    moved = geometry.from_grid(moving.mask, matrix @ moving.affine, fixed.mask.shape,
                               fixed.affine) >= 0.5
    overlap = 2 * np.count_nonzero(moved & fixed.mask) / (moved.sum() + fixed.mask.sum())
    scaling = np.linalg.svd(matrix[:3, :3], compute_uv=False)[::-1]
    return Registration(matrix, float(overlap), tuple(float(factor) for factor in scaling))


@functools.cache
def _template_image(template):
    """`_work_image` of a template."""
    return _work_image(template.array, template.affine, template.mask)


def _work_image(array, affine, mask):
    """A brain on a grid of WORK_MM along the world's axes, as a _WorkImage."""
    box = preparation.brain_box(array, geometry.voxel_sizes(affine), 0, mask)
    inside = preparation.crop(mask, box)
    brain = np.where(inside, preparation.crop(array, box), 0)
    affine = preparation.cropped_affine(affine, box)
    corners = apply_affine(affine, geometry.corners(inside.shape))
    low = corners.min(0) - WORK_MARGIN_MM
    shape = np.ceil((corners.max(0) + WORK_MARGIN_MM - low) / WORK_MM).astype(int)
    grid = np.diag([WORK_MM] * 3 + [1.0])
    grid[:3, 3] = low
    inside = geometry.to_grid(inside, affine, shape, grid) >= 0.5
    brain = geometry.to_grid(brain, affine, shape, grid)
    top = np.percentile(brain[inside], TOP_PERCENTILE)
    return _WorkImage(np.clip(brain, min(0, brain.min()), top), inside, grid)


class _Images:
    """A template and a scan as SimpleITK sees them, and their registration, coarse to fine."""

    def __init__(self, sitk, fixed, moving):
        """
        :param fixed, moving: _WorkImage of the template and of the scan
        """
        self._sitk = sitk
        self._fixed = self._image(fixed.array, fixed.affine)
        self._moving = self._image(moving.array, moving.affine)
        region = ndimage.binary_dilation(fixed.mask, iterations=round(REGION_MM / WORK_MM))
        self._region = self._image(region.astype(np.uint8), fixed.affine)
        self._center = _center_of(fixed)
        self._shift = _center_of(moving) - self._center
        self._scale = (np.count_nonzero(moving.mask) / np.count_nonzero(fixed.mask)) ** (1 / 3)

    def best_guesses(self):
        """Similarity transforms, the best first: many rotations tried, a few of them refined."""
        fixed, moving = (self._coarse(image) for image in (self._fixed, self._moving))
        method = self._method((1,), 1.0)
        tried = []
        for degrees in itertools.product(FIRST_ROTATIONS, repeat=3):
            guess = self._guess(degrees)
            method.SetInitialTransform(guess)
            tried.append((method.MetricEvaluate(fixed, moving), degrees))
        refined = []
        for _, degrees in sorted(tried)[:REFINED_GUESSES]:
            guess = self._guess(degrees)
            method = self._method((2,), 1.0)
            method.SetInitialTransform(guess, inPlace=True)
            method.Execute(self._fixed, self._moving)
            refined.append((method.GetMetricValue(), degrees, guess))
        return [guess for _, _, guess in sorted(refined, key=lambda entry: entry[:2])]

    def refine(self, guess):
        """The affine transform that a similarity transform leads to.

        :return: (4, 4), world of the template -> world of the scan
        """
        transform = self._sitk.AffineTransform(3)
        transform.SetCenter(guess.GetCenter())
        transform.SetMatrix(guess.GetMatrix())
        transform.SetTranslation(guess.GetTranslation())
        method = self._method((4, 2, 1), SAMPLED_FRACTION)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(self._fixed, self._moving)
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
        center = np.array(transform.GetCenter())
        matrix[:3, 3] = center + transform.GetTranslation() - matrix[:3, :3] @ center
        return matrix

    def _image(self, array, affine):
        """A SimpleITK image on a grid along the world's axes; ITK counts them from the last."""
        image = self._sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing([float(size) for size in np.diag(affine)[:3]])
        image.SetOrigin([float(x) for x in affine[:3, 3]])
        return image

    def _coarse(self, image):
        sigma = GUESS_SHRINK * WORK_MM / 2
        return self._sitk.Shrink(self._sitk.SmoothingRecursiveGaussian(image, sigma),
                                 [GUESS_SHRINK] * 3)

    def _guess(self, degrees):
        """The similarity transform between the brains' centers and sizes with this rotation."""
        rotation = self._sitk.Euler3DTransform()
        rotation.SetRotation(*(float(angle) for angle in np.deg2rad(degrees)))
        guess = self._sitk.Similarity3DTransform()
        guess.SetCenter([float(x) for x in self._center])
        guess.SetMatrix(rotation.GetMatrix())
        guess.SetTranslation([float(x) for x in self._shift])
        guess.SetScale(float(self._scale))
        return guess

    def _method(self, shrink_factors, sampled_fraction):
        """An ImageRegistrationMethod over some levels; the finest looks at a part of the voxels."""
        method = self._sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(self._region)
        method.SetInterpolator(self._sitk.sitkLinear)
        if sampled_fraction < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            fractions = [1.0] * (len(shrink_factors) - 1) + [sampled_fraction]
            method.SetMetricSamplingPercentagePerLevel(fractions, SEED)
        method.SetShrinkFactorsPerLevel(shrink_factors)
        method.SetSmoothingSigmasPerLevel([0.5 * n if n > 1 else 0 for n in shrink_factors])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=FIRST_STEP_MM, minStep=LAST_STEP_MM, numberOfIterations=MAX_ITERATIONS,
            gradientMagnitudeTolerance=1e-8)
        method.SetOptimizerScalesFromPhysicalShift()
        return method


def _center_of(image):
    """World coordinates of a _WorkImage's brain."""
    return apply_affine(image.affine, np.argwhere(image.mask)).mean(0)
