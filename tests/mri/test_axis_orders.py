"""Axis orders by their names, and by what agrees with a reference."""
import itertools

import nibabel as nib
import numpy as np
import pytest
from helpers import brain

from mri import axis_orders

SHAPE = (12, 12, 12)


@pytest.mark.parametrize("text, codes", [
    ("zyx", "SAR"), ("xyz", "RAS"), ("ZYX", "SAR"), ("yzx", "ASR"), ("LPI", "LPI"), ("sal", "SAL")])
def test_codes(text, codes):
    assert axis_orders.parse_codes(text) == codes


@pytest.mark.parametrize("text", ["", "xy", "xyy", "RLA", "abc", "xyzz", "RAP"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="three letters such as zyx or SAR"):
        axis_orders.parse_codes(text)


def test_a_turned_array_is_recognized_in_every_order():
    """The codes are those that nibabel gives to an affine of such an array."""
    reference = brain(SHAPE, seed=3)
    for order in itertools.permutations("RAS"):
        for reversed_axes in itertools.product((False, True), repeat=3):
            codes = "".join(code if not flip else dict(zip("RAS", "LPI"))[code]
                            for code, flip in zip(order, reversed_axes))
            to_file = nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
            stored = nib.apply_orientation(reference, to_file)
            assert np.array_equal(axis_orders.to_ras(stored, codes), reference)
            best = axis_orders.best_order(stored, reference)
            assert best.codes == codes and best.correlation == pytest.approx(1)
            assert axis_orders.parse_codes(best.name) == codes


def test_the_first_order_is_the_array_as_it_is():
    a, b = brain(SHAPE, seed=0), brain(SHAPE, seed=1)
    found = axis_orders.all_orders(a, b)
    assert len(found) == 48 and len({each.codes for each in found}) == 48
    assert found[0].codes == "RAS" and found[0].name == "xyz"
    assert found[0].correlation == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)
    assert axis_orders.best_order(np.swapaxes(b, 0, 2), b).name == "zyx"


def test_within_the_tolerance_nothing_is_reversed():
    """A brain is nearly its own mirror image."""
    half = brain(SHAPE, seed=0)
    symmetric = half + half[::-1]
    noisy = symmetric + np.random.default_rng(1).normal(0, 1, SHAPE)
    best = axis_orders.best_order(symmetric[::-1], noisy, tolerance=0.02)
    assert best.codes == "RAS"
