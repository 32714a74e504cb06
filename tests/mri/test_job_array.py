"""A preprocessing by the jobs of an array: what comes out is what one job writes."""
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import AFFINE, brain, error_line, save_nifti, script

from mri import conversion, job_array, quality_control
from utils.errors import UserError


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_results_of_a_part_are_read_as_they_were_written(tmp_path):
    cube = np.random.default_rng(0).integers(0, 256, (16, 16, 16), np.uint8)
    summary = quality_control.summarize(cube, True)
    results = {"a": conversion.PreparedScan({"id": "a", "window": [0.1, 1e300]}, summary),
               "b": conversion.SkippedScan("b.nii: not a NIfTI image")}
    part = tmp_path / "d.shards" / "1-of-1"
    part.mkdir(parents=True)
    job_array._write_results(part, {"size": "16"}, results)
    jobs = job_array.JobArray(tmp_path / "d", 1, 1, {"size": "16"})
    read = jobs._read_part(1)
    assert read.keys() == results.keys() and read["b"] == results["b"]
    assert read["a"].entry == results["a"].entry
    for name, value in vars(summary).items():
        ours = getattr(read["a"].summary, name)
        assert np.array_equal(ours, value), name
    job_array._write_results(part, {"size": "16"}, {"array": results["a"]})  # a scan with this id
    assert jobs._read_part(1)["array"].entry == results["a"].entry
    with pytest.raises(UserError, match="was made with other flags"):
        job_array.JobArray(tmp_path / "d", 1, 1, {"size": "32"})._read_part(1)


def bomb(path, kind):
    """A small part.npz in the place of two arrays, that would take 1 GB."""
    side = 2 ** 13
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("0", "1"):
            array = io.BytesIO()
            header = {"descr": "<f8", "fortran_order": False, "shape": (side, side)}
            np.lib.format.write_array_header_1_0(array, header)
            with archive.open(f"{name}.npy", "w") as f:
                f.write(array.getvalue())
                for _ in range(side if kind == "compressed" else 0):
                    f.write(bytes(8 * side))


@pytest.mark.parametrize("kind, words", [
    ("compressed", "claims to unpack to"), ("a header that lies", "claims an array of shape"),
    ("one array many times", "damaged"), ("no array", "damaged"), ("cut off", "damaged")])
def test_a_part_that_would_fill_the_memory_is_refused(tmp_path, kind, words):
    """Parts lie in a folder that others may write; no size in them is believed."""
    cube = np.zeros((16, 16, 16), np.uint8)
    result = conversion.PreparedScan({"id": "a"}, quality_control.summarize(cube, True))
    part = tmp_path / "d.shards" / "1-of-1"
    part.mkdir(parents=True)
    job_array._write_results(part, {}, {"a": result})
    path = part / "part.npz"
    if kind == "one array many times":
        content = json.loads((part / "part.json").read_text())
        content["results"]["b"] = content["results"]["a"]
        (part / "part.json").write_text(json.dumps(content))
    elif kind == "no array":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("2.npy", b"no array")
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        bomb(path, kind)
        assert path.stat().st_size < 5e6
    tracemalloc.start()
    with pytest.raises(UserError, match=words) as raised:
        job_array.JobArray(tmp_path / "d", 1, 1, {})._read_part(1)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert "remove it, and run its task again" in str(raised.value)


def test_two_jobs_write_what_one_writes(tmp_path):
    for i in range(5):
        save_nifti(tmp_path / "in" / f"s{i}.nii.gz", brain(seed=i), AFFINE)
    (tmp_path / "in" / "bad.nii").write_bytes(b"no scan")
    flags = ("--input", tmp_path / "in", "--size", 16, "--split", "3:2", "--workers", 1,
             "--fit", "pad")
    script("preprocess.py", *flags, "--output", tmp_path / "one", expect=1)
    many = ("preprocess.py", *flags, "--output", tmp_path / "many", "--shard")
    first = script(*many, "1/2")
    assert "shard 1/2: 2 scans done, 1 skipped" in first.stdout
    assert script(*many, "1/2").stdout == first.stdout          # not prepared again
    save_nifti(tmp_path / "in" / "s9.nii.gz", brain(seed=9), AFFINE)
    done = script(*many, "2/2", expect=2)
    assert "holds other scans than when its shards were started; remove" in error_line(done)
    (tmp_path / "in" / "s9.nii.gz").unlink()
    assert "was made with other flags" in error_line(script(*many, "2/2", "--seed", 5, expect=2))
    script(*many, "2/2", expect=1)
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "many", "one"]
