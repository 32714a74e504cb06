"""Reading and writing files safely: atomic output, bounded JSON, checksums, names."""
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from utils import leftovers
from utils.errors import UserError
from utils.shared_folders import open_regular

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
    with _named_in_errors(path):
        handle, temporary = tempfile.mkstemp(
            prefix=leftovers.prefix_of(path), suffix=suffix, dir=path.parent)
    os.close(handle)
    leftovers.claim(temporary)
    try:
        with _named_in_errors(path, temporary):
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
    finally:
        leftovers.release(temporary)


@contextlib.contextmanager
def atomic_folder(path, replace=None):
    """Yields a temporary folder; it becomes `path` on success, and is removed on any error.

    Symbolic links are resolved. A folder that exists keeps its permissions, setgid bit and group:
    the temporary folder takes its place if it can, and otherwise (a mount point, the current
    folder, a parent that cannot be written) lies in it, and its contents are moved at the end.
    Files obey the umask, whatever wrote them. What a killed run left behind is removed first.

    :param replace: function of a folder's path that tells whether what it holds may be replaced;
        None: nothing may
    :raises UserError: `path` exists and is not an empty folder, or cannot be created
    """
    path = Path(path)
    if not (replace and path.is_dir() and replace(path)):
        require_new_folder(path)
    target = path.resolve()
    make_folder(target.parent, f"--output {path}")
    try:
        remove_leftovers(path, (target.parent, target), (target, None))
        temporary = _make_temporary_folder(target)
    except OSError as e:
        raise UserError(f"--output {path}: cannot be created ({e.strerror}); "
                        "name a folder where you may write") from None
    leftovers.claim(temporary)
    try:
        with _named_in_errors(path, temporary):
            yield temporary
            _obey_umask(temporary)
            _put_in_place(temporary, target, path, replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        leftovers.release(temporary)


def make_folder(path, reported):
    """Creates a folder and those that it lies in, unless they exist.

    :param reported: flag and path as the user gave them, for errors
    :raises UserError: it cannot be created; says so if one of its parents is a file
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        file = next((place for place in (path, *path.parents)
                     if os.path.lexists(place) and not place.is_dir()), None)
        reason = f"{file} is not a folder" if file else e.strerror
        raise UserError(f"{reported}: cannot be created ({reason}); name a folder where you may "
                        "write") from None


def require_new_folder(path):
    """Returns the path if nothing is there, or only an empty folder. Raises UserError otherwise.

    Temporary files of a run that was killed do not count: `atomic_folder` removes them.
    """
    path = Path(path)
    try:
        target = path.resolve(strict=False)
        entries = list(target.iterdir()) if target.is_dir() else []
    except (OSError, RuntimeError) as e:   # RuntimeError: a loop of symbolic links
        reason = getattr(e, "strerror", None) or "its symbolic links form a loop"
        raise UserError(f"--output {path}: cannot be read ({reason}); name another folder"
                        ) from None
    entries = [entry for entry in entries if not leftovers.is_leftover(entry)]
    if any(leftovers.is_temporary(entry) for entry in entries):
        raise UserError(f"--output {path}: another run is writing there, or was stopped on another "
                        "machine; name a new folder, or empty this one first")
    if entries or (os.path.lexists(target) and not target.is_dir()):
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


@contextlib.contextmanager
def _named_in_errors(path, temporary=None):
    """Errors name the path that the user gave, never the temporary one.

    :param temporary: None: whatever file or folder the error names
    """
    try:
        yield
    except OSError as e:
        for name in ("filename", "filename2"):
            value = getattr(e, name)
            if value is None:
                continue
            named = str(path) if temporary is None else str(value).replace(str(temporary),
                                                                           str(path))
            setattr(e, name, named)
        raise
    except UserError as e:
        if temporary is None or str(temporary) not in str(e):
            raise
        raise UserError(str(e).replace(str(temporary), str(path))) from None


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


# ----------------------------------------------------------------------------- temporary folders

def remove_leftovers(reported, *places):
    """Removes what killed runs left, and says so.

    :param reported: path that is named
    :param places: (folder, path) as `leftovers.remove` takes them
    """
    count = sum(leftovers.remove(folder, path) for folder, path in places)
    if count:
        print(f"{reported}: removed {count} unfinished file{'s' * (count > 1)} or "
              f"folder{'s' * (count > 1)} of a run that was killed", file=sys.stderr, flush=True)


def _make_temporary_folder(target):
    """An empty folder next to the target, or in it where it could not take the target's place.

    It gets the target's permissions and group first, so that what is written into it inherits them.
    """
    prefix = leftovers.prefix_of(target)
    if not target.is_dir():
        return Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    status = target.stat()
    if _may_take_place(target, status):
        try:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        except OSError:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=target))
        try:
            os.chown(temporary, -1, status.st_gid)
            temporary.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
            if temporary.stat().st_gid == status.st_gid:
                return temporary
        except OSError:
            pass  # not a member of that group
        temporary.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=target))


def _may_take_place(target, status):
    """Whether another folder can be renamed to the target, so that nobody notices."""
    if status.st_uid != os.geteuid() or _is_mount_point(target):
        return False
    try:
        return not os.path.samefile(target, os.getcwd())
    except OSError:
        return True


def _is_mount_point(folder):
    """Whether something is mounted there, also a folder of the same file system (bind mount)."""
    if folder.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False  # no Linux
    # man 5 proc: the fifth field, with blanks and backslashes in octal
    points = [line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines]
    return os.fsencode(folder) in points


def _obey_umask(folder):
    """Gives all files and subfolders the permissions that the umask asks for.

    Some libraries create files that only their owner can read, whatever the umask is.
    """
    mask = umask()
    for parent, folders, names in os.walk(folder):
        for name in folders:
            path = Path(parent, name)
            path.chmod(0o777 & ~mask | path.stat().st_mode & stat.S_ISGID)
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o666 & ~mask)


def _put_in_place(temporary, target, path, replace):
    """Makes the finished temporary folder the target, or moves its contents there.

    :param path: of the target as the user gave it, for errors
    """
    inside = temporary.parent == target
    if replace and target.is_dir():
        _remove_contents(target, temporary)
    if not inside:
        if target.is_dir():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        else:
            inherited = temporary.stat().st_mode & stat.S_ISGID  # of the parent, like its group
            temporary.chmod(0o777 & ~umask() | inherited)
        try:
            os.replace(temporary, target)  # legal onto an empty folder
            return
        except OSError:
            if not target.is_dir():
                raise
    _require_empty(target, temporary, path)
    _move_contents(temporary, target)


def _require_empty(target, temporary, path):
    """Raises UserError if anything but the temporary folder appeared in the target."""
    if any(entry != temporary for entry in target.iterdir()):
        raise UserError(f"--output {path}: another program wrote there while this one computed, "
                        "and what it wrote is kept; name a new folder")


def _remove_contents(target, temporary):
    for entry in target.iterdir():
        if entry == temporary:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)  # another run may be doing the same
        else:
            entry.unlink(missing_ok=True)


def _move_contents(temporary, target):
    """Moves folders first and files last: a folder that has its manifest has everything."""
    entries = sorted(temporary.iterdir(), key=lambda entry: (entry.is_file(), entry.name))
    moved = []
    try:
        for entry in entries:
            shutil.move(entry, target / entry.name)  # a rename, unless it is another file system
            moved.append(target / entry.name)
    except BaseException:
        for entry in moved:
            with contextlib.suppress(OSError):
                shutil.move(entry, temporary / entry.name)
        raise


# ---------------------------------------------------------------------------------------- reading

def read_json(path):
    """The content of a JSON file.

    :raises UserError: missing, damaged, no regular file, or too large to be one of MosaicDiT
    """
    path = Path(path)
    try:
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise UserError(f"{path}: {size} bytes, more than the {MAX_JSON_BYTES} that are "
                                "read; no file of MosaicDiT is so large")
            raw = f.read(size)
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
    """SHA-256 of a file in hex, without holding the file in memory.

    :raises UserError: a pipe or a device, which need not end
    """
    with open_regular(path) as f:
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
