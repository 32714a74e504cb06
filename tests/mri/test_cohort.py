"""The split by subject."""
from mri import cohort


def test_the_papers_split():
    subjects = [f"s{i}" for i in range(95)]
    splits = cohort.split_subjects(subjects * 2, (63, 32), 0)
    assert sorted(splits.values()) == ["test"] * 32 + ["train"] * 63
    assert splits == cohort.split_subjects(subjects[::-1], (63, 32), 0)
    assert splits != cohort.split_subjects(subjects, (63, 32), 1)
    assert sorted(cohort.split_subjects(["a", "b"], (99, 1), 0).values()) == ["test", "train"]
    assert set(cohort.split_subjects(subjects, (1, 0), 0).values()) == {"train"}
