"""Which DICOM series are T1-weighted volumes, by sidecars as scanners' parameters make them."""
import pytest

from mri.t1_series import why_not_t1

MPRAGE = {"Modality": "MR", "SeriesDescription": "MPRAGE SAG", "EchoTime": 0.003,
          "RepetitionTime": 2.3, "InversionTime": 0.9, "ScanningSequence": "GR\\IR",
          "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}


@pytest.mark.parametrize("more", [
    {},
    {"SeriesDescription": "Accelerated Sagittal IR-FSPGR", "RepetitionTime": 0.007,
     "InversionTime": 0.4},
    {"SeriesDescription": "3D TFE", "InversionTime": None, "RepetitionTime": 0.008},
    {"SeriesDescription": "scan 4"},
    {"SeriesDescription": "mp2rage UNI", "ImageType": ["DERIVED", "PRIMARY", "M", "UNI"]},
    {"SeriesDescription": "t1_mprage", "EchoTime": None, "RepetitionTime": None},   # anonymized
    {"SeriesDescription": "SE ax", "EchoTime": 0.012, "RepetitionTime": 0.6,
     "InversionTime": None, "ScanningSequence": "SE"}])
def test_t1_weighted_volumes(more):
    assert why_not_t1({**MPRAGE, **more}, (256, 256, 176)) is None


@pytest.mark.parametrize("more, words", [
    ({"Modality": "CT"}, "modality is CT"),
    ({"SeriesDescription": "localizer"}, "names another kind of image (localizer)"),
    ({"SeriesDescription": "3D T2 SPACE"}, "another kind of image (T2)"),
    ({"SeriesDescription": "Sag 3D FLAIR"}, "another kind of image (FLAIR)"),
    ({"SeriesDescription": "gre_field_mapping"}, "another kind of image (gre_field"),
    ({"SeriesDescription": "mp2rage_INV2", "InversionTime": 2.5}, "(INV2)"),
    ({"SeriesDescription": "x", "EchoTime": 0.09}, "echo time is 90 ms, T2-weighted"),
    ({"SeriesDescription": "x", "InversionTime": 2.5}, "inversion time is 2500 ms, as of FLAIR"),
    ({"SeriesDescription": "x", "InversionTime": None, "ScanningSequence": "SE"},
     "repetition time is 2300 ms without inversion"),
    ({"SeriesDescription": "x", "EchoTime": None}, "nothing says that it is T1-weighted"),
    ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "reformatted (ImageType MPR)"),
    ({"ImageType": ["DERIVED", "SECONDARY"]}, "derived from another series"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "a phase image (ImageType P)")])
def test_other_series(more, words):
    assert words in why_not_t1({**MPRAGE, **more}, (256, 256, 176))


def test_few_slices_and_several_volumes():
    assert why_not_t1(MPRAGE, (256, 256, 19)) == "19 slices, fewer than 20"
    assert why_not_t1(MPRAGE, (256, 256, 20)) is None
    assert why_not_t1(MPRAGE, (64, 64, 40, 150)).startswith("150 volumes")
