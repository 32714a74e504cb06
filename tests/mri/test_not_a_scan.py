"""Files that are named like scans and are none: the error says what they look like."""
import builtins

import pytest
from helpers import AFFINE, brain, save_nifti

from mri import not_a_scan, scan_formats
from utils.errors import UserError


@pytest.mark.parametrize("content, words", [
    (b"", "empty, 0 bytes; copy or download it again"),
    (b"/annex/objects/MD5E-s123--0.nii.gz\n", "a pointer of git-annex.* datalad get"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.* git lfs pull"),
    (b"\n <!DOCTYPE html><html>Please log in</html>", "a web page.* wants a login"),
    (b"<html>404</html>", "a web page"),
    (b"PK\3\4" + bytes(60), "a zip archive; unpack it"),
    (bytes(128) + b"DICM" + bytes(400), "a DICOM file; dcm2niix converts"),
    (b"%PDF-1.4", "a PDF"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".hdr"])
def test_what_a_file_looks_like(tmp_path, content, words, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as e:
        scan_formats.read_scan(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)


def test_a_link_to_nothing(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.symlink_to("../.git/annex/objects/Xk/2m/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    with pytest.raises(UserError, match="a link to a file that is not here, .* datalad get"):
        scan_formats.read_scan(path)
    path.unlink()
    path.symlink_to("elsewhere.nii.gz")
    with pytest.raises(UserError, match="not here, elsewhere.nii.gz; copy what it links to"):
        not_a_scan.check_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="no such file, but a folder"):
        not_a_scan.check_file(path)


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "a.nii.gz", brain(), AFFINE)
    assert scan_formats.read_scan(path).array.shape == (20, 26, 22)

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(UserError, match="no permission to read it; chmod"):
        not_a_scan.check_file(path)
