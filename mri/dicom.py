"""DICOM series to NIfTI files in a temporary folder, by dcm2niix; T1-weighted volumes are kept.

The program is described by Li et al. 2016 (J Neurosci Methods 264:47).
The temporary folder has the subfolders of the DICOM folder, so that ids, subjects and sessions are
found in its paths as in those of other scans.
"""
import contextlib
import dataclasses
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib

from mri import scan_search, scans, t1_series
from utils.errors import UserError, shorten
from utils.files import read_json
from utils.progress import progress

FILES_LOOKED_INTO = 5      # of a folder, for DICOM
NAME_FORMAT = "%i~%s~%j"   # of dcm2niix: PatientID, SeriesNumber, SeriesInstanceUID
NIFTI_SUFFIX = ".nii.gz"
PERSONAL_KEYS = re.compile(
    r"Patient(?!Position)|Institution|Station|Serial|Acquisition(Date)?Time$|Physician|Operator|"
    r"Accession|StudyID|InstanceUID|Referr")


@dataclass(frozen=True)
class Series:
    """A DICOM series that was converted."""
    folder: Path           # of its DICOM files
    patient: str           # its PatientID with signs replaced; "" where it has none
    sidecar: dict          # what dcm2niix says of it, without what is personal


@dataclass
class Converted:
    """What became of a folder of DICOM files."""
    source: Path
    folder: Path                                     # temporary
    series: dict = field(default_factory=dict)       # {path of a NIfTI file: Series}
    left_out: list = field(default_factory=list)     # lines
    warnings: list = field(default_factory=list)
    folders: dict = field(default_factory=dict)      # {UID of a series: set of its folders}

    def search(self, choice, subject_pattern=None, id_pattern=None):
        """The scans that series became; as `scans.search`, but in words about the DICOM folder.

        The subject is what the path names, or else the PatientID, or the first folder.
        """
        try:
            found = scans.search(str(self.folder), choice, subject_pattern, id_pattern,
                                 describe=self._described)
        except UserError as e:
            raise UserError(self._in_source(str(e))) from None
        count = len(self.left_out)
        notes = [f"--dicom: {len(self.series)} series are used, {count} left out (--series)",
                 *self.left_out, *found.notes]
        return scans.FoundScans(
            found.scans, found.left_out, [self._in_source(line) for line in notes],
            [self._in_source(line) for line in (*self.warnings, *found.warnings)])

    def _in_source(self, text):
        """A text in which the temporary folder has the name of the DICOM folder."""
        return text.replace(str(self.folder), str(self.source))

    def _described(self, scan):
        """A scan with what its series says of it."""
        found = self.series[scan.path]
        subject = scan.subject
        if subject == scan.id:     # its path names none
            parts = found.folder.relative_to(self.source).parts
            subject = found.patient or (parts[0] if parts else scan.id)
        return dataclasses.replace(scan, subject=subject, source=found.folder,
                                   sidecar=found.sidecar)


def find_converter():
    """Path of the program dcm2niix: on the PATH, or of the Python package of that name.

    :raises UserError: it is not installed
    """
    on_path = shutil.which("dcm2niix")
    if on_path:
        return on_path
    try:
        import dcm2niix
    except ImportError:
        raise UserError("--dicom: needs dcm2niix; pip install -r requirements-extra.txt, or put "
                        "the program on the PATH") from None
    return dcm2niix.bin


def check_flags(is_asked_for, series_pattern, mask):
    """Checks --dicom, --series and --mask.

    :raises UserError: they contradict each other
    """
    if series_pattern and not is_asked_for:
        raise UserError("--series: is for --dicom; give both, or neither")
    if is_asked_for and mask:
        raise UserError("--mask: lies on the grid of a NIfTI file, not of a DICOM series; convert "
                        "by dcm2niix first, or leave out --mask")


@contextlib.contextmanager
def converted(source, series_pattern=None, workers=1):
    """Converts a folder of DICOM files; yields a Converted, whose folder is removed in the end.

    :param source: Path, searched with its subfolders; each folder is converted on its own
    :param series_pattern: regular expression that the descriptions of wanted series match, whatever
        their weighting; None: T1-weighted volumes are wanted
    :param workers: conversions at a time
    :raises UserError: no folder, no DICOM files in it, no dcm2niix, or no series that is wanted
    """
    program = find_converter()
    wanted = scans.compiled(series_pattern, "--series")
    if not source.is_dir():
        raise UserError(f"--input {source}: no such folder; --dicom takes a folder of DICOM files")
    found = scan_search.FoundFiles()
    folders = sorted({path.parent for path in scan_search.walk(source, found)})
    folders = [folder for folder in folders if _holds_dicom(folder)]
    if not folders:
        raise UserError(f"--input {source}: holds no DICOM files; leave out --dicom for NIfTI "
                        "files")
    with tempfile.TemporaryDirectory(prefix="mosaicdit-dicom-") as temporary:
        result = Converted(source, Path(temporary) / (source.resolve().name or "dicom"))
        result.warnings += found.warnings

        def convert(folder):
            return _convert_folder(program, folder, result.folder / folder.relative_to(source))

        with ThreadPoolExecutor(workers) as pool:
            reports = list(progress(pool.map(convert, folders), "DICOM folders", len(folders)))
        for folder, report in zip(folders, reports):
            _sort_series(folder, result, report, wanted)
        _check_folders(result)
        _check_patients(result)
        if not result.series:
            raise UserError(f"--input {source}: none of its DICOM series is wanted: "
                            f"{'; '.join(result.left_out[:3])}; --series takes others")
        yield result


def _holds_dicom(folder):
    files = [path for path in sorted(folder.iterdir()) if path.is_file()][:FILES_LOOKED_INTO]
    return any(map(scan_search.is_dicom, files))


def _convert_folder(program, folder, output):
    """Converts the files of one folder, not of its subfolders.

    :return: the program's last line
    """
    output.mkdir(parents=True)
    done = subprocess.run(
        [program, "-d", "0", "-b", "y", "-ba", "y", "-z", "i", "-1", "-g", "i", "-w", "2",
         "-f", NAME_FORMAT, "-o", str(output), str(folder)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    lines = (done.stderr + done.stdout).strip().splitlines()
    return shorten(lines[-1]) if lines else f"exit code {done.returncode}"


def _sort_series(folder, result, report, wanted):
    """Keeps the wanted files that a folder became, and gives them a scan's name."""
    output = result.folder / folder.relative_to(result.source)
    files = sorted(output.glob(f"*{NIFTI_SUFFIX}"))
    if not files:
        result.left_out.append(f"{folder}: dcm2niix made nothing of it ({report})")
    for path in files:
        stem = path.name.removesuffix(NIFTI_SUFFIX)
        patient, number, uid = stem.split("~", 2)
        sidecar_path = path.with_name(f"{stem}.json")
        sidecar = read_json(sidecar_path)
        sidecar_path.unlink()
        reason = _why_left_out(sidecar, nib.load(path).shape, wanted)
        if reason:
            result.left_out.append(f"{folder}: series {number} "
                                   f"({sidecar.get('SeriesDescription', 'no description')}): "
                                   f"{reason}")
            path.unlink()
            continue
        result.folders.setdefault(re.match(r"[\d.]*", uid)[0], set()).add(folder)
        more = re.sub(r"^[\d.]+", "", uid)      # what dcm2niix adds where a series has several
        name = f"{patient or folder.name}-{number}{more}"
        new_path = path.rename(path.with_name(name + NIFTI_SUFFIX))
        kept = {key: value for key, value in sidecar.items() if not PERSONAL_KEYS.search(key)}
        result.series[new_path] = Series(folder, patient, kept)


def _why_left_out(sidecar, shape, wanted):
    """Why a series is not wanted, or None."""
    if wanted is None:
        return t1_series.why_not_t1(sidecar, shape)
    if not wanted.search(str(sidecar.get("SeriesDescription", ""))):
        return f"--series {wanted.pattern} does not match"
    return None


def _check_folders(result):
    """Leaves out series whose files are in several folders: each of these is a part of it."""
    for uid, folders in result.folders.items():
        if uid and len(folders) > 1:
            parts = [path for path, series in result.series.items() if series.folder in folders]
            for path in parts:
                path.unlink()
                del result.series[path]
            result.left_out.append(f"{', '.join(map(str, sorted(folders)))}: parts of one series; "
                                   "put its files into one folder")


def _check_patients(result):
    """Warns where one PatientID may stand for several people."""
    top_folders = {series.folder.relative_to(result.source).parts[:1]
                   for series in result.series.values()}
    patients = {series.patient for series in result.series.values()}
    if len(patients) == 1 and len(top_folders) > 1 and patients != {""}:
        result.warnings.append(
            f"all {len(result.series)} series have the PatientID {patients.pop()}, in "
            f"{len(top_folders)} folders; if they are different people, give --subject-pattern")
