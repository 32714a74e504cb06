"""Scans of every legal kind, through the scripts: a landmark at a known world point stays there, and left stays left."""
import gzip
import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, blob, oblique, turned
from helpers import AFFINE, SHARED, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry, manifest, mosaic_files, nifti
from utils import files
from utils.errors import UserError

POINT = np.array([-2.0, 6.0, 4.0])  # mm: left of the brain's middle, in front of it and above
HALF = 0.5


def sheared(affine, by=0.25):
    out = affine.copy()
    out[0, 1] += by * affine[1, 1]
    out[0, 3] -= by * affine[1, 1] * 12
    return out


def landmark(affine, shape=(20, 26, 22)):
    """A brain with a bright ball at POINT, 0…1000."""
    return np.float32(1000) * (0.1 * brain(shape) / 900 + 0.9 * blob(shape, affine, POINT))


def found(array, affine):
    """World coordinates of the bright ball, whatever the intensities are."""
    array = np.asarray(array, float)
    lo, hi = array.min(), array.max()
    return apply_affine(affine, ndimage.center_of_mass(np.clip((array - lo) / (hi - lo) - 0.25, 0, None)))


def save(path, array, sform=None, qform=None, codes=(1, 1), cls=nib.Nifti1Image, **fields):
    """A scan with what is asked for in its header; `fields` are set in the finished bytes."""
    path.parent.mkdir(exist_ok=True, parents=True)
    endian = fields.pop("endianness", "<")
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(array.dtype.newbyteorder(endian))
    image = cls(array, None, header)
    image.set_sform(sform, codes[0] if sform is not None else 0)
    image.set_qform(qform, codes[1] if qform is not None else 0, strip_shears=True)
    for key, value in fields.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def variants(folder):
    """{name: (what warning it must carry, codes it must keep)}: scans of every kind, written into the folder."""
    said = {}

    def add(name, *args, suffix=".nii.gz", warns=None, keeps=(1, 1), **kw):
        save(folder / (name + suffix), *args, **kw)
        said[name] = warns, keeps

    base = oblique(AFFINE)
    for i, (order, flips) in enumerate(ORIENTATIONS):
        array, affine = turned(landmark(base), base, order, flips)
        add(f"axes{i:02d}", array.astype(np.int16), affine, affine)
    for name, affine in {"straight": AFFINE, "oblique": oblique(AFFINE, 30), "sheared": sheared(AFFINE)}.items():
        add(name, landmark(affine), affine, keeps=(1, 0 if name == "sheared" else 1))
    tilted = np.eye(4)
    tilted[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    tilted = tilted @ oblique(AFFINE, 20)
    add("tilted", landmark(tilted), tilted, tilted)
    thick = AFFINE @ np.diag([0.8, 0.8, 1.6, 1])
    thick[:3, 3] = -thick[:3, :3] @ [10, 9, 9]
    add("anisotropic", landmark(thick), thick, thick)
    a = landmark(base)
    add("sform_only", a, base, codes=(4, 0), keeps=(4, 4))
    add("qform_only", a, None, base, codes=(0, 2), keeps=(2, 2))
    add("both_codes", a, base, base, codes=(4, 1), keeps=(4, 1))
    shifted, mirrored = base.copy(), np.diag([-1, 1, 1, 1]) @ base
    shifted[0, 3] += 12.5
    add("disagree", a, base, shifted, codes=(2, 1), warns="sform and qform disagree by up to 12.5 mm; the sform is used", keeps=(2, 2))
    add("mirrored", a, base, mirrored, warns="and about left and right; the sform is used")
    for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        top = 120 if kind in ("u1", "i1") else 1000
        add(f"dtype_{kind}", (a / 1000 * top).astype(kind), base, base)
        add(f"big_{kind}", (a / 1000 * top).astype(kind), base, base, suffix=".nii", endianness=">")
    add("negative", a - 1500, base, base)
    add("huge", a.astype(np.float64) * 1e9, base, base)
    add("tiny", a * np.float32(1e-12), base, base)
    add("minus_one_to_one", a / 500 - 1, base, base)
    add("nifti2", a, base, base, cls=nib.Nifti2Image)
    add("nifti2_big", a, base, base, cls=nib.Nifti2Image, suffix=".nii", endianness=">")
    add("pair", a, base, base, cls=nib.Nifti1Pair, suffix=".img")
    add("pair2", a, base, base, cls=nib.Nifti2Pair, suffix=".img")
    add("one_of_4d", a[..., None], base, base)
    metres = np.diag([0.001, 0.001, 0.001, 1]) @ base
    add("metres", a, metres, metres, xyzt_units=1, warns="its unit is meter; converted to mm")
    # slope and intercept, as a scanner would have them: stored integers, true intensities stored * 0.5 - 20
    add("slope", (a / 2).astype(np.int16), base, base)
    raw = bytearray(gzip.decompress((folder / "slope.nii.gz").read_bytes()))
    raw[112:120] = struct.pack("<2f", 0.5, -20)
    (folder / "slope.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    mgh = nib.freesurfer.MGHImage(a, base)
    nib.save(mgh, folder / "mgh.mgz")
    nib.save(mgh, folder / "mgh_plain.mgh")
    said["mgh"] = said["mgh_plain"] = None, (1, 1)
    return said


def truth(path):
    """nibabel's own reading of a scan: array, affine in mm."""
    image = nib.load(path)
    affine = image.affine * (np.array([[1000], [1000], [1000], [1]]) if path.name.startswith("metres") else 1)
    return image.get_fdata().reshape(image.shape[:3]), affine


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "in"
    return folder, variants(folder)


@pytest.mark.parametrize("fit", geometry.FITS)
def test_a_landmark_is_where_it_was_in_every_kind_of_scan(every_kind, fit, tmp_path):
    folder, said = every_kind
    done = script("preprocess.py", "--input", folder, "--output", tmp_path / "d", "--size", 32, "--fit", fit, "--workers", 2)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back", "--restore-shape")
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert {v["id"] for v in entries} == set(said) and len(said) == 91
    for v in entries:
        source = next(p for p in folder.iterdir() if nifti.stem(p) == v["id"] and p.suffix != ".img")
        array, affine = truth(source)
        warning, codes = said[v["id"]]
        assert np.linalg.norm(found(array, affine) - POINT) < 0.2 * geometry.voxel_sizes(affine).min()  # the landmark itself
        assert (warning or "") in " ".join(v.get("warnings", [])) and bool(v.get("warnings")) == bool(warning), v["id"]
        assert not warning or f"warning: {v['id']}: {warning}" in done.stderr or warning.startswith("and")
        cube, back = (nib.load(tmp_path / where / f"{v['id']}.nii.gz") for where in ("cubes", "back"))
        for image, most in ((cube, HALF), (back, HALF)):
            miss = np.linalg.norm(found(image.get_fdata(), image.affine) - POINT)
            assert miss < most * geometry.voxel_sizes(image.affine).min(), (v["id"], miss)
            assert found(image.get_fdata(), image.affine)[0] < 0                      # left stays left
            sform, s = image.get_sform(coded=True)
            qform, q = image.get_qform(coded=True)
            assert (s, q) == codes and np.allclose(sform, image.affine), v["id"]
            if q:
                assert np.allclose(qform, sform, atol=1e-3)
            assert image.header.get_xyzt_units()[0] == "mm"
        assert cube.get_data_dtype() == np.uint8 and np.isclose(cube.dataobj.slope, 1 / 255)
        assert nib.aff2axcodes(cube.affine) == tuple("RAS")
        assert back.get_data_dtype() == np.float32 and (back.dataobj.slope, back.dataobj.inter) == (1, 0)
        assert back.shape == array.shape and np.allclose(back.affine, affine, atol=1e-4)
        assert np.corrcoef(back.get_fdata().ravel(), array.ravel())[0, 1] >= 0.99, v["id"]
        top = np.percentile(array, 99.9) - array.min()
        assert abs(back.get_fdata().max() - array.min() - top) < 0.1 * top and abs(back.get_fdata().min() - array.min()) < 0.02 * top
    corner = geometry.to_cube(np.ones((4, 8, 8), np.float32) * 5, np.eye(4), 8, "pad", outside=-1)
    assert corner[0, 4, 4] == -1 and corner[4, 4, 4] == 5                             # beyond a scan lies its darkest


def test_all_orientations_give_one_mosaic(every_kind, tmp_path):
    folder, _ = every_kind
    script("preprocess.py", "--input", folder / "axes*.nii.gz", "--output", tmp_path / "d", "--size", 32, "--workers", 2)
    header, entries = manifest.read_manifest(tmp_path / "d")
    sheets = {mosaic_files.mosaic_path(tmp_path / "d", v["id"]).read_bytes() for v in entries}
    assert len(entries) == 48 and len(sheets) == 1
    assert np.allclose(header["affine"], geometry.cohort_grid([(20, 26, 22)], [oblique(AFFINE)], 32, "stretch")[0], atol=1e-4)


def test_what_is_no_scan_is_refused_in_one_line(tmp_path):
    a, bad = landmark(AFFINE), {}

    def add(name, words, *args, **kw):
        save(tmp_path / name, *args, **kw)
        bad[name] = words

    def patched(name, words, edits, like="ok.nii"):
        raw = bytearray((tmp_path / like).read_bytes())
        for at, value in edits.items():
            raw[at:at + len(value)] = value
        (tmp_path / name).write_bytes(raw)
        bad[name] = words

    ok = save(tmp_path / "ok.nii", a.astype(np.int16), AFFINE, AFFINE)
    assert np.array_equal(nifti.read_nifti(ok)[0], a.astype(np.int16))
    add("complex.nii", "complex numbers", a.astype(np.complex64), AFFINE)
    rgb = np.zeros(a.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    add("rgb.nii", "colours", rgb, AFFINE)
    add("vector.nii", "5D with shape", np.stack([a] * 3, -1)[:, :, :, None], AFFINE)
    add("series.nii", "choose one with --volume 0 to 4", np.stack([a] * 5, -1), AFFINE)
    nib.save(nib.AnalyzeImage(a, AFFINE), tmp_path / "analyze.img")
    bad["analyze.hdr"] = "an Analyze file, not a NIfTI: it does not say where left is"
    nib.save(nib.Nifti1Pair(a, AFFINE), tmp_path / "half.img")
    (tmp_path / "half.img").unlink()
    bad["half.hdr"] = "are not beside it"
    (tmp_path / "packed.nii").write_bytes(gzip.compress(ok.read_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes(ok.read_bytes())
    bad.update({"packed.nii": "add .gz to its name", "plain.nii.gz": "not gzip-compressed as its name says"})
    mgh = nib.freesurfer.MGHImage(a, AFFINE)
    mgh.header["goodRASFlag"] = 0
    (tmp_path / "flag.mgh").write_bytes(mgh.header.binaryblock[:284] + a.astype(">f4").tobytes("F"))
    bad["flag.mgh"] = "goodRASFlag is 0"
    patched("singular.nii", "singular", {280: bytes(16)})                              # first row of the sform
    patched("nan.nii", "not finite", {280: struct.pack("<f", np.nan)})
    patched("metre.nii", "no head's; mend its affine or its units", {123: b"\1"})      # 1.5 mm voxels said to be metres
    patched("trillion.nii", "claims 10000 x 10000 x 10000 voxels", {42: struct.pack("<3h", 10000, 10000, 10000)})
    patched("longer.nii", "header claims", {42: struct.pack("<3h", 700, 700, 700)})
    patched("offset.nii", "its voxels begin at byte 0", {108: struct.pack("<f", 0)})
    patched("offset_nan.nii", "not a NIfTI image", {108: struct.pack("<f", np.nan)})
    patched("quaternion.nii", "the qform broken", {252: struct.pack("<2h", 1, 0), 256: struct.pack("<3f", 9, 9, 9)})
    patched("dims.nii", "is not 3D", {42: struct.pack("<h", -20)})
    add("inf.nii", "1 voxels are NaN or infinite", np.where(np.arange(a.size).reshape(a.shape) == 5, 1e300, a.astype(np.float64)), AFFINE)
    for name, words in bad.items():
        with pytest.raises(UserError) as e:
            nifti.read_scan(tmp_path / name)
        assert words in str(e.value) and str(tmp_path / nifti.stem(name)) in str(e.value) and "\n" not in str(e.value), name
    done = script("preprocess.py", "--input", tmp_path, "--output", tmp_path / "d", "--size", 16, "--workers", 1, expect=1)
    assert f"{len(bad)} of {len(bad) + 1} scans skipped" in done.stderr and done.stderr.count("skipped: ") == len(bad)
    patched("broken_qform.nii", "", {256: struct.pack("<3f", 9, 9, 9)})
    assert nifti.read_scan(tmp_path / "broken_qform.nii").warnings[0] == "its qform is broken; the sform is used"


def test_one_of_several_volumes(tmp_path):
    base, shape = oblique(AFFINE), (20, 26, 22)
    points = [POINT, POINT + [6, 0, 0], POINT + [0, -8, 0]]
    for name, array in {"series": np.stack([brain() / 9000 + blob(shape, base, p) for p in points], -1), "single": brain()}.items():
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", array, base, np.float32)
    for k in range(3):
        done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / f"d{k}", "--size", 32, "--volume", k,
                      "--workers", 1, expect=1 if k else 0)
        assert not k or "single.nii.gz: has 1 volume; there is no --volume" in done.stderr
        script("postprocess.py", "--input", tmp_path / f"d{k}", "--output", tmp_path / f"n{k}")
        header, entries = manifest.read_manifest(tmp_path / f"d{k}")
        assert [v.get("volume") for v in entries] == [k, None][:len(entries)] and header["preparation"] == {"volume": k}
        image = nib.load(tmp_path / f"n{k}" / "series.nii.gz")
        assert np.linalg.norm(found(image.get_fdata(), image.affine) - points[k]) < HALF
    done = script("preprocess.py", "--input", tmp_path / "in" / "series.nii.gz", "--output", tmp_path / "e", "--size", 32, expect=2)
    assert "3 volumes; choose one with --volume 0 to 2" in done.stderr and "none of 1 scans" in error_line(done)


def test_old_folders_are_read_and_plain_ones_are_written_as_before(data):
    _, entries = manifest.read_manifest(data)
    assert all(set(v) == {"id", "subject", "source", "shape", "affine", "window", "class", "split"} for v in entries)
    assert list(files.read_json(data / "manifest.json")) == ["format", "version", *manifest.HEADER_KEYS, "volumes"]


def test_sheared_affines_are_not_given_to_the_qform(tmp_path):
    nifti.write_nifti(tmp_path / "a.nii.gz", brain(), sheared(AFFINE), (3, 2))
    image = nib.load(tmp_path / "a.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (3, 0)
    assert np.allclose(image.affine, sheared(AFFINE), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cohort").is_dir(), reason="needs the cohort of real-size brains in ../shared/cohort")
@pytest.mark.parametrize("fit", geometry.FITS)
def test_real_anatomy_in_other_axes_comes_back(tmp_path, fit):
    for k, path in enumerate(sorted((SHARED / "cohort").glob("*.nii.gz"))[:4]):
        image = nib.load(path)
        order, flips = list(itertools.islice(ORIENTATIONS, 11 * k, None))[0]
        array, affine = turned(np.asarray(image.dataobj), oblique(image.affine, 5 * k), order, flips)
        save_nifti(tmp_path / "in" / path.name, array, affine, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d", "--fit", fit, "--workers", 2)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n", "--restore-shape")
    for path in (tmp_path / "in").iterdir():
        source, back = nib.load(path), nib.load(tmp_path / "n" / path.name)
        assert back.shape == source.shape and np.allclose(back.affine, source.affine, atol=1e-4)
        assert np.corrcoef(source.get_fdata().ravel(), back.get_fdata().ravel())[0, 1] >= 0.99
        a, b = (centre(i.get_fdata(), i.affine) for i in (source, back))
        assert np.linalg.norm(a - b) < HALF * 1.0


def centre(array, affine):
    return apply_affine(affine, ndimage.center_of_mass(array))
