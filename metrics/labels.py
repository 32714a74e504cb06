"""Labels of volumes: their classes, or a covariate that manifest.json or samples.json records."""
from pathlib import Path

import numpy as np

from mri import manifest, samples_folder
from utils.errors import UserError
from utils.files import read_json

CLASS = "class"     # the label that a data folder and samples always have


def labels_of(volume_set, label):
    """The label of each volume: text, a number, or None where there is none.

    :param volume_set: metrics.volume_sets.VolumeSet
    :param label: CLASS, or the name of a covariate
    :return: list; None if the folder does not record this label
    """
    if label == CLASS:
        return volume_set.classes
    rows = _covariates(Path(volume_set.path))
    found = [rows.get(name, {}).get(label) for name in volume_set.ids]
    return found if any(value is not None for value in found) else None


def are_numbers(values):
    """Whether all labels are numbers, such as ages, and not names of classes."""
    return all(isinstance(value, int | float) and not isinstance(value, bool)
               and np.isfinite(value) for value in values)


def _covariates(folder):
    """{id: {name: value}} of a data or samples folder; {} of any other.

    Of a sample, they are what it was asked to have.
    """
    if (folder / "manifest.json").is_file():
        volumes, key = manifest.read_manifest(folder)[1], "covariates"
    elif (folder / samples_folder.FILE_NAME).is_file():
        volumes = read_json(folder / samples_folder.FILE_NAME).get("samples", [])
        key = "condition"
    else:
        return {}
    rows = {volume["id"]: volume.get(key) or {} for volume in volumes}
    if not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"{folder}: its covariates are damaged; preprocess or sample again")
    return rows
