"""The template, and the field of view that volumes show of it."""
import nibabel as nib
import numpy as np
import pytest
from example_scans import ball
from helpers import save_nifti

from mri import template
from utils.errors import UserError


def ellipsoid_template(tmp_path):
    """A template of 2 mm voxels whose brain is an ellipsoid of 40 x 60 x 50 mm, off the middle."""
    mask = ball((40, 50, 44), (22, 20, 25), (10, 15, 12.5))
    affine = np.array([[2, 0, 0, -44], [0, 2, 0, -40], [0, 0, 2, -50], [0, 0, 0, 1.0]])
    hollow = mask & ~ball(mask.shape, (22, 20, 25), (3, 3, 3))
    return template.load_template(str(save_nifti(tmp_path / "t.nii.gz", hollow * 100, affine)))


def test_a_templates_brain_is_what_is_above_0_without_holes(tmp_path):
    brain = ellipsoid_template(tmp_path)
    assert np.array_equal(brain.mask, ball((40, 50, 44), (22, 20, 25), (10, 15, 12.5)))
    assert brain.code == 2 and brain.name.startswith(f"{tmp_path}/t.nii.gz (sha256 ")
    assert brain.array[22, 20, 25] == 0 and brain.array[22, 20, 33] == 100


def test_its_axes_are_turned_to_ras(tmp_path):
    array = ball((20, 24, 22), (8, 12, 11), (6, 8, 7)) * 100
    affine = np.diag([-2.0, 2, 2, 1])
    brain = template.load_template(str(save_nifti(tmp_path / "las.nii", array, affine)))
    assert nib.aff2axcodes(brain.affine) == ("R", "A", "S")
    assert np.array_equal(brain.array, array[::-1])


def test_the_field_of_view_holds_the_brain_in_its_middle(tmp_path):
    brain = ellipsoid_template(tmp_path)
    shape, affine = template.field_of_view(brain, (30.0, 80.0, 50.0))
    assert shape == (30, 80, 50) and np.allclose(affine[:3, :3], np.eye(3))
    # the brain's middle is at 0, 0, 0 in the world
    assert np.allclose(affine[:3, 3], [-14.5, -39.5, -24.5], atol=1)
    assert template.kept_fraction(brain, (80, 80, 80), np.diag([1, 1, 1, 1.0])
                                  + np.array([[0, 0, 0, -40]] * 3 + [[0] * 4])) == 1
    cut = template.kept_fraction(brain, (22, 80, 80), affine_at(-10.5, -40, -40))
    # the part of an ellipsoid of semi-axis 20 within 11 of its middle: (3 x - x^3) / 2 at x = 0.55
    assert cut == pytest.approx(0.742, abs=0.01)
    shape, affine = template.field_of_view(brain)
    assert shape == (80, 100, 88) and np.allclose(affine[:3, 3], [-44.5, -40.5, -50.5])


def affine_at(*origin):
    affine = np.eye(4)
    affine[:3, 3] = origin
    return affine


def test_the_papers_field_of_view_in_mni152():
    pytest.importorskip("nilearn")
    mni = template.load_template()
    assert mni.code == 4 and mni.name.startswith("MNI152NLin2009aSym (sha256 ")
    shape, affine = template.field_of_view(mni, (144.0, 176.0, 144.0))
    assert shape == (144, 176, 144)
    assert np.array_equal(affine[:3, 3], [-71.5, -104, -64])      # left and right alike
    assert template.kept_fraction(mni, shape, affine) > 0.997
    assert "144 x 176 x 144 mm, holds 99.7 % of its brain" in template.describe(mni, (144., 176,
                                                                                      144))
    whole, bright = template.regions(mni, (144.0, 176.0, 144.0), 32, "stretch")
    assert whole.shape == (32, 32, 32) and whole.max() == 1
    voxel_ml = 4.5 * 5.5 * 4.5 / 1000
    assert whole.sum() * voxel_ml == pytest.approx(mni.mask.sum() / 1000, rel=0.01)
    assert bright.sum() == pytest.approx(whole.sum() / 2, rel=0.05)


def test_what_is_no_template_is_refused(tmp_path):
    full = save_nifti(tmp_path / "full.nii", 5 + np.arange(512).reshape(8, 8, 8), np.eye(4))
    for path, words in ((full, "100 % of its voxels are above 0"),
                        (tmp_path / "none.nii", "none.nii: no such file")):
        with pytest.raises(UserError, match=words) as e:
            template.load_template(str(path))
        assert str(e.value).startswith(f"--template {path}")
