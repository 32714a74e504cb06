"""Folders that lack some of what they list: it is named, the rest is converted, the exit code is 1.
"""
import json
import os
import shutil

import pytest
from helpers import GOLDEN, script

V2 = GOLDEN / "v2"


def test_a_data_folder_that_lacks_a_mosaic(tmp_path):
    folder = shutil.copytree(V2 / "data", tmp_path / "d")
    ids = [entry["id"] for entry in json.loads((folder / "manifest.json").read_text())["volumes"]]
    (folder / "mosaics" / f"{ids[1]}.png").unlink()
    done = script("postprocess.py", "--input", folder, "--output", tmp_path / "n", expect=1)
    assert f"1 of {len(ids)} volumes that the manifest lists have no mosaic in {folder}: " \
           f"{ids[1]}; the command that wrote the folder completes it" in done.stderr
    written = sorted(path.name for path in (tmp_path / "n").glob("*.nii.gz"))
    assert written == sorted(f"{name}.nii.gz" for name in ids if name != ids[1])
    source = json.loads((tmp_path / "n" / "source.json").read_text())
    assert sorted(source["volumes"]) == sorted(set(ids) - {ids[1]})


@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_same_with_its_own_manifest_named(tmp_path, named):
    folder = shutil.copytree(V2 / "data", tmp_path / "d")
    sorted((folder / "mosaics").iterdir())[0].unlink()
    path = folder / "manifest.json" if named == "file" else tmp_path / "." / "d"
    script("postprocess.py", "--input", folder, "--manifest", path, "--output", tmp_path / "n",
           expect=1)


def test_a_part_of_another_folder_is_meant_so(tmp_path):
    """Pictures of one's own choice with the manifest of where they are from."""
    (tmp_path / "some").mkdir()
    first = sorted((V2 / "data" / "mosaics").iterdir())[0]
    shutil.copy(first, tmp_path / "some")
    done = script("postprocess.py", "--input", tmp_path / "some", "--manifest", V2 / "data",
                  "--output", tmp_path / "n")
    assert "have no mosaic" not in done.stderr
    assert set(os.listdir(tmp_path / "n")) == {f"{first.stem}.nii.gz", "source.json"}


def test_a_samples_folder_that_is_not_finished(tmp_path):
    folder = shutil.copytree(V2 / "samples", tmp_path / "s")
    (folder / "mosaics" / "000001.png").unlink()
    done = script("postprocess.py", "--input", folder, "--output", tmp_path / "n", expect=1)
    assert "1 of 2 volumes that the manifest lists have no mosaic" in done.stderr
    assert "000001" in done.stderr
    assert sorted(os.listdir(tmp_path / "n")) == ["000000.nii.gz", "source.json"]


def test_two_samplers_of_one_folder(finetuned, server, tmp_path):
    """They start together, one for 5 samples, one for 12: all 12 are there, and listed."""
    command = ("--ckpt", finetuned, "--output", tmp_path / "s", "--sampler", "dpm++",
               "--num-sampling-steps", 2, "--batch-size", 4, "--device", "cpu")
    jobs = [server.start("sample", *command, "--num-samples", n, output=tmp_path / f"log{n}")
            for n in (12, 5, 7)]
    assert [server.wait(job) for job in jobs] == [0, 0, 0]
    content = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert len(content["samples"]) == 12
    assert len(os.listdir(tmp_path / "s" / "mosaics")) == 12
    assert len(os.listdir(tmp_path / "s" / "nifti")) == 12
    assert not [name for name in os.listdir(tmp_path / "s") if name.startswith(".")]
