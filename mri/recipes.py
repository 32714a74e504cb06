"""Recipes: names for sets of flags of preprocess.py that belong together.

    paper    how the scans of ADNI were prepared that the published results are of: bias correction,
             skull strip, affine registration to MNI152, 144 x 176 x 144 mm, a cube of 128 voxels
    native   the same brains, each in its own space and size: nothing is registered or stretched
"""
from utils.errors import UserError
from utils.flags import flag_of

RECIPES = {
    "paper": {"n4": True, "skull_strip": True, "register": "mni",
              "field_of_view": [144.0, 176.0, 144.0], "crop": "none", "fit": "stretch",
              "size": 128},
    "native": {"n4": True, "skull_strip": True, "register": "none", "crop": "brain",
               "fit": "pad"},
}


def check(name, values):
    """Checks that no flag was given that a recipe sets otherwise.

    :param name: of the recipe; None: there is none to check
    :param values: {argument: value} of the command line, whose defaults are the recipe's values
    :raises UserError: names the first such flag
    """
    for argument, value in RECIPES.get(name, {}).items():
        given = values[argument]
        if given != value:
            raise UserError(f"--recipe {name}: sets {_as_flag(argument, value)}, but "
                            f"{_as_flag(argument, given)} was given; leave one of them out")
    if name and values["mask"]:
        raise UserError(f"--recipe {name}: finds the brain itself, but --mask was given; give the "
                        f"flags that it stands for, without --skull-strip: {expand(name)}")


def expand(name):
    """The flags that a recipe stands for, as on a command line."""
    return " ".join(_as_flag(argument, value) for argument, value in RECIPES[name].items())


def help_phrase():
    """All recipes, for --help."""
    return "; ".join(f"{name}: {expand(name)}" for name in RECIPES)


def _as_flag(argument, value):
    flag = flag_of(argument)
    if value is True:
        return flag
    if value is None or isinstance(value, str):
        return f"{flag} {value}"
    numbers = value if isinstance(value, list | tuple) else [value]
    return " ".join([flag, *(f"{number:g}" for number in numbers)])
