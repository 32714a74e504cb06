"""A made-up cohort is a data folder like any other."""
import numpy as np

from benchmarks import simulated_cohort
from metrics import ms_ssim
from mri import manifest, mosaic, mosaic_files


def test_volumes_differ_and_resemble_each_other(tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        simulated_cohort.write_cohort(tmp_path / name, 4, 16, seed)
    header, entries = manifest.read_manifest(tmp_path / "a")
    assert (header["size"], len(entries)) == (16, 4)
    assert [entry["split"] for entry in entries] == ["train", "train", "test", "test"]
    volumes = {}
    for name in ("a", "again", "b"):
        mosaics = mosaic_files.read_mosaics(tmp_path / name, header, entries)
        volumes[name] = np.stack([mosaic.untile(m, 16, "rgb") for m in mosaics])
    assert np.array_equal(volumes["a"], volumes["again"])
    every = np.concatenate([volumes["a"], volumes["b"]])
    similarity = ms_ssim.ms_ssim_pairs(every)
    assert 0.3 < similarity.min() and similarity.max() < 0.999
    assert 0.6 < (every == 0).mean() < 0.9 and every.max() < 255
