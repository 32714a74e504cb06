"""Reading and writing files safely: atomic output, bounded JSON, checksums, names."""
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from utils.errors import UserError

WEIGHTS_DIR = Path("weights")    # where download.py puts public weights, and other scripts look
SCRIPTS_DIR = Path(__file__).resolve().parent.parent    # other scripts look in its weights/, too
MAX_PATH_PARTS = 64              # of a recorded path that is looked for elsewhere
MAX_JSON_BYTES = 2 ** 28         # a manifest needs about 1.3 kB per volume
MAX_JSON_VALUES = 10_000_000     # commas and brackets; bounds the memory that the content takes


# ---------------------------------------------------------------------------------------- writing

@contextlib.contextmanager
def atomic_file(path, suffix=None, durable=False):
    """Yields a temporary path next to `path`; renamed to `path` on success, removed on any error.

    :param suffix: suffix of the temporary file, for writers that look at it; None: that of `path`
    :param durable: flush file and folder to disk first, so that even a power failure leaves
        either the old file or the whole new one
    """
    path = Path(path)
    suffix = path.suffix if suffix is None else suffix
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~umask())
        if durable:
            _flush_to_disk(temporary, path)
        os.replace(temporary, path)
        if durable:
            _flush_to_disk(path.parent, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a temporary folder next to `path`; renamed to `path` on success, removed on any error.

    :raises UserError: `path` exists and is not an empty folder, or cannot be created
    """
    path = require_new_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as e:
        raise UserError(f"--output {path}: cannot be created ({e.strerror}); "
                        "name a folder where you may write") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~umask())
        os.replace(temporary, path)  # legal onto an empty folder; any other was refused above
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_new_folder(path):
    """Returns the path if nothing is there, or only an empty folder. Raises UserError otherwise."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists() or path.is_symlink():
        raise UserError(f"--output {path}: exists already; name a new folder, "
                        "or remove this one first")
    return path


def write_bytes(path, data):
    """Writes a file atomically: a killed job leaves nothing that looks like a result."""
    with atomic_file(path, ".tmp") as temporary:
        temporary.write_bytes(data)


def write_text(path, text):
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def umask():
    """The file mode creation mask of this process."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^Umask:\s*(\d+)", status, re.MULTILINE)[1], 8)
    except (OSError, TypeError):  # no Linux: reading it means setting it
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def _flush_to_disk(path, reported):
    """fsync of a file or folder; a full disk or quota is reported for the path `reported`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some file systems cannot sync a folder, and say so
            raise OSError(e.errno, e.strerror, str(reported)) from None
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------- reading

def read_json(path):
    """The content of a JSON file.

    :raises UserError: missing, damaged, or too large to be a file of MosaicDiT
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(f"{path}: {size} bytes, more than the {MAX_JSON_BYTES} that are read; "
                            "no file of MosaicDiT is so large")
        raw = path.read_bytes()
        if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
            raise UserError(f"{path}: holds more than {MAX_JSON_VALUES} values; "
                            "no file of MosaicDiT is so large")
        return json.loads(raw)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None


def sha256_of_file(path):
    """SHA-256 of a file in hex, without holding the file in memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def weights_path(name):
    """A file or folder in weights/: of the current folder, or if not there, beside the scripts.

    :return: the first of the two that exists; if neither does, that of the current folder
    """
    here = WEIGHTS_DIR / name
    beside_scripts = SCRIPTS_DIR / WEIGHTS_DIR / name
    return beside_scripts if not here.exists() and beside_scripts.exists() else here


def find_moved(recorded, beside):
    """Where a recorded path may be now, if the folder that holds it and `beside` was moved.

    :param recorded: a path as it was
    :param beside: path of the file that records it, as it is
    :return: existing paths, the most alike first, for the caller to compare with the recorded
        checksum
    """
    parts = Path(recorded).parts
    if len(parts) > MAX_PATH_PARTS:
        return []
    parents = Path(beside).resolve().parents
    candidates = (parent.joinpath(*parts[i:]) for i in range(1, len(parts)) for parent in parents)
    return [path for path in candidates if os.path.exists(path)]


def is_safe_name(text):
    """Whether a text can name a file in our folders and nothing outside them.

    Letters, digits and _ first; then also . + = - ; at most 200 characters.
    """
    return (isinstance(text, str) and len(text) <= 200
            and re.fullmatch(r"[A-Za-z0-9_][\w.+=-]*", text) is not None)
