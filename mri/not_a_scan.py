"""Files that are no scans although they are named so: what they look like, and what to do."""
import os
from pathlib import Path

from utils.errors import UserError

HEAD_BYTES = 512            # of a file, that are looked at

# what a file that is no scan begins with (lower case), and what to do about it
_GET = "datalad get, or git annex get, fetches it"
SIGNATURES = (
    (b"/annex/objects/", f"a pointer of git-annex, not the file itself; {_GET}"),
    (b"version https://git-lfs.github.com/", "a pointer of Git LFS, not the file itself; "
     "git lfs pull fetches it"),
    (b"<!doctype html", "a web page, as a site answers that wants a login; download it again"),
    (b"<html", "a web page, as a site answers that wants a login; download it again"),
    (b"<?xml", "an XML file, perhaps a server's error message; download it again"),
    (b"pk\3\4", "a zip archive; unpack it"),
    (b"%pdf", "a PDF; take it out"),
    (b"\x89png", "a PNG picture; take it out"),
    (b"\xff\xd8\xff", "a JPEG picture; take it out"),
    (b"\x89hdf", "an HDF5 file (MINC 2, MATLAB); convert it to NIfTI"),
    (b"nrrd", "an NRRD file; convert it to NIfTI"),
)


def check_file(path):
    """Checks that a file is there, may be read, and does not begin like something else.

    :raises UserError: missing, a dangling link, no permission, empty, or recognized as no scan
    """
    path = Path(path)
    # os.path's functions are false for names that no file can have; Path's raise
    if os.path.islink(path) and not os.path.exists(path):
        target = os.readlink(path)
        what = _GET if ".git/annex" in target else "copy what it links to, or take it out"
        raise UserError(f"{path}: a link to a file that is not here, {target}; {what}")
    if os.path.isdir(path):
        raise UserError(f"{path}: no such file, but a folder; name the file in it")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as f:
            head = f.read(HEAD_BYTES)
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r, or ask its owner") from None
    if not head:
        raise UserError(f"{path}: empty, 0 bytes; copy or download it again")
    found = describe(head)
    if found:
        raise UserError(f"{path}: not a scan, but {found}")


def describe(head):
    """What a file is that begins like this, and what to do; None for a possible scan.

    :param head: its first HEAD_BYTES
    """
    if is_dicom(head):
        return "a DICOM file; dcm2niix converts a folder of them"
    begin = head.lstrip().lower()
    return next((text for signature, text in SIGNATURES if begin.startswith(signature)), None)


def is_dicom(head):
    """Whether a file begins as DICOM files do, with 128 bytes of anything."""
    return head[128:132] == b"DICM"
