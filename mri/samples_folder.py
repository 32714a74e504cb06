"""The samples folder: what sample.py writes, and how several jobs begin it together.

    samples.json        format, version and the header of the data folder (mri/manifest.py); how
                        the samples were made; and `samples`, id, index and class of each, and
                        `condition`, {name: value}, where the model takes covariates
    conditions.tsv      the same covariates as a table
    mosaics/ID.png      8-bit RGB, lossless
    nifti/ID.nii.gz     written last: if it exists, the sample is complete
"""
import json

from mri import manifest
from utils.errors import UserError
from utils.escaping import cell
from utils.files import make_folder, read_json, remove_leftovers, write_text
from utils.shared_folders import locked

FILE_NAME = "samples.json"
FORMAT = "mosaicdit-samples"
TABLE_NAME = "conditions.tsv"
LOCK_NAME = ".samples.lock"


def planned_count(output, num_samples, recipe, defaults):
    """How many samples the folder is to hold: more than asked for if it was begun with more.

    :param recipe: {name: value} of what decides how a sample looks
    :param defaults: of a recipe, for what earlier versions did not record
    :raises UserError: the folder exists and was not begun with this recipe
    """
    path = output / FILE_NAME
    if not path.is_file():
        # samples.json is written first, so a folder without it is not ours
        if output.exists() and any(entry.name[0] != "." for entry in output.iterdir()):
            raise UserError(f"--output {output}: exists already and was not begun by sample.py; "
                            "name a new folder")
        return num_samples
    content = read_json(path)
    if not _is_plausible(content):
        raise UserError(f"{path}: damaged; name a new folder for --output")
    theirs = defaults | content["recipe"]
    for key, value in recipe.items():
        if theirs.get(key) != value:
            raise UserError(f"--output {output}: holds samples of {key} {theirs.get(key)}, "
                            f"not {value}; name a new folder")
    return max(num_samples, len(content["samples"]))


def _is_plausible(content):
    return (isinstance(content, dict) and isinstance(content.get("recipe"), dict)
            and isinstance(content.get("samples"), list))


def _conditions_table(names, samples):
    """The text of conditions.tsv: what each sample was asked to have."""
    rows = [["id", *names]]
    rows += [[sample["id"], *(sample["condition"].get(name, "n/a") for name in names)]
             for sample in samples]
    return "".join("\t".join(map(cell, row)) + "\n" for row in rows)


def begin(output, num_samples, recipe, *, defaults, header, class_of, made_by, condition_of=None,
          condition_names=()):
    """Creates the samples folder, or continues it.

    Every process and job there writes the same samples.json, one after the other; of jobs with
    different numbers of samples, the largest stays. So does what a folder records of its beginning.

    :param num_samples, recipe, defaults: see `planned_count`
    :param header: of the data folder
    :param class_of: index of a sample -> index of its class
    :param condition_of: index of a sample -> its covariates, {name: value}; None or empty: the
        model takes none
    :param condition_names: of the columns of conditions.tsv
    :param made_by: {"provenance": …, "description": …} of the samples
    :raises UserError: see `planned_count`
    """
    make_folder(output, f"--output {output}")
    path = output / FILE_NAME
    with locked(output / LOCK_NAME):
        count = planned_count(output, num_samples, recipe, defaults)
        begun = read_json(path) if path.is_file() else {}
        samples = [{"id": f"{i:06d}", "index": i, "class": class_of(i)} for i in range(count)]
        if condition_of:
            samples = [{**sample, "condition": condition_of(sample["index"])} for sample in samples]
            write_text(output / TABLE_NAME, _conditions_table(condition_names, samples))
        content = {"format": FORMAT, "version": manifest.FORMAT_VERSION,
                   **{key: header[key] for key in manifest.HEADER_KEYS},
                   **{key: begun.get(key, value) for key, value in made_by.items()},
                   "recipe": recipe, "samples": samples}
        write_text(path, json.dumps(content, indent=1) + "\n")
    folders = [output, output / "mosaics", output / "nifti"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    remove_leftovers(output, *((folder, None) for folder in folders))
