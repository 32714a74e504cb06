"""--class-label: an index, a name, or cohort."""
import numpy as np
import pytest

from training.class_choice import COHORT, ClassChoice, choose_class
from utils.errors import UserError

NAMES = ["AD", "CN", "MCI"]


def test_index_and_name():
    assert choose_class("1", {}, NAMES, "c") == choose_class("CN", {}, NAMES, "c") == ClassChoice(1)
    assert ClassChoice(1).of_sample(0, 5) == 1
    assert ClassChoice(1).describe(NAMES) == "class 1 (CN)"
    assert choose_class("0", {}, ["10", "0"], "c") == ClassChoice(0)  # a number is an index
    assert choose_class("10", {}, ["10", "0"], "c") == ClassChoice(0)  # unless there is none
    for text in ("3", "ad", "-1", ""):
        with pytest.raises(UserError, match=r"trained on 0 \(AD\), 1 \(CN\), 2 \(MCI\)"):
            choose_class(text, {}, NAMES, "c")


def test_cohort_is_drawn_as_training_is_made_up():
    choice = choose_class(COHORT, {"class_counts": [30, 0, 10]}, NAMES, "c")
    drawn = [choice.of_sample(3, i) for i in range(4000)]
    shares = np.bincount(drawn, minlength=3) / 4000
    assert shares[1] == 0 and abs(shares[0] - 0.75) < 0.03
    assert drawn[:9] == [choice.of_sample(3, i) for i in range(9)]     # of (seed, i) alone
    assert drawn[:50] != [choice.of_sample(4, i) for i in range(50)]
    assert choice.describe(NAMES) == "classes as in training: 75.0% AD, 0.0% CN, 25.0% MCI"


def test_cohort_of_a_checkpoint_that_does_not_know_it():
    with pytest.raises(UserError, match="does not say how frequent its classes were"):
        choose_class(COHORT, {}, NAMES, "old.safetensors")
    for counts in ([1, 2], [1, -1, 0], [0, 0, 0], [1, "2", 3]):
        with pytest.raises(UserError, match="class_counts are damaged"):
            choose_class(COHORT, {"class_counts": counts}, NAMES, "c")
