"""Registration: a known transform is found again, and one that failed is named."""
import sys

import nibabel as nib
import numpy as np
import pytest
from example_scans import ball, blob, oblique, turned
from helpers import AFFINE, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine
from small_meshnets import brightness_network

from mri import geometry, manifest, nifti, registration, template
from utils.errors import UserError

pytest.importorskip("SimpleITK")
pytest.importorskip("nilearn")

POINT = np.array([-30.0, -20.0, 20.0])      # of a bright ball, in the template's world, mm
FIELD = (144.0, 176.0, 144.0)


def known_transform():
    """World of the template -> world of a scan: turned, shifted, stretched, sheared."""
    pitch = np.deg2rad(18)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]]
    out = oblique(turn @ np.diag([0.92, 1.06, 0.97, 1]), -9)
    out[0, 1] += 0.05
    out[:3, 3] = [14, -22, 31]
    return out


def scan_of_template(voxel_sizes=(2.2, 1.8, 2.6)):
    """A scan of the template's brain in another contrast, and where its bright ball lies.

    :return: array, affine, the ball's world coordinates
    """
    mni = template.load_template()
    marked = mni.array * (1 - 0.3 * mni.array) * 900
    marked += 1500 * blob(marked.shape, mni.affine, POINT)
    matrix = known_transform()
    shape = (80, 110, 76)
    affine = np.diag([*voxel_sizes, 1.0])
    affine[:3, 3] = apply_affine(matrix, [0, -17, 5]) - np.array(voxel_sizes) * np.array(shape) / 2
    array = geometry.to_grid(marked, matrix @ mni.affine, shape, affine)
    return array, affine, apply_affine(matrix, POINT)


def peak(image):
    """World coordinates of the bright ball: the center of what is near the maximum."""
    array = image.get_fdata()
    bright = np.argwhere(array > 0.75 * array.max())
    weights = array[tuple(bright.T)]
    return apply_affine(image.affine, (bright * weights[:, None]).sum(0) / weights.sum())


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A head whose brain is brighter than all else, prepared as by --recipe paper, but smaller."""
    folder = tmp_path_factory.mktemp("registered")
    array, affine, point = scan_of_template()
    network = brightness_network(folder / "network")
    head = np.where(array > 0, np.maximum(array, 330), 0)
    around = ball(array.shape, np.array(array.shape) / 2, np.array(array.shape) / 2.05)
    head = np.where(head == 0, 60 * around, head) + np.random.default_rng(0).random(array.shape)
    scan, scan_affine = turned(head, affine, (2, 0, 1), (1, -1, -1))
    save_nifti(folder / "in" / "sub-1_T1w.nii.gz", scan, scan_affine, np.float32)
    done = script("preprocess.py", "--input", folder / "in", "--skull-strip", "--meshnet", network,
                  "--n4", "--register", "mni", "--field-of-view", *FIELD, "--size", 64,
                  "--window", 0, 100, "--workers", 1, "--output", folder / "d")
    return folder, point, done


def test_a_landmark_through_the_whole_recipe(registered, tmp_path):
    folder, point, done = registered
    assert "144 x 176 x 144 mm, holds 99.7 % of its brain" in done.stdout
    header, (entry,) = manifest.read_manifest(folder / "d")
    matrix = np.array(entry["registration"]["matrix"])
    script("postprocess.py", "--input", folder / "d", "--output", tmp_path / "cubes")
    script("postprocess.py", "--input", folder / "d", "--output", tmp_path / "back",
           "--restore-shape")
    cube = nib.load(tmp_path / "cubes" / "sub-1_T1w.nii.gz")
    back = nib.load(tmp_path / "back" / "sub-1_T1w.nii.gz")
    source = nib.load(folder / "in" / "sub-1_T1w.nii.gz")
    assert np.linalg.norm(peak(source) - point) < 0.5
    assert np.linalg.norm(peak(cube) - apply_affine(matrix, point)) < 2.25    # mm, a voxel's edge
    assert np.linalg.norm(peak(cube) - POINT) < 2.25 and peak(cube)[0] < 0    # left stays left
    assert np.linalg.norm(peak(back) - point) < 1.8
    assert back.shape == source.shape and np.allclose(back.affine, source.affine, atol=1e-4)
    mask, _ = nifti.read_nifti(manifest.mask_path(folder / "d", "sub-1_T1w"))
    inside = mask > 0
    assert np.corrcoef(back.get_fdata()[inside], source.get_fdata()[inside])[0, 1] > 0.9
    assert (back.get_fdata()[~inside] == 0).mean() > 0.9
    assert cube.get_sform(coded=True)[1] == 4 and back.get_sform(coded=True)[1] == 1
    assert np.allclose(geometry.voxel_sizes(cube.affine), np.array(FIELD) / 64)
    assert header["source_shape"] == [144, 176, 144]
    assert header["preparation"]["field_of_view"] == list(FIELD)
    assert header["preparation"]["register"].startswith("mni by SimpleITK ")


def test_a_known_transform_is_found(registered):
    folder, _, _ = registered
    _, (entry,) = manifest.read_manifest(folder / "d")
    mni = template.load_template()
    points = apply_affine(mni.affine, np.argwhere(mni.mask)[::5000])
    found = apply_affine(np.array(entry["registration"]["matrix"]) @ known_transform(), points)
    distances = np.linalg.norm(found - points, axis=1)
    assert distances.mean() < 1 and distances.max() < 2.5
    assert entry["registration"]["overlap"] > 0.9      # the network takes more than the brain
    expected = np.linalg.svd(np.linalg.inv(known_transform())[:3, :3], compute_uv=False)[::-1]
    assert np.allclose(entry["registration"]["scaling"], expected, atol=0.03)


def test_the_table_and_the_pictures_show_it(registered):
    folder, _, _ = registered
    _, (entry,) = manifest.read_manifest(folder / "d")
    head, row = ((line.split("\t")) for line in
                 (folder / "d" / "qc" / "qc.tsv").read_text().splitlines())
    row = dict(zip(head, row))
    assert row["brain_ml"] == f"{entry['brain_ml']:.0f}"
    assert row["overlap"] == f"{entry['registration']['overlap']:.3f}"
    low, _, high = entry["registration"]["scaling"]
    assert row["scaling"] == f"{low:.3f}..{high:.3f}"
    assert manifest.outline_path(folder / "d", "sub-1_T1w").is_file()


@pytest.mark.slow
def test_scans_are_added_and_one_scan_always_gives_one_matrix(tmp_path):
    flags = ("--register", "mni", "--field-of-view", *FIELD, "--size", 64, "--workers", 1)
    array, affine, _ = scan_of_template()
    for name in ("sub-2", "sub-3"):
        save_nifti(tmp_path / "in" / f"{name}_T1w.nii.gz", array, affine, np.float32)
        done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                      *flags)
    assert "1 scans are new" in done.stdout
    _, (first, second) = manifest.read_manifest(tmp_path / "d")
    assert first["registration"] == second["registration"]
    rows = (tmp_path / "d" / "qc" / "qc.tsv").read_text().splitlines()
    assert len(rows) == 3 and len(list((tmp_path / "d" / "outlines").iterdir())) == 2
    done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d",
                  *flags[:2], *flags[6:], expect=2)
    assert "other settings (field_of_view [144.0, 176.0, 144.0], now None)" in error_line(done)


@pytest.mark.slow
def test_two_jobs_register_as_one_does(tmp_path):
    array, affine, _ = scan_of_template()
    for i in range(2):
        noise = np.random.default_rng(i).uniform(0, 9, array.shape)
        save_nifti(tmp_path / "in" / f"sub-{i}_T1w.nii.gz", np.where(array > 0, array + noise, 0),
                   affine, np.float32)
    command = ("preprocess.py", "--input", tmp_path / "in", "--register", "mni", "--field-of-view",
               *FIELD, "--size", 64, "--workers", 1, "--output")
    script(*command, tmp_path / "one")
    for part in ("1/2", "2/2"):
        script(*command, tmp_path / "two", "--shard", part)
    one, two = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
                 if path.is_file()} for root in (tmp_path / "one", tmp_path / "two"))
    assert one == two and "outlines/sub-1_T1w.png" in one
    assert all("registration" in entry for entry in manifest.read_manifest(tmp_path / "two")[1])


# ---------------------------------------------------------------------------------------- failures

def found(matrix=None, overlap=0.9, scaling=(0.9, 1, 1.1)):
    return registration.Registration(np.eye(4) if matrix is None else matrix, overlap, scaling)


def test_failed_registrations_are_told():
    assert registration.problem_of(found()) is None
    assert registration.problem_of(found(overlap=0.85)) is None
    assert registration.problem_of(found(scaling=(0.7, 1, 1.4))) is None
    assert "mirrors" in registration.problem_of(found(np.diag([-1, 1, 1, 1])))
    assert "overlaps with the template's by 0.84 (Dice), less than 0.85" in registration.problem_of(
        found(overlap=0.84))
    assert "scales the brain by 0.69 to 1.00" in registration.problem_of(
        found(scaling=(0.69, 1, 1)))
    assert "by 0.90 to 1.41" in registration.problem_of(found(scaling=(0.9, 1, 1.41)))


def test_what_is_no_brain_is_named():
    array = np.zeros((60, 60, 60), np.float32)
    array[5:55, 25:35, 28:32] = np.random.default_rng(0).random((50, 10, 4)) + 1   # a rod
    with pytest.raises(UserError, match="--register: the registration failed"):
        registration.register(array, np.diag([3, 3, 3, 1.0]), array > 0, template.load_template())
    with pytest.raises(UserError, match="is not skull-stripped; give --skull-strip or --mask"):
        registration.brain_mask(np.random.default_rng(0).random((9, 9, 9)))
    hollow = np.zeros((9, 9, 9))
    hollow[2:7, 2:7, 2:7] = 1
    filled = hollow > 0
    hollow[4, 4, 4] = 0
    assert np.array_equal(registration.brain_mask(hollow), filled)


def test_flags_that_contradict_are_refused(tmp_path):
    scan = save_nifti(tmp_path / "a.nii.gz", brain(), AFFINE)
    for flags, words in (
            (("--template", scan), "--template and --field-of-view: are for --register mni"),
            (("--register", "mni", "--crop", "brain"), "leave out --crop, or --register"),
            (("--register", "mni", "--template", tmp_path / "no.nii"),
             "--template " + str(tmp_path / "no.nii") + ": no such file"),
            (("--recipe", "paper", "--fit", "pad"),
             "--recipe paper: sets --fit stretch, but --fit pad was given"),
            (("--recipe", "native", "--register", "mni"),
             "--recipe native: sets --register none, but --register mni was given")):
        done = script("preprocess.py", "--input", scan, "--output", tmp_path / "o", *flags,
                      expect=2)
        assert words in error_line(done)
    assert not (tmp_path / "o").exists()


def test_missing_packages_are_named(monkeypatch):
    template.load_template.cache_clear()
    for package, words in (("SimpleITK", "--register: needs SimpleITK; pip install -r"),
                           ("nilearn", "the template is in nilearn's package; pip install -r")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)     # importing it fails
            with pytest.raises(UserError, match=words):
                registration.check_flags("mni", None, None, "none")
