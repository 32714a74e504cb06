"""Tables of other programs, laid out as those write them."""
import numpy as np
import pytest

from metrics import anatomy_tables
from metrics.volume_sets import VolumeSet
from mri.structures import STRUCTURES
from utils.errors import UserError

FLAG = "--anatomy-real"
SYNTHSEG = (
    "subject,total intracranial,left cerebral white matter,left cerebral cortex,"
    "left lateral ventricle,left inferior lateral ventricle,left cerebellum white matter,"
    "left cerebellum cortex,left thalamus,left caudate,left putamen,left pallidum,3rd ventricle,"
    "4th ventricle,brain-stem,left hippocampus,left amygdala,csf,left accumbens area,"
    "left ventral DC,right cerebral white matter,right cerebral cortex,right lateral ventricle,"
    "right inferior lateral ventricle,right cerebellum white matter,right cerebellum cortex,"
    "right thalamus,right caudate,right putamen,right pallidum,right hippocampus,right amygdala,"
    "right accumbens area,right ventral DC")
QC = ("subject,general white matter,general grey matter,general csf,cerebellum,brainstem,thalamus,"
      "putamen+pallidum,hippocampus+amygdala")
ASEG_COLUMNS = (
    "Left-Lateral-Ventricle Left-Inf-Lat-Vent Left-Cerebellum-White-Matter Left-Cerebellum-Cortex "
    "Left-Thalamus Left-Caudate Left-Putamen Left-Pallidum 3rd-Ventricle 4th-Ventricle Brain-Stem "
    "Left-Hippocampus Left-Amygdala CSF Left-Accumbens-area Left-VentralDC Left-vessel "
    "Right-Lateral-Ventricle Right-Inf-Lat-Vent Right-Cerebellum-White-Matter "
    "Right-Cerebellum-Cortex Right-Thalamus Right-Caudate Right-Putamen Right-Pallidum "
    "Right-Hippocampus Right-Amygdala Right-Accumbens-area Right-VentralDC lhCortexVol rhCortexVol "
    "CortexVol lhCerebralWhiteMatterVol rhCerebralWhiteMatterVol CerebralWhiteMatterVol "
    "EstimatedTotalIntraCranialVol").split()
ASEG_STATS = """# Title Segmentation Statistics
# generating_program mri_segstats
# subjectname {name}
# Measure lhCortex, lhCortexVol, Left hemisphere cortical gray matter volume, 240000.5, mm^3
# Measure rhCortex, rhCortexVol, Right hemisphere cortical gray matter volume, 250000.5, mm^3
# Measure Cortex, CortexVol, Total cortical gray matter volume, 490001.0, mm^3
# Measure lhCerebralWhiteMatter, lhCerebralWhiteMatterVol, Left hemisphere, 220000.0, mm^3
# Measure rhCerebralWhiteMatter, rhCerebralWhiteMatterVol, Right hemisphere, 230000.0, mm^3
# NRows 45
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax
  1   4     8123     8100.5  Left-Lateral-Ventricle            30.1     9.5     8.0    80.0    72.0
  2  10     7000     7050.1  Left-Thalamus-Proper              90.1     9.5     8.0    80.0    72.0
 20  43     9000     9050.5  Right-Lateral-Ventricle           30.1     9.5     8.0    80.0    72.0
 21  49     7000     7150.1  Right-Thalamus-Proper             90.1     9.5     8.0    80.0    72.0
"""


def read(*paths):
    return anatomy_tables.read_anatomy_tables(paths, FLAG)


def synthseg_files(folder, names, ventricles=10000.0, score=0.8):
    """SynthSeg's two CSVs; every structure has 1000 mm³ a side but the lateral ventricles."""
    columns = SYNTHSEG.split(",")[1:]
    lines, scores = [SYNTHSEG], [QC]
    for i, name in enumerate(names):
        cells = [str(ventricles + i if "lateral ventricle" in column and "inferior" not in column
                     else 1000.0 + i) for column in columns]
        lines.append(",".join((name, *cells)))
        scores.append(",".join((name, *["0.9000"] * 7, f"{score:.4f}")))
    (folder / "vol.csv").write_text("\n".join(lines) + "\n")
    (folder / "qc.csv").write_text("\n".join(scores) + "\n")
    return folder / "vol.csv", folder / "qc.csv"


def test_synthseg(tmp_path):
    found = read(*synthseg_files(tmp_path, ["sub-01_T1w", "sub-02_T1w"], score=0.5))
    row = found.volumes["sub-02_T1w"]
    assert set(row) == set(STRUCTURES)
    assert row["lateral_ventricle"] == pytest.approx(2 * 10.001)
    assert row["brain_stem"] == row["3rd_ventricle"] == pytest.approx(1.001)
    assert row["ventral_dc"] == pytest.approx(2.002)
    assert found.scores == {"sub-01_T1w": 0.5, "sub-02_T1w": 0.5}


def test_a_missing_score_is_not_a_good_one(tmp_path):
    volumes, scores = synthseg_files(tmp_path, ["a", "b"])
    scores.write_text(scores.read_text().replace("b,0.9000,0.9000", "b,0.9000,"))
    found = read(volumes, scores).scores
    assert found["a"] == 0.8 and np.isnan(found["b"])


def test_asegstats2table(tmp_path):
    values = [str(1000.0 + k) for k in range(len(ASEG_COLUMNS))]
    rows = ["\t".join(("Measure:volume", *ASEG_COLUMNS)), "\t".join(("sub-01/", *values))]
    (tmp_path / "aseg.tsv").write_text("\n".join(rows) + "\n")
    row = read(tmp_path / "aseg.tsv").volumes["sub-01"]
    assert set(row) == set(STRUCTURES)

    def ml(*columns):
        return sum(1000.0 + ASEG_COLUMNS.index(column) for column in columns) / 1000

    assert row["hippocampus"] == pytest.approx(ml("Left-Hippocampus", "Right-Hippocampus"))
    assert row["inferior_lateral_ventricle"] == pytest.approx(
        ml("Left-Inf-Lat-Vent", "Right-Inf-Lat-Vent"))
    assert row["cerebral_cortex"] == pytest.approx(ml("lhCortexVol", "rhCortexVol"))
    assert row["brain_stem"] == pytest.approx(ml("Brain-Stem"))


def test_totals_count_where_there_are_no_hemispheres(tmp_path):
    (tmp_path / "t.tsv").write_text(
        "Measure:volume\tCortexVol\tCorticalWhiteMatterVol\nsub-1\t500000\t400000\n")
    assert read(tmp_path / "t.tsv").volumes == {
        "sub-1": {"cerebral_cortex": 500, "cerebral_white_matter": 400}}


def test_aseg_stats_files_and_a_subjects_dir(tmp_path):
    for name in ("sub-01", "sub-02"):
        path = tmp_path / name / "stats" / "aseg.stats"
        path.parent.mkdir(parents=True)
        path.write_text(ASEG_STATS.format(name=name))
    found = read(tmp_path)
    assert list(found.volumes) == ["sub-01", "sub-02"]
    assert found.volumes["sub-02"] == pytest.approx({
        "cerebral_cortex": 490.001, "cerebral_white_matter": 450, "lateral_ventricle": 17.151,
        "thalamus": 14.2002})
    one = read(tmp_path / "sub-01" / "stats" / "aseg.stats")
    assert one.volumes["sub-01"] == found.volumes["sub-01"]
    unnamed = ASEG_STATS.replace("# subjectname {name}\n", "")
    (tmp_path / "sub-01" / "stats" / "aseg.stats").write_text(unnamed)
    assert "sub-01" in read(tmp_path / "sub-01" / "stats" / "aseg.stats").volumes


def test_the_metrics_own_tables_are_read_again(tmp_path):
    (tmp_path / "anatomy-real.tsv").write_text("id\tthalamus\tcaudate\na\t14.5\t7\nb\t15\tn/a\n")
    assert read(tmp_path / "anatomy-real.tsv").volumes == {
        "a": {"thalamus": 14.5, "caudate": 7}, "b": {"thalamus": 15}}


def test_hemispheres_that_are_given_twice_count_once(tmp_path):
    """FastSurfer's files hold the white matter as a measure and, by voxels, in own rows."""
    rows = """ 44   2   210000   210000.0  Left-Cerebral-White-Matter     1 1 1 1 1
 45  41   215000   215000.0  Right-Cerebral-White-Matter    1 1 1 1 1
"""
    path = write(tmp_path / "sub-01.stats", ASEG_STATS.format(name="sub-01") + rows)
    found = read(path).volumes["sub-01"]
    assert found["cerebral_white_matter"] == pytest.approx(450)         # the measures, not 875
    assert found["lateral_ventricle"] == pytest.approx(17.151)
    path = write(tmp_path / "t.tsv", "Measure:volume\tLeft-Cerebral-White-Matter\t"
                 "Right-Cerebral-White-Matter\tlhCerebralWhiteMatterVol\t"
                 "rhCerebralWhiteMatterVol\nsub-1\t1000\t2000\t1100\t2200\n")
    assert read(path).volumes == {"sub-1": {"cerebral_white_matter": pytest.approx(3.3)}}


def test_a_structure_with_one_side_missing_is_missing(tmp_path):
    """And not half as large; unless the table gives it in another way, too."""
    path = write(tmp_path / "t.csv",
                 "subject,left caudate,right caudate,left cerebral cortex,right cerebral cortex,"
                 "CortexVol\na,3000,3100,200000,n/a,410000\nb,3000,,200000,210000,410000\n")
    assert read(path).volumes == {"a": {"caudate": pytest.approx(6.1), "cerebral_cortex": 410},
                                  "b": {"cerebral_cortex": 410}}


def test_rows_without_a_volume_are_no_rows(tmp_path):
    """As of volumes that could not be segmented, in a table of our own."""
    own = write(tmp_path / "anatomy-real.tsv",
                "id\tthalamus\tcaudate\na\t14.5\t7\nb\tn/a\tn/a\n")
    assert read(own).volumes == {"a": {"thalamus": 14.5, "caudate": 7}}
    with pytest.raises(UserError, match="none of its rows holds a volume"):
        read(write(own, "id\tthalamus\nb\tn/a\n"))


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("text, message", [
    ("name,x\na,1\n", "has no column subject or Measure:volume"),
    ("subject,age\na,1\n", "none of its columns is the volume of a structure; they are age"),
    ("subject,left thalamus\na,seven\n", "'seven' where a number should be"),
    ("subject,left thalamus\na,1\na,2\n", "a second row of a; keep one"),
    ("subject,left thalamus\na,inf\n", "left thalamus of a is inf, which is no volume"),
    ("subject,left thalamus\na,-3\n", "left thalamus of a is -3, which is no volume"),
    (QC + "\na,1,1,1,1,1,1,1,1\na,1,1,1,1,1,1,1,1\n", "a second row of a; keep one"),
    (QC + "\na,1,1,1,1,1,1,1,1\n", "holds scores but no volumes"),
])
def test_tables_that_are_none(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "t.csv", text))


def test_files_and_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="a folder without aseg.stats files"):
        read(tmp_path)
    with pytest.raises(UserError, match="holds no volumes of structures; is it an aseg.stats"):
        read(write(tmp_path / "x.stats", "# nothing\n"))
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.csv")


def test_rows_are_matched_to_volumes(tmp_path):
    found = read(synthseg_files(tmp_path, ["sub-01_T1w", "2", "sub-09_T1w"])[0])
    ids = ["sub-01_T1w", "sub-02_T1w", "sub-03_T1w"]
    volumes = VolumeSet("--real", "real", None, ids, [name[:6] for name in ids], 16, np.ones(3),
                        read=None)
    rows, notes = anatomy_tables.match(volumes, found)
    assert rows == ["sub-01_T1w", "2", None]
    assert any("has no row of 1 of 3 volumes, which are left out of anatomy: sub-03_T1w" in line
               for line in notes)
    assert any("1 of its 3 rows are of no volume that is compared, and left out: sub-09_T1w" in line
               for line in notes)
