from utils import skipped

REASONS = {"FID": "no weights", "the floor": "few", "KID": "no weights"}


def test_what_was_skipped_is_said_once_for_each_reason():
    assert skipped.by_reason(REASONS) == {"no weights": ["FID", "KID"], "few": ["the floor"]}
    assert skipped.lines_of_skipped(REASONS, "will not be computed") == [
        "FID, KID: will not be computed, no weights", "the floor: will not be computed, few"]
    assert skipped.lines_of_skipped({}, "not computed") == []
