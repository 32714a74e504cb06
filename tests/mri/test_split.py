"""The split by subject: a side depends on (seed, subject) alone."""
import hashlib

import pytest

from mri import manifest, scans, split
from utils.errors import UserError

SUBJECTS = [f"s{i}" for i in range(95)]


def sides(subjects, ratio, seed=0, **options):
    return split.split_subjects(subjects, ratio, seed, **options).side_of


def test_a_side_depends_on_seed_and_subject_alone():
    found = sides(SUBJECTS * 2, (63, 32))
    assert found == sides(SUBJECTS[::-1], (63, 32))
    assert found != sides(SUBJECTS, (63, 32), 1)
    more = sides([*SUBJECTS, "t1", "a"], (63, 32))
    assert {subject: more[subject] for subject in SUBJECTS} == found
    fewer = sides(SUBJECTS[10:], (63, 32))
    assert all(fewer[subject] == found[subject] for subject in SUBJECTS[10:])
    for subject in SUBJECTS:  # the definition, by hand
        digest = hashlib.sha256(b"0\0" + subject.encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2 ** 64
        assert split.position(0, subject) == place
        assert found[subject] == ("train" if place < 63 / 95 else "test")


def test_the_proportion_is_approximate():
    found = sides(range(20_000), (63, 32))
    share = list(found.values()).count("train") / 20_000
    assert abs(share - 63 / 95) < 0.01                  # 3 standard deviations
    assert set(sides(SUBJECTS, (1, 0)).values()) == {"train"}
    assert set(sides(SUBJECTS, (0, 1)).values()) == {"test"}


def test_neither_side_is_empty():
    for seed in range(20):
        found = split.split_subjects(["a", "b"], (99, 1), seed)
        assert sorted(found.side_of.values()) == ["test", "train"]
    assert "was moved there" in found.notes[0]
    assert sides(["a"], (99, 1)) == {"a": "train"}


def test_given_sides_and_twins():
    found = sides(SUBJECTS, (63, 32), given={"s1": "val", "s2": "test"})
    assert (found["s1"], found["s2"]) == ("val", "test")
    free = sides(SUBJECTS, (63, 32))
    assert all(found[subject] == free[subject] for subject in SUBJECTS[3:])
    apart = [next(s for s in SUBJECTS if free[s] == side) for side in ("train", "test")]
    together = sides(SUBJECTS, (63, 32), twins=[set(apart)])
    assert together[apart[0]] == together[apart[1]]
    chain = sides(SUBJECTS, (63, 32), twins=[{"s1", "s2"}, {"s2", "s3"}], given={"s3": "val"})
    assert {chain[s] for s in ("s1", "s2", "s3")} == {"val"}
    with pytest.raises(UserError, match="s1, s2 have the same image, but are on different sides"):
        sides(SUBJECTS, (1, 1), twins=[{"s1", "s2"}], given={"s1": "train", "s2": "test"})


def test_stratified_sides_keep_classes_in_proportion():
    class_of = {s: "rare" if i < 15 else "common" for i, s in enumerate(SUBJECTS)}
    found = sides(SUBJECTS, (2, 1), class_of=class_of)
    train = [class_of[s] for s in SUBJECTS if found[s] == "train"]
    assert (train.count("rare"), train.count("common")) == (10, 53)   # 2/3 of 15 and of 80
    for added in range(5):
        more = sides([*SUBJECTS, f"new{added}"], (2, 1),
                     class_of={**class_of, f"new{added}": "rare"})
        assert sum(more[s] != found[s] for s in SUBJECTS) <= 1


@pytest.mark.parametrize("text", ["most", "1", "1:2:3", "-1:2", "0:0", "a:b", "1.5:2"])
def test_what_is_no_ratio_is_refused(text):
    assert split.parse_ratio("63:32") == (63, 32)
    with pytest.raises(UserError, match="TRAIN:TEST"):
        split.parse_ratio(text)


# ------------------------------------------------------------------------------------ given sides

def make(folder, *names):
    return [scans.Scan(name, name.split("_")[0], folder / f"{name}.nii") for name in names]


def test_sides_from_a_table(tmp_path):
    cohort = make(tmp_path, "sub-01_a", "sub-01_b", "sub-02_a", "sub-03_a")
    table = tmp_path / "split.csv"
    table.write_text("participant_id,split\n1,Training\n2,validation\nsub-03,test\nsub-09,x\n")
    found = split.given_sides(cohort, table)
    assert found.side_of == {"sub-01": "train", "sub-02": "val", "sub-03": "test"}
    table.write_text("participant_id,split\nsub-01,train\n")
    found = split.given_sides(cohort, table)
    assert found.side_of == {"sub-01": "train"}
    assert "does not name 2 subjects, sub-02, sub-03; --split and --seed" in found.notes[-1]

    def refused(text, words):
        table.write_text(text)
        with pytest.raises(UserError, match=words):
            split.given_sides(cohort, table)

    refused("participant_id,side\nsub-01,train\n", "has no column `split`")
    refused("participant_id,split\nsub-01,most\n", "'most' .* must be train, val or test")
    refused("participant_id,split\nsub-01,train\nsub-01,test\n", "contradicting rows .* sub-01")
    refused("id,split\nsub-01_a,train\nsub-01_b,test\n", "sub-01 is on two sides, train and test")
    refused("participant_id,split\nx,train\n", "names none of the subjects, who are sub-01, sub-")


def test_sides_from_a_data_folder(data, tmp_path):
    _, entries = manifest.read_manifest(data)
    cohort = make(tmp_path, "sub-00_x", "sub-04_y", "sub-77_z")
    found = split.given_sides(cohort, data)
    known = {entry["subject"]: entry["split"] for entry in entries}
    assert found.side_of == {s: known[s] for s in ("sub-00", "sub-04")}
    assert "does not name 1 subjects, sub-77" in found.notes[0]
    assert split.given_sides(cohort, data / "manifest.json") == split.Split(
        found.side_of, (found.notes[0].replace(str(data), str(data / "manifest.json")),))
