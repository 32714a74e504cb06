"""The paper's recipe on real anatomy: slow tests with the published network and the cohort."""
import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, blob, turned
from helpers import SHARED, save_nifti, script
from nibabel.affines import apply_affine
from synthetic_heads import dice, make_head

from metrics import ms_ssim
from mri import manifest, mosaic, mosaic_files, nifti, scans

COHORT, MINDGRAB = SHARED / "cohort", SHARED / "meshnet" / "mindgrab"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (COHORT.is_dir() and MINDGRAB.is_dir()),
                       reason=f"needs {COHORT} and {MINDGRAB}")]
RECIPE = ("--recipe", "paper", "--meshnet", MINDGRAB, "--window", 0, 100)
BALL_MM = 30                # left of the brain's middle, and above it by half


def bright_center(array, affine):
    """World coordinates of what is at least as bright as 0.7 of the maximum."""
    voxels = np.argwhere(array > 0.7 * array.max())
    return apply_affine(affine, voxels).mean(0)


def test_a_landmark_through_the_recipe(tmp_path):
    pytest.importorskip("SimpleITK")
    image = nib.load(sorted(COHORT.glob("*.nii.gz"))[0])
    brain = np.asarray(image.dataobj, np.float32)
    middle = apply_affine(image.affine, np.argwhere(brain > 0)).mean(0)
    point = middle + [-BALL_MM, 0, BALL_MM / 2]
    head, mask, affine = make_head(brain, image.affine, seed=1)
    head += 1500 * blob(head.shape, affine, point)
    scan, scan_affine = turned(head, affine, *ORIENTATIONS[29])
    save_nifti(tmp_path / "in" / "head.nii.gz", scan, scan_affine, np.float32)
    script("preprocess.py", "--input", tmp_path / "in", *RECIPE, "--output", tmp_path / "d")
    for name, flags in (("cubes", ()), ("back", ("--restore-shape",))):
        script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / name, *flags)
    _, (entry,) = manifest.read_manifest(tmp_path / "d")
    cube, back = (nib.load(tmp_path / name / "head.nii.gz") for name in ("cubes", "back"))
    in_template = apply_affine(np.array(entry["registration"]["matrix"]), point)
    found = bright_center(cube.get_fdata(), cube.affine)
    assert np.abs((found - in_template) / [1.125, 1.375, 1.125]).max() < 1 and found[0] < 0
    restored = bright_center(back.get_fdata(), back.affine)
    assert np.abs(restored - point).max() < 1                      # voxels of 1 mm
    assert back.shape == scan.shape and np.allclose(back.affine, scan_affine, atol=1e-4)
    own_mask, _ = nifti.read_nifti(manifest.mask_path(tmp_path / "d", "head"))
    assert dice(own_mask > 0, turned(mask, affine, *ORIENTATIONS[29])[0]) > 0.95


def test_registered_brains_are_more_alike(tmp_path):
    brains = scans.search(COHORT).scans[:4]
    table = tmp_path / "brains.tsv"
    table.write_text("path\n" + "".join(f"{scan.path}\n" for scan in brains))

    def mean_similarity(name, *flags):
        script("preprocess.py", "--input", table, "--output", tmp_path / name, *flags)
        header, entries = manifest.read_manifest(tmp_path / name)
        volumes = [mosaic.untile(mosaic_files.read_mosaic(
            mosaic_files.mosaic_path(tmp_path / name, entry["id"]), header), 128, "rgb")
            for entry in entries]
        return ms_ssim.ms_ssim_pairs(np.stack(volumes)).mean()

    before = mean_similarity("own")
    after = mean_similarity("mni", "--register", "mni", "--field-of-view", 144, 176, 144)
    assert after > before + 0.02
