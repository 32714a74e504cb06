"""What folders say of their volumes, and what postprocess.py takes along."""
import json
import shutil

import pytest
from helpers import GOLDEN

from mri import origin
from utils.errors import UserError

V2 = GOLDEN / "v2"


def test_a_data_folder():
    found = origin.read_origin(V2 / "data")
    entries = json.loads((V2 / "data" / "manifest.json").read_text())
    first = entries["volumes"][0]
    assert found.class_of[first["id"]] == entries["classes"][first["class"]]
    assert found.subject_of[first["id"]] == first["subject"]
    assert found.made_by == {} and found.listed is None
    assert origin.read_origin(V2 / "data" / "manifest.json") == found


def test_a_samples_folder():
    found = origin.read_origin(V2 / "samples")
    assert found.listed == ["000000", "000001"]
    assert found.class_of == {"000000": "AD", "000001": "AD"}
    assert found.made_by["recipe"]["sampler"] == "ddim" and list(found.made_by) == ["recipe"]
    assert origin.read_origin(V2 / "samples" / "nifti") == found
    assert origin.read_origin(V2 / "samples" / "samples.json") == found
    lines = origin.describe(found.made_by)
    assert "sampler ddim" in lines and "num sampling steps 3" in lines
    assert "ckpt sha256 b64ab2e52f94" in lines and not any("cfg channels" in x for x in lines)


def test_it_is_written_and_read(tmp_path):
    before = origin.Origin({"recipe": {"seed": 3}}, {"a": "AD", "b": "CN"}, {"a": "sub-1"})
    origin.write_origin(tmp_path, before, ["a", "c"])
    found = origin.read_origin(tmp_path)
    assert found == origin.Origin({"recipe": {"seed": 3}}, {"a": "AD"}, {"a": "sub-1"})


def test_a_folder_that_says_nothing(tmp_path):
    assert origin.read_origin(tmp_path) == origin.Origin()


def test_damaged_files(tmp_path):
    path = tmp_path / "source.json"
    for text in ('{"format": "x"}', "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="source.json: not written by postprocess.py"):
            origin.read_origin(tmp_path)
    for rest in ('"volumes": []', '"volumes": {"a": 3}, "made_by": {}', '"volumes": {}',
                 '"volumes": {}, "made_by": 3',
                 '"volumes": {"a": {"class": 3}}, "made_by": {}'):
        path.write_text('{"format": "mosaicdit-source", ' + rest + "}")
        with pytest.raises(UserError, match="source.json: damaged"):
            origin.read_origin(tmp_path)
    shutil.copy(V2 / "samples" / "samples.json", tmp_path / "samples.json")
    content = json.loads((tmp_path / "samples.json").read_text())
    for samples in (3, [3], [{"id": 3}], [{"id": "a", "class": 9}], [{"id": "a", "class": "AD"}]):
        (tmp_path / "samples.json").write_text(json.dumps({**content, "samples": samples}))
        with pytest.raises(UserError, match="samples.json: damaged"):
            origin.read_origin(tmp_path)
