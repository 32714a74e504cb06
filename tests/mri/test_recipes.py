"""Recipes: sets of flags, and flags that contradict them."""
import pytest

from mri import recipes
from utils.errors import UserError


def test_the_recipe_of_the_paper():
    assert recipes.expand("paper") == (
        "--n4 --skull-strip --register mni --field-of-view 144 176 144 --crop none --fit stretch "
        "--size 128")
    assert recipes.expand("native") == "--n4 --skull-strip --register none --crop brain --fit pad"


def test_flags_that_a_recipe_sets_otherwise_are_refused():
    values = {**recipes.RECIPES["paper"], "mask": None}
    recipes.check("paper", values)
    recipes.check(None, {})
    with pytest.raises(UserError, match="sets --field-of-view 144 176 144, but --field-of-view "
                                        "1 2 3 was given"):
        recipes.check("paper", {**values, "field_of_view": [1.0, 2.0, 3.0]})
    with pytest.raises(UserError, match="sets --size 128, but --size 64 was given"):
        recipes.check("paper", {**values, "size": 64})
    with pytest.raises(UserError, match="finds the brain itself, but --mask was given"):
        recipes.check("paper", {**values, "mask": "m.nii"})
