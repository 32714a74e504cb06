"""Search for copies: the training volume that each volume matches best, moved and mirrored.

A copy need not be equal voxel for voxel: it may be mirrored, shifted by a few voxels, brighter or
darker. So volumes are compared by their correlation, which no gain and offset changes, at the best
of all mirror images and shifts: on a coarse grid for all training volumes, then by
cross-correlation (FFT) on the full grid for the best few.

Whether a volume is a copy shows in the *ratio* of its distance to the nearest training volume and
its distance to the nearest one of another subject: a volume that was not copied is about as far
from one as from the other, however smooth it is.
"""
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft

from metrics.threads import threads_of_one_core

MAX_SHIFT = 3       # voxels of the full grid, along each axis
COARSE_SIDE = 16    # voxels of the coarse grid, on which all training volumes are compared
CANDIDATES = 5      # training volumes and mirror images to compare on the full grid
FLIPS = {           # name: mirrored axes of a volume with axes right, anterior, superior
    "": (),
    "left-right": (0,),
    "anterior-posterior": (1,),
    "inferior-superior": (2,),
}
FLAGGED_BELOW = 0.8  # times the least ratio of the real volumes
HIGHEST_FLAGGED = 0.6  # ratio; few real volumes say little about how low a ratio can be by chance
REAL_COPY_BELOW = 0.3  # ratio of a real volume that is in the training set, moved or not: copies
                       #   with 5% noise reach 0.21, brains of the same person, deformed, 0.5


@dataclass(frozen=True)
class Match:
    """The training volume that a volume matches best."""
    index: int              # in the training set
    distance: float         # 1 − correlation at the best mirror image and shift
    second_distance: float  # to the nearest training volume of another subject
    flip: str               # of FLIPS, that makes the training volume match
    shift: tuple            # voxels by which it is moved then
    aligned: tuple = ()     # (index, flip, shift) of each subject that was compared, nearest first

    @property
    def ratio(self):
        """Distance to the nearest over that to the second nearest, 0 to 1."""
        if self.second_distance <= 0:
            return 1.0  # both are equal to this volume: says nothing
        return min(1.0, self.distance / self.second_distance)


def threshold(ratios):
    """The ratio below which a volume is flagged as a copy.

    Real volumes that are themselves copies of training volumes say nothing about how low a ratio
    can be by chance: they are left out.

    :param ratios: (..., N) of real volumes
    :return: (...)
    """
    by_chance = np.where(is_real_copy(ratios), np.inf, ratios)
    return np.minimum(FLAGGED_BELOW * np.min(by_chance, axis=-1), HIGHEST_FLAGGED)


def is_real_copy(ratios):
    """Whether real volumes of these ratios are in the training set, mirrored or moved or not."""
    return np.asarray(ratios) < REAL_COPY_BELOW


class CoarseGrid:
    """A grid of about COARSE_SIDE voxels a side, to which volumes are reduced *after* they were
    moved, in steps that are small against its voxels.

    Moved by whole coarse voxels, a copy that is shifted by half of one would match its source no
    better than another brain.
    """

    def __init__(self, side):
        """:param side: of the volumes, voxels"""
        self.step = max(1, side // (4 * COARSE_SIDE))                # voxels
        self.window = max(1, side // (COARSE_SIDE * self.step))      # steps in a coarse voxel
        self.side = side // (self.window * self.step)                # coarse voxels
        self.reach = -(-MAX_SHIFT // self.step)                      # steps

    def moved(self, volume, reach):
        """A volume moved by up to `reach` steps along each axis, on the coarse grid.

        :param volume: (D, D, D) uint8
        :return: (shifts, coarse voxels) float32, each centered and of norm 1
        """
        steps = self.side * self.window
        cropped = volume[(slice(steps * self.step),) * 3]
        x = np.pad(_means_of_blocks(cropped, self.step), reach, mode="wrap")
        for axis in range(3):  # means of `window` steps, from each step on
            x = _sums_of_neighbors(x, self.window, axis)
        views = sliding_window_view(x, ((self.side - 1) * self.window + 1,) * 3)
        rows = views[..., ::self.window, ::self.window, ::self.window].reshape(-1, self.side ** 3)
        rows = rows - rows.mean(1, keepdims=True)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class CopySearch:
    """Finds the best match of any volume in one training set."""

    def __init__(self, volumes, subjects, device="cpu"):
        """
        :param volumes: (M, D, D, D) training volumes, uint8, or a memory map
        :param subjects: (M,) names; two training volumes of one subject are not compared
        :param device: of the coarse search
        """
        self.volumes, self.device = volumes, device
        self.subjects = np.unique(subjects, return_inverse=True)[1]
        side = volumes.shape[1]
        self.grid = CoarseGrid(side)
        coarse = np.concatenate([self.grid.moved(v, 0) for v in volumes])
        self.coarse = torch.from_numpy(coarse).to(device)
        self._inverse, self._inverse_of_half = _inverse_transforms(side)

    def best_matches(self, volumes, callback=None):
        """The best match of each volume, several at a time.

        :param volumes: (N, D, D, D) uint8, or a list
        :param callback: called with the number of volumes done
        :return: list of Match; None where all training volumes are of one subject
        """
        found = []
        with threads_of_one_core() as executor:
            for match in executor.map(self._best_match, volumes):
                found.append(match)
                if callback:
                    callback(1)
        return found

    def _best_match(self, volume):
        spectrum, norm = _spectrum(volume)
        spectrum = spectrum.conj()
        nearest = {}  # subject: (distance, index, flip, shift)
        for index, flip in self._candidates(volume):
            distance, shift = self._fine_distance(spectrum, norm, index, flip)
            found = (distance, index, flip, shift)
            subject = self.subjects[index]
            nearest[subject] = min(found, nearest.get(subject, found))
        if len(nearest) < 2:
            return None
        ranked = sorted(nearest.values())
        (distance, index, flip, shift), (second_distance, *_) = ranked[:2]
        return Match(index, distance, second_distance, flip, shift,
                     tuple(tuple(alignment) for _, *alignment in ranked))

    def _candidates(self, volume):
        """The training volumes and mirror images that match best on the coarse grid.

        :return: list of (index, flip); of at least two subjects, if there are two
        """
        correlation = self._coarse_correlations(volume)
        order = np.argsort(-correlation, axis=None, kind="stable")
        flips, indices = np.unravel_index(order, correlation.shape)
        others = np.flatnonzero(self.subjects[indices] != self.subjects[indices[0]])
        chosen = sorted({*range(min(CANDIDATES, len(order))), *others[:1].tolist()})
        return [(int(indices[k]), list(FLIPS)[flips[k]]) for k in chosen]

    def _coarse_correlations(self, volume):
        """The highest correlation over all shifts with each training volume on the coarse grid.

        :return: (mirror images, M)
        """
        best = []
        for axes in FLIPS.values():
            # the volume is mirrored and moved, rather than each training volume the other way
            moved = torch.from_numpy(self.grid.moved(np.flip(volume, axes), self.grid.reach))
            best.append((moved.to(self.device) @ self.coarse.T).amax(0).cpu().numpy())
        return np.stack(best)

    def _fine_distance(self, spectrum, norm, index, flip):
        """Least distance to one training volume on the full grid over all shifts, and the shift.

        :param spectrum: complex conjugate of the volume's
        """
        other, other_norm = _spectrum(np.flip(self.volumes[index], FLIPS[flip]))
        other *= spectrum
        window = self._products_at_small_shifts(torch.from_numpy(other))
        at = np.unravel_index(np.argmax(window), window.shape)
        correlation = float(window[at]) / (norm * other_norm)
        return max(0.0, 1 - correlation), tuple(int(k) - MAX_SHIFT for k in at)

    def _products_at_small_shifts(self, spectrum):
        """Inverse Fourier transform at the few shifts that are searched alone, as three matrix
        products; all others would take most of the time.

        :param spectrum: (D, D, D // 2 + 1)
        :return: (shifts, shifts, shifts) float32
        """
        x = torch.tensordot(self._inverse, spectrum, ([1], [0]))               # (S, D, D // 2 + 1)
        x = torch.tensordot(x, self._inverse, ([1], [1]))                      # (S, D // 2 + 1, S)
        return torch.tensordot(x, self._inverse_of_half, ([1], [1])).real.numpy()


def _means_of_blocks(x, size):
    """Means of blocks of size³ voxels, float32."""
    for axis in range(3):
        shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1:])
        x = x.reshape(shape).sum(axis + 1, dtype=np.float32)
    return x / size ** 3


def _sums_of_neighbors(x, count, axis):
    """Sums of `count` neighbors along an axis, which gets shorter by count - 1."""
    length = x.shape[axis] - count + 1
    return sum(np.take(x, range(k, k + length), axis) for k in range(count))


def _inverse_transforms(side):
    """The inverse Fourier transform along an axis at shifts of -MAX_SHIFT to MAX_SHIFT.

    It is that of a complex conjugate, so the shifts count backwards.

    :return: of a whole axis, (S, side), and of the one of which a real transform keeps half,
        (S, side // 2 + 1), complex64
    """
    steps = np.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    waves = np.exp(-2j * np.pi * np.outer(steps, np.arange(side)) / side) / side
    half = waves[:, :side // 2 + 1].copy()
    half[:, 1:(side + 1) // 2] *= 2  # frequencies that stand for their negative, too
    return torch.from_numpy(waves.astype(np.complex64)), torch.from_numpy(half.astype(np.complex64))


def _spectrum(volume):
    """Fourier transform of a volume without its mean, and the volume's norm then."""
    x = volume.astype(np.float32)
    x -= x.mean()
    # a plain sum in fp32 is off by 2e-4 at 128³, which distances to copies are below
    norm = np.sqrt(np.square(x).sum(dtype=np.float64))
    return fft.rfftn(x), max(float(norm), 1e-12)


# ----------------------------------------------------------------------------------- what it finds

def planted_copy(volume, rng):
    """A copy that is hard to find: mirrored, shifted by up to MAX_SHIFT voxels, of 0.8 times the
    contrast and with 5% noise.

    :param volume: (D, D, D) uint8
    """
    moved = np.roll(volume[::-1], rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 3), (0, 1, 2))
    noise = 0.05 * 255 * rng.standard_normal(volume.shape, np.float32)
    return np.clip(np.rint(0.8 * moved + noise), 0, 255).astype(np.uint8)
