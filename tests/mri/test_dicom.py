"""DICOM series, written here, become scans: geometry, voxels, ids, and what is left out."""
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import error_line, script

from mri import dicom, manifest, scans
from utils.errors import UserError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")

SHAPE = (32, 40, 24)                 # columns, rows, slices
SPACING = (1.5, 1.25, 2.0)           # mm, along them
ORIGIN = (-20.0, -25.0, -15.0)       # LPS
AXES = ((0.0, 1, 0), (0.0, 0, -1), (-1.0, 0, 0))   # of columns, rows, slices, LPS: sagittal


def write_series(folder, patient="003_S_0907", number=2, slices=SHAPE[2], seed=0, uid=None,
                 **fields):
    """Writes one series, a file per slice.

    :return: voxels (columns, rows, slices); affine in RAS, by equation C.7.6.2.1-1 of the DICOM
        standard
    """
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 1000, (*SHAPE[:2], slices))
    uid, study, frame = (uid or pydicom.uid.generate_uid() for _ in range(3))
    for k in range(slices):
        d = pydicom.Dataset()
        d.SOPClassUID, d.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, uid, frame
        d.PatientID, d.PatientName, d.PatientBirthDate = patient, "Doe^Jane", "19500101"
        d.InstitutionName, d.AcquisitionTime, d.Manufacturer = "Hospital X", "101010", "SIEMENS"
        d.Modality, d.MRAcquisitionType, d.ImageType = "MR", "3D", ["ORIGINAL", "PRIMARY", "M"]
        d.SeriesDescription, d.SeriesNumber, d.InstanceNumber = "MPRAGE", number, k + 1
        d.ScanningSequence, d.EchoTime, d.RepetitionTime, d.InversionTime = "GR", 3, 2300, 900
        d.Rows, d.Columns = SHAPE[1], SHAPE[0]
        d.PixelSpacing, d.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        d.ImageOrientationPatient = [*AXES[0], *AXES[1]]
        d.ImagePositionPatient = list(np.array(ORIGIN) + np.array(AXES[2]) * SPACING[2] * k)
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = np.ascontiguousarray(array[:, :, k].T.astype("<u2")).tobytes()
        for name, value in fields.items():
            setattr(d, name, value)
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        d.save_as(folder / f"IM{k:04d}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = np.array(AXES).T * SPACING
    affine[:3, 3] = ORIGIN
    return array, np.diag([-1, -1, 1, 1]) @ affine


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Series of three people: two T1-weighted volumes, one without a PatientID; a localizer; T2."""
    folder = tmp_path_factory.mktemp("dicom") / "study"
    truth = write_series(folder / "a" / "s2")
    write_series(folder / "a" / "s1", number=1, slices=3, SeriesDescription="localizer")
    write_series(folder / "b" / "s3", patient="P 7", number=3, seed=1)
    write_series(folder / "c", patient="", number=5, seed=2)
    write_series(folder / "b" / "s4", patient="P 7", number=4, SeriesDescription="ax", EchoTime=90)
    return folder, truth


def test_voxels_and_affine_are_those_of_the_files(study):
    folder, (array, affine) = study
    with dicom.converted(folder) as series:
        (path,) = (path for path in series.series if "0907" in path.name)
        image = nib.as_closest_canonical(nib.load(path))
        expected = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int16), affine))
        assert np.array_equal(image.get_fdata(), expected.get_fdata())
        assert np.allclose(image.affine, expected.affine, atol=1e-4)
        assert nib.aff2axcodes(affine) == ("P", "I", "R")
        sidecar = series.series[path].sidecar
        assert sidecar["InversionTime"] == 0.9 and sidecar["SeriesDescription"] == "MPRAGE"
        assert not [key for key in sidecar if dicom.PERSONAL_KEYS.search(key)]
        temporary = series.folder
    assert not temporary.parent.exists()


def test_series_become_a_data_folder(study, tmp_path):
    folder, (array, affine) = study
    done = script("preprocess.py", "--dicom", "--input", folder, "--size", 16, "--workers", 1,
                  "--output", tmp_path / "d", env={"TMPDIR": str(tmp_path / "tmp")},
                  fresh=(tmp_path / "tmp").mkdir() is None)
    assert "--dicom: 3 series are used, 2 left out (--series)" in done.stdout
    assert f"{folder}/a/s1: series 1 (localizer): 3 slices, fewer than 20" in done.stdout
    assert f"{folder}/b/s4: series 4 (ax): its echo time is 90 ms, T2-weighted" in done.stdout
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert header["preparation"] == {"dicom": "T1-weighted"}
    assert [(v["id"], v["subject"]) for v in entries] == [
        ("003_S_0907-2", "003_S_0907"), ("P_7-3", "P_7"), ("c-5", "c")]
    assert entries[0]["source"] == str(folder / "a" / "s2")
    assert np.allclose(np.linalg.det(entries[0]["affine"]), np.linalg.det(affine))
    kept = json.loads(manifest.sidecar_path(tmp_path / "d", "P_7-3").read_text())
    assert kept["SeriesNumber"] == 3 and "Hospital X" not in str(kept)
    everything = done.stdout + done.stderr + (tmp_path / "d" / "manifest.json").read_text()
    assert "mosaicdit-dicom" not in everything and not list((tmp_path / "tmp").iterdir())


def test_two_jobs_make_of_series_what_one_makes(study, tmp_path):
    """Each job converts the series into a temporary folder of its own."""
    folder, _ = study
    command = ("preprocess.py", "--dicom", "--input", folder, "--size", 16, "--workers", 1,
               "--output")
    script(*command, tmp_path / "one")
    for part in ("2/2", "1/2"):
        script(*command, tmp_path / "two", "--shard", part)
    one, two = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
                 if path.is_file()} for root in (tmp_path / "one", tmp_path / "two"))
    assert one == two and "dicom/P_7-3.json" in one
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_other_series_by_their_description(study, tmp_path):
    folder, _ = study
    done = script("preprocess.py", "--dicom", "--series", "^ax$", "--input", folder, "--size", 16,
                  "--workers", 1, "--output", tmp_path / "d")
    _, (entry,) = manifest.read_manifest(tmp_path / "d")
    assert entry["id"] == "P_7-4"
    assert "series 2 (MPRAGE): --series ^ax$ does not match" in done.stdout


def test_subjects_of_series(tmp_path):
    for name in ("x", "y"):
        write_series(tmp_path / "in" / name, patient="ANON", seed=len(name), slices=20)
    with dicom.converted(tmp_path / "in") as series:
        found = series.search(scans.ALL_SCANS)
        assert {scan.subject for scan in found.scans} == {"ANON"}
        assert {scan.id for scan in found.scans} == {"x_ANON-2", "y_ANON-2"}
        assert "all 2 series have the PatientID ANON, in 2 folders" in found.warnings[0]
        found = series.search(scans.ALL_SCANS, r"/in/(\w)/")
        assert {scan.subject for scan in found.scans} == {"x", "y"}


def test_a_series_in_two_folders_is_left_out(tmp_path):
    for name in ("x", "y"):
        write_series(tmp_path / "in" / name, uid="1.2.3", slices=20)
    with pytest.raises(UserError, match="parts of one series; put its files into one folder"), \
            dicom.converted(tmp_path / "in"):
        pass


def test_what_cannot_be_converted_is_one_line(study, tmp_path):
    folder, _ = study

    def refused(words, *flags):
        done = script("preprocess.py", "--output", tmp_path / "o", *flags, expect=2)
        assert re.search(words, error_line(done)) and not (tmp_path / "o").exists()

    before = set(Path(tempfile.gettempdir()).glob("mosaicdit-dicom-*"))
    (tmp_path / "empty").mkdir()
    refused("holds no DICOM files; leave out --dicom", "--dicom", "--input", tmp_path / "empty")
    refused("no such folder; --dicom takes", "--dicom", "--input", tmp_path / "none")
    refused("none of its DICOM series is wanted: .*--series takes others", "--dicom", "--input",
            folder / "a" / "s1")
    refused("--series: is for --dicom", "--series", "T1", "--input", folder)
    refused("--mask: lies on the grid", "--dicom", "--mask", "m.nii", "--input", folder)
    refused("--series \\(: not a regular expression", "--dicom", "--series", "(", "--input", folder)
    assert set(Path(tempfile.gettempdir()).glob("mosaicdit-dicom-*")) == before


def test_without_dcm2niix(study, tmp_path):
    folder, _ = study
    (tmp_path / "without" / "dcm2niix").mkdir(parents=True)
    (tmp_path / "without" / "dcm2niix" / "__init__.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path / "without"), *sys.path])
    done = script("preprocess.py", "--dicom", "--input", folder, "--output", tmp_path / "o",
                  expect=2, fresh=True, env={"PYTHONPATH": path, "PATH": ""})
    assert "--dicom: needs dcm2niix; pip install -r requirements-extra.txt" in error_line(done)
