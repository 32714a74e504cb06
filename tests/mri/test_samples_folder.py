"""Several jobs begin one samples folder: what its samples.json says in the end."""
import json
import multiprocessing

import pytest
from helpers import GOLDEN

from mri import manifest, samples_folder
from utils.errors import UserError

HEADER = manifest.read_manifest(GOLDEN / "v2" / "samples")[0]
RECIPE = {"seed": 0}


def begin(output, count, recipe=RECIPE):
    samples_folder.begin(output, count, recipe, defaults={"vae_precision": "fp32"}, header=HEADER,
                         class_of=lambda i: i % 2, made_by={"description": f"of {count}"})


def listed(output):
    return json.loads((output / "samples.json").read_text())


def test_the_largest_number_stays(tmp_path):
    output = tmp_path / "s"
    begin(output, 3)
    begin(output, 12)
    begin(output, 5)
    content = listed(output)
    assert [sample["id"] for sample in content["samples"]] == [f"{i:06d}" for i in range(12)]
    assert [sample["class"] for sample in content["samples"]] == [0, 1] * 6
    assert content["description"] == "of 3" and content["recipe"] == RECIPE
    assert sorted(path.name for path in output.iterdir()) == ["mosaics", "nifti", "samples.json"]


def test_many_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counts = [5, 12, 7, 3, 9, 11]
    processes = [context.Process(target=begin, args=(tmp_path / "s", n)) for n in counts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(listed(tmp_path / "s")["samples"]) == 12


def test_another_recipe_that_began_in_between(tmp_path):
    """Checked again under the lock: the first one's recipe stays."""
    output = tmp_path / "s"
    assert samples_folder.planned_count(output, 3, {"seed": 1}, {}) == 3
    begin(output, 2)
    with pytest.raises(UserError, match="holds samples of seed 0, not 1"):
        begin(output, 3, {"seed": 1})
    assert listed(output)["recipe"] == RECIPE and len(listed(output)["samples"]) == 2


@pytest.mark.parametrize("change", [
    {"samples": "x" * 9}, {"samples": None}, {"recipe": [1]}, {"recipe": None}])
def test_damaged_files(tmp_path, change):
    begin(tmp_path, 2)
    (tmp_path / "samples.json").write_text(json.dumps(listed(tmp_path) | change))
    with pytest.raises(UserError, match="damaged; name a new folder"):
        begin(tmp_path, 3)
