"""postprocess.py: where its volumes come from, and where they go."""
import json
import os
import shutil
import stat
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers import GOLDEN, ROOT, error_line, script

from mri import nifti

V2 = GOLDEN / "v2"


def test_the_recipe_of_samples_is_taken_along(tmp_path):
    script("postprocess.py", "--input", V2 / "samples", "--output", tmp_path / "n")
    recipe = json.loads((V2 / "samples" / "samples.json").read_text())["recipe"]
    source = json.loads((tmp_path / "n" / "source.json").read_text())
    assert source["made_by"] == {"recipe": recipe}
    assert source["volumes"] == {"000000": {"class": "AD"}, "000001": {"class": "AD"}}
    image = nib.load(tmp_path / "n" / "000000.nii.gz")
    assert tuple(int(image.header[key]) for key in ("sform_code", "qform_code")) == (
        nifti.SYNTHETIC_CODES)


def test_classes_and_subjects_of_scans_are_taken_along(tmp_path):
    script("postprocess.py", "--input", V2 / "data", "--output", tmp_path / "n")
    content = json.loads((V2 / "data" / "manifest.json").read_text())
    source = json.loads((tmp_path / "n" / "source.json").read_text())
    assert source["made_by"] == {}
    assert source["volumes"] == {
        volume["id"]: {"class": content["classes"][volume["class"]], "subject": volume["subject"]}
        for volume in content["volumes"]}


def test_mosaics_that_the_manifest_does_not_list_are_named(tmp_path):
    folder = shutil.copytree(V2 / "data", tmp_path / "d")
    first = sorted((folder / "mosaics").iterdir())[0]
    shutil.copy(first, folder / "mosaics" / "another.png")
    done = script("postprocess.py", "--input", folder, "--output", tmp_path / "n")
    assert "warning: 1 of 6 mosaics are not in the manifest" in done.stderr
    assert "another" in done.stderr


@pytest.mark.parametrize("kind", ["link", "here", "dangling"])
def test_outputs_that_a_rename_cannot_replace(tmp_path, kind):
    target, cwd, output = tmp_path / "target", ROOT, tmp_path / "link"
    if kind == "here":
        target.mkdir()
        cwd, output = target, "."
    else:
        output.symlink_to(target)
        if kind == "link":
            target.mkdir()
    script("postprocess.py", "--input", V2 / "samples", "--output", output, cwd=cwd)
    names = ["000000.nii.gz", "000001.nii.gz", "source.json"]
    assert sorted(os.listdir(target)) == names
    assert sorted(os.listdir(tmp_path)) == (["target"] if kind == "here" else ["link", "target"])


def test_errors_never_show_temporary_names(tmp_path):
    """A file system that is full."""
    done = script("postprocess.py", "--input", V2 / "samples", "--output", tmp_path / "n", expect=2,
                  max_file_bytes=100)
    assert ".tmp-" not in done.stderr and ".tmp-" not in error_line(done)
    assert os.listdir(tmp_path) == []


def test_every_file_obeys_the_umask(tmp_path):
    """Weights, too, which their library writes for their owner alone."""
    code = ("import os, sys; os.umask(0o002); sys.path.insert(0, sys.argv[1])\n"
            "import diffusers\n"
            "from utils.files import atomic_folder\n"
            "vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)\n"
            "with atomic_folder(sys.argv[2]) as folder: vae.save_pretrained(folder)\n")
    subprocess.run([sys.executable, "-c", code, ROOT, tmp_path / "vae"], check=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "vae").iterdir()}
    assert modes == {"config.json": 0o664, "diffusion_pytorch_model.safetensors": 0o664}
    assert stat.S_IMODE((tmp_path / "vae").stat().st_mode) == 0o775


def test_the_cubes_are_those_of_the_mosaics(tmp_path):
    script("postprocess.py", "--input", V2 / "samples", "--output", tmp_path / "n")
    for name in ("000000", "000001"):
        new, old = (np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)
                    for folder in (tmp_path / "n", V2 / "samples" / "nifti"))
        assert np.array_equal(new, old)
