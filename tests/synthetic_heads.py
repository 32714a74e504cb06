"""Heads around skull-stripped brains, so that the true brain mask is known.

T1-like gray values, 0…255: cerebrospinal fluid around the brain, a skull of two dark tables with
marrow between them, a bright scalp, eyes in fat, muscles and air of the face, a neck with the
spinal canal. Thicknesses, texture, bias field and noise are drawn from a seed.
"""
import numpy as np
from scipy import ndimage

PAD_MM = ((26, 26), (26, 34), (70, 26))      # around the brain: left, right, back, front, …
AIR, BONE, FLUID, MARROW, MUSCLE, FAT, SKIN, CORD = 4, 22, 45, 115, 105, 225, 150, 190
CLOSING_MM = 8                               # sulci and gaps that the skull does not follow
BLUR_MM = 0.6
NOISE = 5.0                                  # standard deviation of the Rician noise
BIAS = 0.25                                  # of the bias field's logarithm, at most


def make_head(brain, affine, seed=0, face=True, noise=NOISE, bias=BIAS):
    """A head around a brain of 1 mm voxels.

    :param brain: (X, Y, Z), RAS, 0 outside
    :param affine: of the brain
    :param face: False: without eyes and face, as after defacing
    :return: head, float32; the brain's mask; affine of both
    """
    rng = np.random.default_rng(seed)
    brain = np.pad(brain.astype(np.float32), PAD_MM)
    mask = ndimage.binary_fill_holes(_largest_piece(brain > 0))   # label maps have specks outside
    shift = np.eye(4)
    shift[:3, 3] = [-before for before, _ in PAD_MM]
    head = _soft_tissue(brain.shape, mask, rng, face)
    _wrap(head, mask, rng)
    _cut_off_below(head, mask)
    head[mask] = brain[mask]
    head = ndimage.gaussian_filter(head, BLUR_MM)
    head[mask] = brain[mask]                 # which is blurred already
    field = _smooth_noise(head.shape, rng, 60)
    head *= np.exp(bias * field)
    real = head + noise * rng.standard_normal(head.shape)
    imaginary = noise * rng.standard_normal(head.shape)
    return np.hypot(real, imaginary).astype(np.float32), mask, affine @ shift


def _largest_piece(mask):
    pieces, _ = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


def _wrap(head, mask, rng):
    """Scalp, skull and fluid around the brain, from outside to inside."""
    hull = _closed(mask)
    distance = ndimage.distance_transform_edt(~hull).astype(np.float32)
    # thicknesses, mm; the brains of label maps have most of their fluid already
    fluid = 0.8 + 0.4 * _smooth_noise(mask.shape, rng, 15)
    skull = fluid + 6 + 2 * _smooth_noise(mask.shape, rng, 20)
    scalp = skull + 6 + 2 * _smooth_noise(mask.shape, rng, 20)
    for limit, value in ((scalp + 1.5, SKIN), (scalp, FAT), (skull, BONE), (skull - 2, MARROW),
                         (fluid + 2, BONE), (fluid, FLUID)):
        head[distance < limit] = value
    head[hull] = FLUID


def _closed(mask):
    """The mask closed by a ball of CLOSING_MM."""
    near = ndimage.distance_transform_edt(~mask) <= CLOSING_MM
    return ndimage.distance_transform_edt(near) > CLOSING_MM


def _soft_tissue(shape, mask, rng, face):
    """Neck and face on air."""
    x, y, z = np.ogrid[[slice(n) for n in shape]]
    inside = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    (left, right), (back, front), (bottom, top) = ((i[0], i[-1]) for i in inside)
    center, length = (left + right) / 2, front - back
    head = np.full(shape, AIR, np.float32)
    muscles = np.where(_smooth_noise(shape, rng, 4) > 0.35, FAT, MUSCLE)

    def ellipsoid(middle, radii):
        return sum(((axis - m) / r) ** 2 for axis, m, r in zip((x, y, z), middle, radii)) < 1

    neck_y = back + 0.42 * length
    for radius, value in ((66, SKIN), (64, FAT)):
        head[ellipsoid((center, neck_y, 0), (radius, radius, 4 * shape[2])) & (z < bottom + 25)] = \
            value
    inner = ellipsoid((center, neck_y, 0), (58, 58, 4 * shape[2])) & (z < bottom + 25)
    head[inner] = muscles[inner]
    head[ellipsoid((center, neck_y + 42, 0), (8, 10, 4 * shape[2])) & (z < bottom + 5)] = AIR
    if not face:
        return head
    face_middle = (center, front - 22, bottom + 5)
    head[ellipsoid(face_middle, (60, 50, 75))] = FAT
    inner = ellipsoid(face_middle, (55, 45, 70))
    head[inner] = muscles[inner]
    head[ellipsoid((center, front - 10, bottom + 12), (12, 32, 26))] = AIR     # nasal cavity
    for side in (-1, 1):
        eye = (center + side * 32, front - 6, bottom + 40)
        head[ellipsoid(eye, (19, 24, 19))] = FAT
        head[ellipsoid(eye, (12.5, 12.5, 12.5))] = FLUID
        head[ellipsoid((center + side * 28, front - 14, bottom + 8), (14, 16, 16))] = AIR
    return head


def _cut_off_below(head, mask):
    """The spinal canal, from where the brain stem leaves the brain's volume downwards."""
    bottom = np.flatnonzero(mask.any(axis=(0, 1)))[0]
    pieces, count = ndimage.label(mask[:, :, bottom])
    if not count:
        return
    middle = mask.shape[0] / 2
    centers = ndimage.center_of_mass(mask[:, :, bottom], pieces, range(1, count + 1))
    cx, cy = min(centers, key=lambda c: abs(c[0] - middle))
    x, y = np.ogrid[:mask.shape[0], :mask.shape[1]]
    squared = (x - cx) ** 2 + (y - cy - 15) ** 2
    below = np.arange(mask.shape[2]) < bottom - 12
    for radius, value in ((17, BONE), (15, MARROW), (9, FLUID), (5.5, CORD)):
        head[(squared < radius ** 2)[:, :, None] & below] = value


def _smooth_noise(shape, rng, scale_mm):
    """A random field in [-1, 1] that varies over about `scale_mm`."""
    coarse = rng.standard_normal([max(4, int(n / scale_mm) + 3) for n in shape])
    field = ndimage.zoom(coarse, np.array(shape) / coarse.shape, order=3)[:shape[0], :shape[1],
                                                                          :shape[2]]
    return np.clip(field / 2, -1, 1).astype(np.float32)


def dice(a, b):
    """Dice's coefficient of two masks."""
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
