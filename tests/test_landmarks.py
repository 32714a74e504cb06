"""Scans of every legal kind, through both scripts: a landmark stays at its world point.

And left stays left.
"""
import gzip
import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
from example_scans import ORIENTATIONS, blob, centroid, oblique, sheared, turned
from helpers import AFFINE, SHARED, brain, error_line, save_nifti, script
from nibabel.affines import apply_affine
from scipy import ndimage

from mri import geometry, manifest, mosaic_files, nifti, scan_formats
from utils import files
from utils.errors import UserError

POINT = np.array([-2.0, 6.0, 4.0])  # mm: left of the brain's middle, anterior of it and above
MAX_MISS_VOXELS = 0.5


def landmark(affine, shape=(20, 26, 22)):
    """A brain with a bright ball at POINT, 0…1000."""
    ball = blob(shape, affine, POINT)
    return np.float32(1000) * (0.1 * brain(shape) / 900 + 0.9 * ball)


def found(array, affine):
    """World coordinates of the bright ball, whatever the intensities are."""
    array = np.asarray(array, float)
    lo, hi = array.min(), array.max()
    bright = np.clip((array - lo) / (hi - lo) - 0.25, 0, None)
    return apply_affine(affine, ndimage.center_of_mass(bright))


def save(path, array, sform=None, qform=None, codes=(1, 1), cls=nib.Nifti1Image, endianness="<",
         **fields):
    """A scan with what is asked for in its header."""
    path.parent.mkdir(exist_ok=True, parents=True)
    header = cls.header_class(endianness=endianness)
    header.set_data_dtype(array.dtype.newbyteorder(endianness))
    image = cls(array, None, header)
    image.set_sform(sform, codes[0] if sform is not None else 0)
    image.set_qform(qform, codes[1] if qform is not None else 0, strip_shears=True)
    for key, value in fields.items():
        image.header[key] = value
    nib.save(image, path)
    return path


class Variants:
    """Scans of every kind, written into a folder.

    `expected` is {name: (warning that it must carry, codes that it must keep)}.
    """

    def __init__(self, folder):
        self.folder = folder
        self.expected = {}
        self.base = oblique(AFFINE)
        self.array = landmark(self.base)
        self.add_orientations()
        self.add_affines()
        self.add_forms()
        self.add_types()
        self.add_files()

    def add(self, name, *args, suffix=".nii.gz", warns=None, keeps=(1, 1), **kw):
        save(self.folder / (name + suffix), *args, **kw)
        self.expected[name] = warns, keeps

    def add_orientations(self):
        for i, (order, flips) in enumerate(ORIENTATIONS):
            array, affine = turned(self.array, self.base, order, flips)
            self.add(f"axes{i:02d}", array.astype(np.int16), affine, affine)

    def add_affines(self):
        for name, affine in {"straight": AFFINE, "oblique": oblique(AFFINE, 30),
                             "sheared": sheared(AFFINE)}.items():
            keeps = (1, 0 if name == "sheared" else 1)
            self.add(name, landmark(affine), affine, keeps=keeps)
        tilted = np.eye(4)
        tilted[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
        tilted = tilted @ oblique(AFFINE, 20)
        self.add("tilted", landmark(tilted), tilted, tilted)
        thick = AFFINE @ np.diag([0.8, 0.8, 1.6, 1])
        thick[:3, 3] = -thick[:3, :3] @ [10, 9, 9]
        self.add("anisotropic", landmark(thick), thick, thick)

    def add_forms(self):
        a, base = self.array, self.base
        self.add("sform_only", a, base, codes=(4, 0), keeps=(4, 4))
        self.add("qform_only", a, None, base, codes=(0, 2), keeps=(2, 2))
        self.add("both_codes", a, base, base, codes=(4, 1), keeps=(4, 1))
        shifted, mirrored = base.copy(), np.diag([-1, 1, 1, 1]) @ base
        shifted[0, 3] += 12.5
        self.add("disagree", a, base, shifted, codes=(2, 1), keeps=(2, 2),
                 warns="sform and qform disagree by up to 12.5 mm; the sform is used")
        self.add("mirrored", a, base, mirrored, warns="and about left and right; the sform is used")
        meters = np.diag([0.001, 0.001, 0.001, 1]) @ base
        self.add("meters", a, meters, meters, xyzt_units=1,
                 warns="its unit is meter; converted to mm")

    def add_types(self):
        a, base = self.array, self.base
        for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
            top = 120 if kind in ("u1", "i1") else 1000
            array = (a / 1000 * top).astype(kind)
            self.add(f"dtype_{kind}", array, base, base)
            self.add(f"big_{kind}", array, base, base, suffix=".nii", endianness=">")
        self.add("negative", a - 1500, base, base)
        self.add("huge", a.astype(np.float64) * 1e9, base, base)
        self.add("tiny", a * np.float32(1e-12), base, base)
        self.add("minus_one_to_one", a / 500 - 1, base, base)
        # slope and intercept, as a scanner writes them: intensities are stored * 0.5 - 20
        self.add("slope", (a / 2).astype(np.int16), base, base)
        raw = bytearray(gzip.decompress((self.folder / "slope.nii.gz").read_bytes()))
        raw[112:120] = struct.pack("<2f", 0.5, -20)
        (self.folder / "slope.nii.gz").write_bytes(gzip.compress(bytes(raw)))

    def add_files(self):
        a, base = self.array, self.base
        self.add("nifti2", a, base, base, cls=nib.Nifti2Image)
        self.add("nifti2_big", a, base, base, cls=nib.Nifti2Image, suffix=".nii", endianness=">")
        self.add("pair", a, base, base, cls=nib.Nifti1Pair, suffix=".img")
        self.add("pair2", a, base, base, cls=nib.Nifti2Pair, suffix=".img")
        self.add("one_of_4d", a[..., None], base, base)
        mgh = nib.freesurfer.MGHImage(a, base)
        nib.save(mgh, self.folder / "mgh.mgz")
        nib.save(mgh, self.folder / "mgh_plain.mgh")
        self.expected["mgh"] = self.expected["mgh_plain"] = None, (1, 1)


def truth(path):
    """nibabel's own reading of a scan: array, affine in mm."""
    image = nib.load(path)
    to_mm = np.array([[1000], [1000], [1000], [1]]) if path.name.startswith("meters") else 1
    return image.get_fdata().reshape(image.shape[:3]), image.affine * to_mm


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "in"
    return folder, Variants(folder).expected


@pytest.mark.parametrize("fit", geometry.FITS)
def test_a_landmark_stays_in_place_in_every_kind_of_scan(every_kind, fit, tmp_path):
    folder, expected = every_kind
    done = script("preprocess.py", "--input", folder, "--output", tmp_path / "d", "--size", 32,
                  "--fit", fit, "--workers", 2)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "cubes")
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "back",
           "--restore-shape")
    _, entries = manifest.read_manifest(tmp_path / "d")
    assert {v["id"] for v in entries} == set(expected) and len(expected) == 91
    for v in entries:
        name = v["id"]
        source = next(p for p in folder.iterdir()
                      if scan_formats.stem(p) == name and p.suffix != ".img")
        array, affine = truth(source)
        warning, codes = expected[name]
        miss = np.linalg.norm(found(array, affine) - POINT)       # the landmark itself
        assert miss < 0.2 * geometry.voxel_sizes(affine).min()
        assert (warning or "") in " ".join(v.get("warnings", [])), name
        assert bool(v.get("warnings")) == bool(warning), name
        if warning and not warning.startswith("and"):
            assert f"warning: {name}: {warning}" in done.stderr
        cube, back = (nib.load(tmp_path / where / f"{name}.nii.gz") for where in ("cubes", "back"))
        for image in (cube, back):
            check_place(image, codes, name)
        check_cube(cube)
        check_restored(back, array, affine, name)


def check_place(image, codes, name):
    point = found(image.get_fdata(), image.affine)
    miss = np.linalg.norm(point - POINT)
    assert miss < MAX_MISS_VOXELS * geometry.voxel_sizes(image.affine).min(), (name, miss)
    assert point[0] < 0                                           # left stays left
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    assert (sform_code, qform_code) == codes and np.allclose(sform, image.affine), name
    if qform_code:
        assert np.allclose(qform, sform, atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"


def check_cube(cube):
    assert cube.get_data_dtype() == np.uint8 and np.isclose(cube.dataobj.slope, 1 / 255)
    assert nib.aff2axcodes(cube.affine) == tuple("RAS")


def check_restored(back, array, affine, name):
    restored = back.get_fdata()
    assert back.get_data_dtype() == np.float32
    assert (back.dataobj.slope, back.dataobj.inter) == (1, 0)
    assert back.shape == array.shape and np.allclose(back.affine, affine, atol=1e-4)
    assert np.corrcoef(restored.ravel(), array.ravel())[0, 1] >= 0.99, name
    top = np.percentile(array, 99.9) - array.min()
    assert abs(restored.max() - array.min() - top) < 0.1 * top
    assert abs(restored.min() - array.min()) < 0.02 * top


def test_all_orientations_give_one_mosaic(every_kind, tmp_path):
    folder, _ = every_kind
    script("preprocess.py", "--input", folder / "axes*.nii.gz", "--output", tmp_path / "d",
           "--size", 32, "--workers", 2)
    header, entries = manifest.read_manifest(tmp_path / "d")
    mosaics = {mosaic_files.mosaic_path(tmp_path / "d", v["id"]).read_bytes() for v in entries}
    assert len(entries) == 48 and len(mosaics) == 1
    affine, _, _ = geometry.cohort_grid([(20, 26, 22)], [oblique(AFFINE)], 32, "stretch")
    assert np.allclose(header["affine"], affine, atol=1e-4)


class BadScans:
    """Files that are no scans, written into a folder; `words` is {name: what its error says}."""

    def __init__(self, folder):
        self.folder = folder
        self.words = {}
        self.array = landmark(AFFINE)
        save(folder / "ok.nii", self.array.astype(np.int16), AFFINE, AFFINE)
        self.add_contents()
        self.add_files()
        self.add_headers()

    def add(self, name, words, *args, **kw):
        save(self.folder / name, *args, **kw)
        self.words[name] = words

    def patch(self, name, words, edits):
        """ok.nii with other bytes at some offsets."""
        raw = bytearray((self.folder / "ok.nii").read_bytes())
        for at, value in edits.items():
            raw[at:at + len(value)] = value
        (self.folder / name).write_bytes(raw)
        if words:
            self.words[name] = words

    def add_contents(self):
        a = self.array
        self.add("complex.nii", "complex numbers", a.astype(np.complex64), AFFINE)
        rgb = np.zeros(a.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        self.add("rgb.nii", "colors", rgb, AFFINE)
        self.add("vector.nii", "5D with shape", np.stack([a] * 3, -1)[:, :, :, None], AFFINE)
        self.add("series.nii", "choose one with --volume 0 to 4", np.stack([a] * 5, -1), AFFINE)
        one_voxel = np.arange(a.size).reshape(a.shape) == 5
        self.add("inf.nii", "1 voxels are NaN or infinite",
                 np.where(one_voxel, 1e300, a.astype(np.float64)), AFFINE)

    def add_files(self):
        a, folder = self.array, self.folder
        nib.save(nib.AnalyzeImage(a, AFFINE), folder / "analyze.img")
        self.words["analyze.hdr"] = "an Analyze file, not a NIfTI: it does not say where left is"
        nib.save(nib.Nifti1Pair(a, AFFINE), folder / "half.img")
        (folder / "half.img").unlink()
        self.words["half.hdr"] = "are not beside it"
        plain = (folder / "ok.nii").read_bytes()
        (folder / "packed.nii").write_bytes(gzip.compress(plain))
        self.words["packed.nii"] = "add .gz to its name"
        (folder / "plain.nii.gz").write_bytes(plain)
        self.words["plain.nii.gz"] = "not gzip-compressed as its name says"
        mgh = nib.freesurfer.MGHImage(a, AFFINE)
        mgh.header["goodRASFlag"] = 0
        voxels = a.astype(">f4").tobytes("F")
        (folder / "flag.mgh").write_bytes(mgh.header.binaryblock[:284] + voxels)
        self.words["flag.mgh"] = "goodRASFlag is 0"

    def add_headers(self):
        self.patch("singular.nii", "singular", {280: bytes(16)})          # first row of the sform
        self.patch("nan.nii", "not finite", {280: struct.pack("<f", np.nan)})
        # 1.5 mm voxels that are said to be meters
        self.patch("meter.nii", "cannot be a scan of a head; fix its affine or its units",
                   {123: b"\1"})
        self.patch("trillion.nii", "claims 10000 x 10000 x 10000 voxels",
                   {42: struct.pack("<3h", 10000, 10000, 10000)})
        self.patch("longer.nii", "header claims", {42: struct.pack("<3h", 700, 700, 700)})
        self.patch("offset.nii", "its voxels begin at byte 0", {108: struct.pack("<f", 0)})
        self.patch("offset_nan.nii", "not a NIfTI image", {108: struct.pack("<f", np.nan)})
        self.patch("quaternion.nii", "the qform broken",
                   {252: struct.pack("<2h", 1, 0), 256: struct.pack("<3f", 9, 9, 9)})
        self.patch("dims.nii", "is not 3D", {42: struct.pack("<h", -20)})


def test_what_is_no_scan_is_refused_in_one_line(tmp_path):
    bad = BadScans(tmp_path)
    array, _ = nifti.read_nifti(tmp_path / "ok.nii")
    assert np.array_equal(array, bad.array.astype(np.int16))
    for name, words in bad.words.items():
        with pytest.raises(UserError) as e:
            scan_formats.read_scan(tmp_path / name)
        message = str(e.value)
        assert words in message and "\n" not in message, name
        assert str(tmp_path / scan_formats.stem(name)) in message, name
    done = script("preprocess.py", "--input", tmp_path, "--output", tmp_path / "d", "--size", 16,
                  "--workers", 1, expect=1)
    count = len(bad.words)
    assert f"{count} of {count + 1} scans skipped" in done.stderr
    assert done.stderr.count("skipped: ") == count
    bad.patch("broken_qform.nii", None, {256: struct.pack("<3f", 9, 9, 9)})
    scan = scan_formats.read_scan(tmp_path / "broken_qform.nii")
    assert scan.warnings[0] == "its qform is broken; the sform is used"


def test_one_of_several_volumes(tmp_path):
    base, shape = oblique(AFFINE), (20, 26, 22)
    points = [POINT, POINT + [6, 0, 0], POINT + [0, -8, 0]]
    series = np.stack([brain() / 9000 + blob(shape, base, p) for p in points], -1)
    save_nifti(tmp_path / "in" / "series.nii.gz", series, base, np.float32)
    save_nifti(tmp_path / "in" / "single.nii.gz", brain(), base, np.float32)
    for k in range(3):
        done = script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / f"d{k}",
                      "--size", 32, "--volume", k, "--workers", 1, expect=1 if k else 0)
        if k:
            assert "single.nii.gz: has 1 volume; there is no --volume" in done.stderr
        script("postprocess.py", "--input", tmp_path / f"d{k}", "--output", tmp_path / f"n{k}")
        header, entries = manifest.read_manifest(tmp_path / f"d{k}")
        assert [v.get("volume") for v in entries] == [k, None][:len(entries)]
        assert header["preparation"] == {"volume": k}
        image = nib.load(tmp_path / f"n{k}" / "series.nii.gz")
        miss = np.linalg.norm(found(image.get_fdata(), image.affine) - points[k])
        assert miss < MAX_MISS_VOXELS
    done = script("preprocess.py", "--input", tmp_path / "in" / "series.nii.gz",
                  "--output", tmp_path / "e", "--size", 32, expect=2)
    assert "3 volumes; choose one with --volume 0 to 2" in done.stderr
    assert "none of 1 scans" in error_line(done)


def test_plain_folders_are_written_without_optional_keys(data):
    _, entries = manifest.read_manifest(data)
    assert all(set(v) == {"id", "subject", "source", "shape", "affine", "window", "class", "split"}
               for v in entries)
    content = files.read_json(data / "manifest.json")
    assert list(content) == ["format", "version", *manifest.HEADER_KEYS, "volumes"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cohort").is_dir(),
                    reason="needs the cohort of real-size brains in ../shared/cohort")
@pytest.mark.parametrize("fit", geometry.FITS)
def test_real_anatomy_in_other_axes_comes_back(tmp_path, fit):
    for k, path in enumerate(sorted((SHARED / "cohort").glob("*.nii.gz"))[:4]):
        image = nib.load(path)
        order, flips = next(itertools.islice(ORIENTATIONS, 11 * k, None))
        array, affine = turned(np.asarray(image.dataobj), oblique(image.affine, 5 * k), order,
                               flips)
        save_nifti(tmp_path / "in" / path.name, array, affine, np.uint8)
    script("preprocess.py", "--input", tmp_path / "in", "--output", tmp_path / "d", "--fit", fit,
           "--workers", 2)
    script("postprocess.py", "--input", tmp_path / "d", "--output", tmp_path / "n",
           "--restore-shape")
    for path in (tmp_path / "in").iterdir():
        source, back = nib.load(path), nib.load(tmp_path / "n" / path.name)
        assert back.shape == source.shape and np.allclose(back.affine, source.affine, atol=1e-4)
        a, b = source.get_fdata(), back.get_fdata()
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.99
        shift = centroid(a, source.affine) - centroid(b, back.affine)
        assert np.linalg.norm(shift) < MAX_MISS_VOXELS * 1.0      # voxels of 1 mm
