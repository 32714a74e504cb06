"""In which order and direction the axes of a volume agree best with another volume."""
import itertools
from dataclasses import dataclass

import nibabel as nib
import numpy as np

LETTERS = {"x": "R", "y": "A", "z": "S"}    # axes of a RAS array, by their other name


@dataclass(frozen=True)
class AxisOrder:
    """One of 48 ways to read an array, and how well it then agrees with a reference."""
    correlation: float  # Pearson's
    order: tuple        # axis of the array that goes right or left, anterior or …, superior or …
    signs: tuple        # 1: that axis runs to the right, anterior or superior; -1: the other way

    @property
    def codes(self):
        """Where the axes of the array run, such as "SAR", as `nibabel.aff2axcodes` says it."""
        letters = [""] * 3
        for anatomical, axis in enumerate(self.order):
            letters[axis] = ("RAS" if self.signs[anatomical] > 0 else "LPI")[anatomical]
        return "".join(letters)

    @property
    def name(self):
        """As `parse_codes` takes it: "zyx" where no axis is reversed, else the codes."""
        to_xyz = {code: letter for letter, code in LETTERS.items()}
        if all(code in to_xyz for code in self.codes):
            return "".join(to_xyz[code] for code in self.codes)
        return self.codes


def parse_codes(text):
    """The codes that a user names: "zyx" and "SAR" are both "SAR".

    :return: three letters, one of R L, one of A P, one of S I, in the order of the array's axes
    :raises ValueError: anything else
    """
    codes = "".join(LETTERS.get(letter.lower(), letter.upper()) for letter in text)
    groups = sorted("RAS"["RLAPSI".index(code) // 2] for code in codes if code in "RLAPSI")
    if len(codes) != 3 or groups != sorted("RAS"):
        raise ValueError(f"{text!r}: three letters such as zyx or SAR: where the first, second and "
                         "third axis of the arrays run (x, y, z: right, anterior, superior; or R, "
                         "L, A, P, S, I)")
    return codes


def to_ras(array, codes):
    """Turns an array whose axes run as the codes say; a view with axes right, anterior, superior.

    :param array: (X, Y, Z)
    :param codes: of `parse_codes`
    """
    return nib.apply_orientation(array, nib.orientations.axcodes2ornt(tuple(codes)))


def all_orders(array, reference):
    """How well an array agrees with a reference in each order and direction of its axes.

    :param array, reference: (D, D, D); the reference is RAS
    :return: 48 AxisOrders; the first is the array as it is
    """
    reference = _standardized(reference)
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            flipped = [axis for axis in range(3) if signs[axis] < 0]
            turned = np.flip(array.transpose(order), flipped)
            correlation = float(_standardized(turned) @ reference)
            found.append(AxisOrder(correlation, order, signs))
    return found


def best_order(array, reference, tolerance=0.0):
    """The AxisOrder that agrees best; among those within the tolerance, that of fewest reversals.

    :param tolerance: in correlation; a brain is nearly its own mirror image
    """
    found = all_orders(array, reference)
    highest = max(each.correlation for each in found)
    close = [each for each in found if each.correlation >= highest - tolerance]
    return min(close, key=lambda each: (each.signs.count(-1), -each.correlation))


def _standardized(array):
    """Flat, of mean 0 and length 1."""
    x = array.ravel() - array.mean()
    return x / max(np.linalg.norm(x), 1e-9)
