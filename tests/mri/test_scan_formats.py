"""The registry of scan formats, and NumPy arrays: read, refused, converted and put back."""
import os
import pickle
import zipfile

import nibabel as nib
import numpy as np
import pytest
from example_scans import centroid, oblique
from helpers import AFFINE, brain, error_line, save_nifti, script

from mri import manifest, scan_formats, scan_volume
from utils.errors import UserError


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def save(path, array, **options):
    np.save(path, array, **options)
    return path


def refused(path, words, **options):
    with pytest.raises(UserError, match=words) as e:
        scan_formats.read_scan(path, **options)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


# --------------------------------------------------------------------------------------- registry

def test_what_follows_from_the_registry():
    assert set(scan_formats.SCAN_SUFFIXES) == {
        ".nii", ".nii.gz", ".hdr", ".hdr.gz", ".mgz", ".mgh", ".npy"}
    assert scan_formats.suffix_phrase() == (
        ".nii or .nii.gz (or .hdr, .hdr.gz, .mgz, .mgh, .npy)")
    assert scan_formats.suffixes_without_affine() == (".npy",)
    shown = " ".join(script("preprocess.py", "--help").stdout.split())
    for scan_format in scan_formats.SCAN_FORMATS.values():
        assert scan_format.help in scan_formats.help_phrase()
        assert scan_format.help in shown


@pytest.mark.parametrize("name, stem", [
    ("a.nii", "a"), ("a.nii.gz", "a"), ("a.b.nii.gz", "a.b"), ("a.hdr", "a"), ("a.hdr.gz", "a"),
    ("a.img", "a"), ("a.img.gz", "a"), ("a.mgz", "a"), ("a.mgh", "a"), ("a.npy", "a"),
    ("a.npy.gz", "a.npy.gz"), ("a.txt", "a.txt"), ("nii", "nii")])
def test_stem(name, stem):
    assert scan_formats.stem(f"/x.nii/{name}") == stem


def test_a_name_without_a_suffix_is_read_as_nifti(tmp_path):
    path = save_nifti(tmp_path / "a.nii", brain(), AFFINE)
    path.rename(tmp_path / "scan")
    scan = scan_formats.read_scan(tmp_path / "scan")
    assert np.array_equal(scan.array, brain().astype(np.int16))
    assert np.allclose(scan.affine, AFFINE)


def test_an_affine_is_given_to_formats_without_one_alone(tmp_path):
    path = save_nifti(tmp_path / "a.nii", brain(), AFFINE)
    assert np.allclose(scan_formats.read_scan(path, affine=np.eye(4)).affine, AFFINE)


# ------------------------------------------------------------------------------------ NumPy files

@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u4", "<i8", "<f2", "<f4", ">f4",
                                   "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_values_are_exact(tmp_path, dtype, order):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype, order=order)
    affine = oblique(AFFINE)
    scan = scan_formats.read_scan(save(tmp_path / "a.npy", array), affine=affine)
    assert scan.array.dtype == np.float32 and np.array_equal(scan.array, array)
    assert np.array_equal(scan.affine, affine) and scan.affine.dtype == np.float64
    assert (scan.codes, scan.volumes, scan.warnings) == ((1, 1), 1, ())


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_of_several_npy_volumes(tmp_path, order):
    array = np.asarray(np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5), order=order)
    path = save(tmp_path / "a.npy", array)
    for k in range(5):
        scan = scan_formats.read_scan(path, volume=k, affine=np.eye(4))
        assert np.array_equal(scan.array, array[..., k]) and scan.volumes == 5
    refused(path, "5 volumes; choose one with --volume 0 to 4", affine=np.eye(4))
    refused(path, "has 5 volumes; there is no --volume 5", volume=5, affine=np.eye(4))
    for shape in ((2, 3, 4, 1), (2, 3, 4, 1, 1)):
        path = save(tmp_path / "b.npy", array[..., 0].reshape(shape))
        scan = scan_formats.read_scan(path, affine=np.eye(4))
        assert np.array_equal(scan.array, array[..., 0]) and scan.volumes == 1
    path = save(tmp_path / "c.npy", np.zeros((2, 3, 4, 1, 2)))
    refused(path, "5D with shape", affine=np.eye(4))


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_that_become_shorter_while_they_are_read_are_refused(tmp_path, monkeypatch,
                                                                       order):
    """In the process that reads, nothing but one line: a mapped file would end it (SIGBUS)."""
    path = save(tmp_path / "a.npy", np.asarray(np.zeros((5, 40, 50, 3)), order=order))
    read, calls = np.fromfile, []

    def read_and_cut_off(f, dtype, count):
        calls.append(count)
        if len(calls) == 3:
            os.truncate(path, 2 ** 10)
            f.seek(0, os.SEEK_CUR)
        return read(f, dtype, count)

    monkeypatch.setattr(np, "fromfile", read_and_cut_off)
    refused(path, "changed while it was read", affine=np.eye(4), volume=2)
    assert len(calls) == 3


def test_npy_arrays_that_are_no_scans_are_refused(tmp_path):
    a = brain()
    nan, infinite = a.copy(), a.astype(np.float64)
    nan[0, 0, :5] = np.nan
    infinite[1, 2, 3] = 1e300                       # infinite in single precision
    fields = np.zeros(a.shape, [("x", "f4"), ("y", "f4")])
    for array, words in [
            (a[0], r"shape \(26, 22\) is not 3D"), (a[:1], "is not 3D"), (np.float32(3), "not 3D"),
            (nan, "5 voxels are NaN"), (infinite, "1 voxels are NaN or infinite"),
            (np.full((4, 4, 4), 3), "every voxel is 3"),
            (a.astype(np.complex64), "complex numbers"), (fields, "not intensities"),
            (a > 0, "values of type bool, not intensities"), (a.astype("U4"), "not intensities"),
            (np.zeros((4, 4, 4), "M8[s]"), "not intensities")]:
        refused(save(tmp_path / "a.npy", array), words, affine=np.eye(4))


def test_pickled_npy_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "it-ran"
    objects = np.empty((4, 4, 4), object)
    objects[:] = Evil(marker)
    refused(save(tmp_path / "a.npy", objects, allow_pickle=True), "cannot be read as a NumPy array",
            affine=np.eye(4))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Evil(marker)))
    refused(tmp_path / "b.npy", "cannot be read as a NumPy array", affine=np.eye(4))
    assert not marker.exists()
    pickle.loads((tmp_path / "b.npy").read_bytes()).close()
    assert marker.exists()                          # it would have run


def test_damaged_npy_files_are_refused(tmp_path):
    path = save(tmp_path / "a.npy", brain())
    raw = path.read_bytes()
    nested = raw[:8] + (9000).to_bytes(2, "little") + b"(" * 9000
    for content in (b"", nested, raw[:5], raw[:50], raw[:-1], b"text",
                    raw.replace(b"(20, ", b"(-2, "), raw.replace(b"(20, 26, 22)", b"(9**9, 9, 9)"),
                    raw.replace(b"(20, 26, 22)", b"(2000000000, 2000000000, 2000000000)", 1)):
        path.write_bytes(content)
        words = "cannot be read as a NumPy array" if content else "empty, 0 bytes"
        refused(path, words, affine=np.eye(4))
    # version 2 counts the header in 4 bytes: here 4 GB
    path.write_bytes(raw[:6] + b"\2\0" + b"\xff\xff\xff\xff" + raw[10:])
    refused(path, "cannot be read as a NumPy array .*its header claims 4294967295 bytes",
            affine=np.eye(4))
    with zipfile.ZipFile(path, "w") as f:
        f.writestr("a.npy", raw)
    refused(path, "not a scan, but a zip archive; unpack it", affine=np.eye(4))
    refused(tmp_path / "none.npy", "no such file", affine=np.eye(4))
    refused(tmp_path, "is a directory|no such file|not a NIfTI")


def test_npy_files_that_claim_too_much_are_refused(tmp_path):
    """Sparse files: as large as they claim, on paper."""
    def claim(shape, dtype="u1"):
        path = tmp_path / "a.npy"
        with open(path, "wb") as f:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(f, header)
            f.truncate(f.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return path

    refused(claim((1000, 1000, 1000)), "claims 1000 x 1000 x 1000 voxels, more than",
            affine=np.eye(4))
    refused(claim((2, 2, 2 ** 15)), "claims 2 x 2 x 32768 voxels, more than", affine=np.eye(4))
    assert scan_volume.MAX_FILE_BYTES == 2 ** 34
    refused(claim((256, 256, 256, 1025)), "bytes, more than the 17179869184", affine=np.eye(4))


def test_npy_without_an_affine_is_refused(tmp_path):
    refused(save(tmp_path / "a.npy", brain()),
            "has no affine, so left and right are unknown; give --affine FILE, or --affine "
            "identity")


# ----------------------------------------------------------------------------------------- affine

def test_where_an_affine_is_read_from(tmp_path):
    affine = oblique(AFFINE)
    np.savetxt(tmp_path / "a.txt", affine)
    (tmp_path / "comments.mat").write_text(
        "# from a scanner\n1 0 0 -5\n0 2 0 6.5\n0 0 3 0\n0 0 0 1\n")
    save(tmp_path / "a.npy", affine)
    save(tmp_path / "whole.npy", np.diag([1, 2, 3, 1]))
    save_nifti(tmp_path / "a.nii.gz", brain(), affine)
    save_nifti(tmp_path / "series.nii", np.stack([brain()] * 2, -1), affine)
    nib.save(nib.freesurfer.MGHImage(brain(), affine), tmp_path / "a.mgz")
    whole = [[1, 0, 0, -5], [0, 2, 0, 6.5], [0, 0, 3, 0], [0, 0, 0, 1]]
    for name, expected in {"a.txt": affine, "comments.mat": whole, "a.npy": affine,
                           "whole.npy": np.diag([1, 2, 3, 1]), "a.nii.gz": affine,
                           "series.nii": affine, "a.mgz": affine}.items():
        found, warnings = scan_formats.read_affine(str(tmp_path / name))
        assert np.allclose(found, expected, atol=1e-5) and found.dtype == np.float64
        assert warnings == ()
    assert np.array_equal(scan_formats.read_affine("identity")[0], np.eye(4))
    assert np.array_equal(scan_formats.read_affine(str(tmp_path / "a.npy"))[0], affine)


def test_affines_that_are_none_are_refused(tmp_path):
    def refused(name, words):
        with pytest.raises(UserError, match=words) as e:
            scan_formats.read_affine(str(tmp_path / name))
        assert str(e.value).startswith(f"--affine {tmp_path / name}: ")
        assert "\n" not in str(e.value)

    (tmp_path / "words.txt").write_text("one two three")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "ragged.txt").write_text("1 0 0 0\n0 1 0\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "long.txt").write_text("0 " * 100_000)
    np.savetxt(tmp_path / "3x4.txt", np.eye(4)[:3])
    np.savetxt(tmp_path / "nan.txt", np.full((4, 4), np.nan))
    np.savetxt(tmp_path / "singular.txt", np.diag([1, 0, 1, 1]))
    np.savetxt(tmp_path / "meters.txt", np.diag([0.001, 0.001, 0.001, 1]))
    np.savetxt(tmp_path / "last_row.txt", np.ones((4, 4)))
    save(tmp_path / "objects.npy", np.full((4, 4), None), allow_pickle=True)
    save(tmp_path / "complex.npy", np.eye(4, dtype=complex))
    save(tmp_path / "large.npy", np.zeros((100, 100)))
    nib.save(nib.Nifti1Image(brain(), None), tmp_path / "none.nii")
    refused("missing.txt", "no such file")
    refused("missing.npy", "no such file")
    refused("missing.nii", "no such file")
    refused("words.txt", "does not hold 4 rows of 4 numbers")
    refused("ragged.txt", "does not hold 4 rows of 4 numbers")
    refused("binary.txt", "does not hold 4 rows of 4 numbers")
    refused("long.txt", "larger than the 64 KiB that are read")
    refused("empty.txt", "not the 4 x 4 numbers")
    refused("3x4.txt", r"shape \(3, 4\).* not the 4 x 4 numbers")
    refused("nan.txt", "not finite")
    refused("singular.txt", "singular")
    refused("meters.txt", "cannot be a scan of a head")
    refused("last_row.txt", "not finite|singular")
    refused("objects.npy", "cannot be read as a NumPy array")
    refused("complex.npy", "not the 4 x 4 numbers")
    refused("large.npy", "80128 bytes, more than the 65536")
    refused("none.nii", "no affine")


# ---------------------------------------------------------------------------------------- scripts

@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_npy_and_nifti_of_one_scan_become_one_mosaic(tmp_path, fit):
    array, affine = brain().astype(np.int16), oblique(AFFINE)
    save_nifti(tmp_path / "nifti" / "s.nii.gz", array, affine)
    (tmp_path / "npy").mkdir()
    save(tmp_path / "npy" / "s.npy", array)
    np.savetxt(tmp_path / "affine.txt", nib.load(tmp_path / "nifti" / "s.nii.gz").affine)
    flags = ("--size", 16, "--workers", 1, "--fit", fit)
    script("preprocess.py", "--input", tmp_path / "nifti", "--output", tmp_path / "d1", *flags)
    done = script("preprocess.py", "--input", tmp_path / "npy", "--output", tmp_path / "d2", *flags,
                  "--affine", tmp_path / "affine.txt")
    assert "warning" not in done.stderr
    header, (entry,) = manifest.read_manifest(tmp_path / "d1")
    npy_header, (npy_entry,) = manifest.read_manifest(tmp_path / "d2")
    assert npy_entry == {**entry, "source": str((tmp_path / "npy" / "s.npy").resolve())}
    assert npy_header == {**header, "preparation": {"affine": str(tmp_path / "affine.txt")}}
    mosaics = [(tmp_path / d / "mosaics" / "s.png").read_bytes() for d in ("d1", "d2")]
    assert mosaics[0] == mosaics[1]
    for options in ((), ("--restore-shape",)):
        written = []
        for d in ("d1", "d2"):
            out = tmp_path / f"{d}{len(options)}"
            script("postprocess.py", "--input", tmp_path / d, "--output", out, *options)
            written.append((out / "s.nii.gz").read_bytes())
        assert written[0] == written[1]
    back = nib.load(tmp_path / "d21" / "s.nii.gz")
    assert back.shape == array.shape and np.allclose(back.affine, affine, atol=1e-5)
    assert np.corrcoef(back.get_fdata().ravel(), array.ravel())[0, 1] > 0.98
    shift = centroid(back.get_fdata(), back.affine) - centroid(array, affine)
    assert np.linalg.norm(shift) < 0.2


def test_npy_scans_need_affine(tmp_path):
    save_nifti(tmp_path / "in" / "a.nii.gz", brain(), AFFINE)
    save(tmp_path / "in" / "b.npy", np.stack([brain()] * 2, -1))
    flags = ("--size", 16, "--workers", 1)
    done = script("preprocess.py", "--input", tmp_path / "in", *flags, "--output", tmp_path / "d")
    assert "left out: 1 without an affine (.npy; --affine says where they lie)" in done.stdout
    assert [v["id"] for v in manifest.read_manifest(tmp_path / "d")[1]] == ["a"]
    done = script("preprocess.py", "--input", tmp_path / "in" / "b.npy", *flags,
                  "--output", tmp_path / "e", expect=2)
    assert "none of 1 scans could be used" in error_line(done) and not (tmp_path / "e").exists()
    assert f"skipped: {tmp_path / 'in' / 'b.npy'}: has no affine" in done.stderr
    assert "give --affine FILE" in done.stderr
    script("preprocess.py", "--input", tmp_path / "in" / "b.npy", *flags, "--volume", 1,
           "--affine", "identity", "--output", tmp_path / "e")
    header, (entry,) = manifest.read_manifest(tmp_path / "e")
    assert entry["affine"] == np.eye(4).tolist() and entry["shape"] == [20, 26, 22]
    assert entry["volume"] == 1
    assert header["preparation"] == {"volume": 1, "affine": "identity"}
    done = script("preprocess.py", "--input", tmp_path / "in", *flags,
                  "--affine", tmp_path / "none.txt", "--output", tmp_path / "f", expect=2)
    assert f"--affine {tmp_path / 'none.txt'}: no such file" in error_line(done)


def test_an_affine_that_no_scan_needs_is_a_warning(tmp_path):
    save_nifti(tmp_path / "in" / "a.nii.gz", brain(), AFFINE)
    done = script("preprocess.py", "--input", tmp_path / "in", "--size", 16, "--workers", 1,
                  "--affine", "identity", "--output", tmp_path / "d")
    assert "warning: --affine identity: not used, as every scan has its own affine" in done.stderr
    _, (entry,) = manifest.read_manifest(tmp_path / "d")
    assert np.allclose(entry["affine"], AFFINE)
