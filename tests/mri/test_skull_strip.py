"""Skull stripping: the mask on the scan's own grid, in the data folder, and what can go wrong.

Most tests use a made-up network, which takes for brain what is bright; synthetic_heads.py and the
published network show how good the masks are.
"""
import os

import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, head, oblique, turned
from helpers import AFFINE, SHARED, error_line, save_nifti, script
from small_meshnets import brightness_network, random_meshnet
from synthetic_heads import dice, make_head

from mri import geometry, manifest, meshnet, mosaic_files, skull_strip
from utils.errors import UserError

LARGE = AFFINE @ np.diag([2, 2, 2, 1])      # voxels of 3, 2.5 and 4 mm: heads of a child's size
MINDGRAB = SHARED / "meshnet" / "mindgrab"
COHORT = SHARED / "cohort"
needs_shared = pytest.mark.skipif(not (MINDGRAB.is_dir() and COHORT.is_dir()),
                                  reason=f"needs {MINDGRAB} and {COHORT}")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return brightness_network(tmp_path_factory.mktemp("meshnet") / "bright")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three heads in three axis orders."""
    folder = tmp_path_factory.mktemp("heads")
    for i in range(3):
        scan, affine = turned(head(i)[0], oblique(LARGE), *ORIENTATIONS[13 * i])
        save_nifti(folder / f"sub-{i}.nii.gz", scan, affine, np.float32)
    return folder


@pytest.fixture(scope="module")
def stripped(heads, network, tmp_path_factory):
    """A data folder of the heads, skull-stripped."""
    folder = tmp_path_factory.mktemp("stripped") / "d"
    return folder, script("preprocess.py", "--input", heads, "--output", folder,
                          *strip_flags(network))


def strip_flags(network):
    return ("--skull-strip", "--meshnet", network, "--crop", "brain", "--size", 32, "--workers", 1)


def volumes_of(folder):
    """{id: entry}, and {id: pixels of the mosaic}."""
    header, entries = manifest.read_manifest(folder)
    pixels = {entry["id"]: mosaic_files.read_mosaic(
        mosaic_files.mosaic_path(folder, entry["id"]), header) for entry in entries}
    return {entry["id"]: entry for entry in entries}, pixels


def same_volumes(a, b):
    (_, pixels), (_, others) = volumes_of(a), volumes_of(b)
    return pixels.keys() == others.keys() and all(
        np.array_equal(pixels[name], others[name]) for name in pixels)


# --------------------------------------------------------------------------------------- the mask

@pytest.mark.parametrize("scale", [(1, 1, 1), (0.5, 0.5, 0.5), (1, 1, 5), (3, 0.8, 1.3)])
def test_the_mask_is_on_the_scans_own_grid(network, scale):
    """Voxels of another size: the brain is found where it is, to a voxel's edge."""
    array, mask = head(shape=(24, 28, 26))
    shape = np.rint(np.array(array.shape) * geometry.voxel_sizes(LARGE) / scale).astype(int)
    affine = geometry.grid_over(array.shape, LARGE, shape)
    scan = geometry.resample(array, shape)
    true_mask = geometry.resample(mask.astype(np.float32), shape) > 0.5
    found = skull_strip.brain_mask(scan, affine, meshnet.load(network))
    assert found.shape == scan.shape and found.dtype == bool
    assert dice(found, true_mask) > 0.93


def test_its_axes_are_turned_for_the_network(tmp_path):
    """A network that looks one voxel to the left, two downwards and three forwards."""
    kernel = np.zeros((7, 7, 7, 1, 1))
    kernel[3 + 1, 3 + 2, 3 + 3] = 1                       # where it looks, on its axes L, I, A
    shifting = brightness_network(tmp_path, kernel=kernel)
    array = np.zeros((60, 64, 68), np.float32)
    array[5:55, 5:59, 5:63] = 1                           # a head
    array[15:45, 16:46, 14:50] = 10                       # a brain
    found = skull_strip.brain_mask(array, np.eye(4), meshnet.load(shifting))
    expected = np.zeros(array.shape, bool)
    # what sees the brain to its left, below and ahead of itself lies to the right, above, behind
    expected[16:46, 13:43, 16:52] = True
    assert np.array_equal(found, expected)


def test_one_solid_piece_is_kept(network):
    array = np.zeros((60, 60, 60), np.float32)
    array[4:56, 4:56, 4:56] = 1
    array[8:40, 8:40, 8:40] = 10
    array[15:18, 15:18, 15:18] = 1                        # a hole in it
    array[44:52, 44:52, 44:52] = 10                       # another, smaller piece
    found = skull_strip.brain_mask(array, np.eye(4), meshnet.load(network))
    expected = np.zeros(array.shape, bool)
    expected[8:40, 8:40, 8:40] = True
    assert np.array_equal(found, expected)


def test_threads_are_put_back_and_change_nothing(network):
    import torch
    array, _ = head()
    before = torch.get_num_threads()
    masks = [skull_strip.brain_mask(array, LARGE, meshnet.load(network), threads)
             for threads in (1, 2)]
    assert np.array_equal(*masks)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("background", [0, -1, -400, 30])
def test_the_head_is_found_on_noise(background):
    rng = np.random.default_rng(0)
    array = background + np.abs(rng.normal(0, 4, (80, 90, 100)))
    array[20:60, 12:70, 40:84] += 100
    array[75, 80, 95] += 5000                              # a bright voxel is no head
    box, padding = skull_strip.head_box(array.astype(np.float32))
    assert padding == ((0, 0), (0, 0), (0, 0))
    margin = skull_strip.HEAD_MARGIN
    for found, (start, stop), length in zip(box, ((20, 60), (12, 70), (40, 84)), array.shape):
        assert max(0, start - margin - 4) <= found.start <= max(0, start - margin)
        assert min(length, stop + margin) <= found.stop <= min(length, stop + margin + 4)


def test_a_head_that_is_cut_off_gets_background_beyond():
    array = np.zeros((80, 90, 100), np.float32)
    array[20:60, 0:70, 40:96] = 100
    box, padding = skull_strip.head_box(array)
    assert box == (slice(12, 68), slice(0, 80), slice(32, 100))
    margin = skull_strip.CUT_MARGIN
    assert padding == ((0, 0), (margin, 0), (0, 4))     # 4 voxels before the edge is not cut off
    array[20:60, 0:70, 40:100] = 100
    assert skull_strip.head_box(array)[1] == ((0, 0), (margin, 0), (0, margin))


def test_a_brain_at_the_edge_of_the_field_of_view_stays_there(network):
    array = np.zeros((50, 56, 60), np.float32)
    array[4:46, 0:50, 10:60] = 1
    array[10:40, 0:40, 30:60] = 10
    found = skull_strip.brain_mask(array, np.eye(4), meshnet.load(network))
    assert np.array_equal(found, array == 10)


def test_volume_of_a_mask():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:3, 1:3, 1:4] = True
    assert skull_strip.volume_ml(mask, np.diag([-2, 3, 5, 1])) == pytest.approx(0.36)
    assert skull_strip.volume_warning(700) is None and skull_strip.volume_warning(2100) is None
    assert "a brain of 699 ml" in skull_strip.volume_warning(699)
    assert "700 to 2100" in skull_strip.volume_warning(2101)


# --------------------------------------------------------------------------------- the data folder

def test_masks_lie_on_the_files_grids_and_are_recorded(heads, network, stripped):
    folder, done = stripped
    header, entries = manifest.read_manifest(folder)
    assert header["preparation"] == {"skull_strip": meshnet.fingerprint(network), "crop": "brain",
                                     "crop_margin": 5.0}
    table = (folder / "qc" / "qc.tsv").read_text()
    for i, entry in enumerate(entries):
        mask = nib.load(folder / "masks" / f"sub-{i}.nii.gz")
        scan = nib.load(heads / f"sub-{i}.nii.gz")
        assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine, atol=1e-4)
        found = nib.as_closest_canonical(mask).get_fdata()
        assert np.allclose(np.unique(found), [0, 1], atol=1e-6)
        assert dice(found > 0.5, head(i)[1]) > 0.93
        volume = (found > 0.5).sum() * 3 * 2.5 * 4 / 1000
        assert entry["skull_strip"] is True and "mask" not in entry
        assert entry["brain_ml"] == pytest.approx(volume, abs=0.06)
        assert f"found a brain of {volume:.0f} ml, brains have 700 to 2100" in table
        assert f"warning: sub-{i}: the skull strip found a brain of" in done.stderr


def test_the_written_masks_give_the_same_volumes(heads, stripped, tmp_path):
    folder, _ = stripped
    script("preprocess.py", "--input", heads, "--mask", folder / "masks" / "{id}.nii.gz", "--crop",
           "brain", "--size", 32, "--workers", 1, "--output", tmp_path / "d")
    assert same_volumes(folder, tmp_path / "d")


def test_what_is_restored_is_the_masked_scan(heads, stripped, tmp_path):
    folder, _ = stripped
    script("postprocess.py", "--input", folder, "--output", tmp_path / "back", "--restore-shape")
    for i in range(3):
        mask, scan, back = (nib.load(path / f"sub-{i}.nii.gz").get_fdata()
                            for path in (folder / "masks", heads, tmp_path / "back"))
        masked = np.where(mask > 0.5, scan, 0)
        assert np.corrcoef(masked.ravel(), back.ravel())[0, 1] > 0.98


def test_shards_and_more_processes_give_the_same(heads, network, stripped, tmp_path):
    folder, _ = stripped
    flags = ("--input", heads, *strip_flags(network)[:-1])
    for part in (1, 2):
        script("preprocess.py", *flags, 2, "--shard", f"{part}/2", "--output", tmp_path / "shards")
    script("preprocess.py", *flags, 8, "--output", tmp_path / "threads")  # more cores than scans
    for other in (tmp_path / "shards", tmp_path / "threads"):
        assert same_volumes(folder, other)
        for i in range(3):
            name = f"masks/sub-{i}.nii.gz"
            assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert volumes_of(folder)[0] == volumes_of(tmp_path / "shards")[0]


def test_scans_are_added_to_a_stripped_folder(heads, network, stripped, tmp_path):
    folder, _ = stripped
    os.mkdir(tmp_path / "two")
    for i in range(2):
        os.link(heads / f"sub-{i}.nii.gz", tmp_path / "two" / f"sub-{i}.nii.gz")
    flags = ("--output", tmp_path / "d", *strip_flags(network))
    script("preprocess.py", "--input", tmp_path / "two", *flags)
    other = random_meshnet_folder(tmp_path / "other")
    done = script("preprocess.py", "--input", heads, "--output", tmp_path / "d",
                  *strip_flags(other), expect=2)
    assert "made with other settings (skull_strip bright " in error_line(done)
    script("preprocess.py", "--input", heads, *flags)
    assert same_volumes(folder, tmp_path / "d")
    assert sorted(path.name for path in (tmp_path / "d" / "masks").iterdir()) == [
        f"sub-{i}.nii.gz" for i in range(3)]


def random_meshnet_folder(folder):
    random_meshnet(folder)
    return folder


def test_a_mask_of_the_list_comes_before_the_network(heads, network, tmp_path):
    ones = nib.load(heads / "sub-0.nii.gz")
    mask = np.zeros(ones.shape)
    mask[5:15, 5:15, 5:15] = 1
    save_nifti(tmp_path / "own.nii.gz", mask, ones.affine, np.uint8)
    (tmp_path / "scans.tsv").write_text(
        f"path\tmask\n{heads}/sub-0.nii.gz\town.nii.gz\n{heads}/sub-1.nii.gz\t\n")
    done = script("preprocess.py", "--input", tmp_path / "scans.tsv", "--output", tmp_path / "d",
                  *strip_flags(network))
    assert "1 of 2 scans have a mask in" in done.stdout
    entries, _ = volumes_of(tmp_path / "d")
    assert entries["sub-0"]["mask"] == str(tmp_path / "own.nii.gz")
    assert "skull_strip" not in entries["sub-0"] and entries["sub-1"]["skull_strip"] is True
    assert [path.name for path in (tmp_path / "d" / "masks").iterdir()] == ["sub-1.nii.gz"]


@pytest.mark.parametrize("background", [0, -1])
def test_what_is_stripped_already_is_left_as_it_is(network, tmp_path, background):
    array, mask = head()
    array[mask] = 20 + np.arange(mask.sum()) % 400          # dark voxels, too
    stripped = np.where(mask, array, background)
    save_nifti(tmp_path / "in" / "stripped.nii.gz", stripped, LARGE, np.float32)
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                  *strip_flags(network))
    assert "stripped: already skull-stripped: all that differs from" in done.stderr
    found = nib.load(tmp_path / "d" / "masks" / "stripped.nii.gz").get_fdata()
    assert np.array_equal(found > 0.5, mask)
    assert skull_strip.mask_of_stripped(array, LARGE) is None                # a head, with noise
    clean = np.where(array > 20, array, 0)                                   # a head on 0
    assert skull_strip.mask_of_stripped(clean, LARGE) is not None            # as small as a brain
    assert skull_strip.mask_of_stripped(clean, 3 * LARGE) is None


# ---------------------------------------------------------------------------------- what goes wrong

def test_an_image_without_a_brain_is_skipped(heads, network, tmp_path):
    dim = np.minimum(head()[0], 100)
    dim[12:16, 12:16, 12:16] = 1000                        # 2 ml are no brain
    save_nifti(tmp_path / "in" / "phantom.nii.gz", dim, LARGE, np.float32)
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                  *strip_flags(network), expect=2)
    assert "phantom.nii.gz: --skull-strip: no brain is found in it" in done.stderr
    assert "none of 1 scans could be used" in error_line(done)
    assert not (tmp_path / "d").exists()


def test_flags_that_contradict_each_other(heads, network, tmp_path):
    def refused(words, *flags):
        done = script("preprocess.py", "--input", heads, "--output", tmp_path / "d", *flags,
                      expect=2)
        assert words in error_line(done)
        assert not (tmp_path / "d").exists()

    refused("--skull-strip and --mask", "--skull-strip", "--mask", "m.nii", "--meshnet", network)
    refused("--meshnet: is for --skull-strip", "--meshnet", network)


def test_without_weights_or_with_others_one_line_says_what_to_do(heads, network, tmp_path):
    def refused(*words, flags=()):
        done = script("preprocess.py", "--input", heads, "--output", tmp_path / "d",
                      "--skull-strip", *flags, cwd=tmp_path, expect=2)
        for word in words:
            assert str(word) in error_line(done)

    nothing = tmp_path / "nothing"
    refused(nothing, "run download.py meshnet", flags=("--meshnet", nothing))
    random_meshnet(tmp_path / "three", classes=3)
    refused("a network of 3 classes", flags=("--meshnet", tmp_path / "three"))
    (tmp_path / "three" / "model.bin").write_bytes(b"")
    refused("model.bin: 0 bytes", flags=("--meshnet", tmp_path / "three"))


def test_the_network_is_looked_for_in_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.files.SCRIPTS_DIR", tmp_path / "scripts")
    with pytest.raises(UserError, match="weights/meshnet/mindgrab: holds no network"):
        skull_strip.find_network()
    beside = brightness_network(tmp_path / "scripts" / "weights" / "meshnet" / "mindgrab")
    assert skull_strip.find_network() == beside
    brightness_network(tmp_path / "weights" / "meshnet" / "mindgrab")
    assert skull_strip.find_network().resolve() == tmp_path / "weights" / "meshnet" / "mindgrab"


# --------------------------------------------------------------------------- the published network

def cohort_head(number, **choices):
    """A head around a brain of the cohort; its mask; their affine."""
    image = nib.load(COHORT / f"sub-{number:02d}_T1w.nii.gz")
    return make_head(image.get_fdata(), image.affine, seed=number, **choices)


def regridded(head_array, mask, affine, voxel_sizes):
    """The same head with voxels of another size, mm."""
    shape = np.rint(np.array(head_array.shape) / voxel_sizes).astype(int)
    on_new_grid = (geometry.resample(array, shape)
                   for array in (head_array, mask.astype(np.float32)))
    scan, soft_mask = on_new_grid
    return scan, soft_mask > 0.5, geometry.grid_over(head_array.shape, affine, shape)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 15))
def test_brains_are_found_in_heads(number):
    scan, mask, affine = cohort_head(number)
    found = skull_strip.brain_mask(scan, affine, meshnet.load(MINDGRAB), threads=2)
    assert dice(found, mask) > 0.95
    assert skull_strip.volume_warning(skull_strip.volume_ml(found, affine)) is None


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("voxel_sizes, choices", [
    ((0.5, 0.5, 0.5), {}),                   # 7 T
    ((1, 1, 5), {}),                         # thick slices
    ((1.5, 1.5, 1.5), {"face": False}),      # defaced
    ((1, 1, 1), {"noise": 15}),
    ((1, 1, 1), {"bias": 0.6}),
], ids=["0.5 mm", "5 mm slices", "defaced", "noise", "bias"])
def test_brains_are_found_in_unusual_heads(voxel_sizes, choices):
    scan, mask, affine = regridded(*cohort_head(3, **choices), np.array(voxel_sizes))
    found = skull_strip.brain_mask(scan, affine, meshnet.load(MINDGRAB), threads=2)
    assert dice(found, mask) > 0.95
