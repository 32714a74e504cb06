"""The EMA's warm-up, and what the log says about how far the average is behind."""
import math

import pytest
import torch

from training.average import AverageLag
from training.state import TrainingState


def test_decay_by_hand():
    lag = AverageLag(0.9999)
    assert [lag.decay_at(s) for s in (1, 2, 8, 90)] == [2 / 11, 3 / 12, 9 / 18, 91 / 100]
    assert lag.decay_at(10 ** 6) == 0.9999 and AverageLag(0.2).decay_at(5) == 0.2
    assert AverageLag(0.9999, warm_up=False).decay_at(1) == 0.9999


def test_the_first_default_checkpoint_is_no_longer_the_base_model():
    """Without warm-up, 61 % of the average after 5,000 steps are the initial weights."""
    warm, cold = AverageLag(0.9999), AverageLag(0.9999, warm_up=False)
    for step in range(1, 5001):
        warm.advance(step)
        cold.advance(step)
    assert warm.initial_share < 1e-12 and 450 < warm.steps < 650
    assert cold.initial_share == pytest.approx(0.9999 ** 5000) == pytest.approx(0.6065, abs=1e-4)
    assert warm.describe() == f"EMA {warm.steps:.0f} steps behind"
    assert cold.describe().endswith("60.7% of it the initial weights")


def test_old_states_have_closed_forms():
    """A state of a version before the warm-up records nothing: share d^n, age sum of d^k."""
    counted = AverageLag(0.9, warm_up=False)
    for step in range(1, 31):
        counted.advance(step)
    known = AverageLag.from_metadata(0.9, None, updates=30)
    assert not known.warm_up
    assert known.initial_share == pytest.approx(counted.initial_share, rel=1e-12)
    assert known.steps == pytest.approx(counted.steps, rel=1e-12)
    again = AverageLag.from_metadata(0.9, counted.metadata(), updates=99)
    assert again == counted


def test_what_the_lag_says_is_true_of_the_average():
    """A weight that was 1 at first and is 0 since: its average is the share of the initial one."""
    weight = torch.nn.Parameter(torch.ones(1))
    state = TrainingState({"w": weight}, lr=0.0, ema_decay=0.5)
    for step, is_bad in enumerate((0, 0, 1, 0, 0), 1):
        weight.data.zero_()
        weight.grad = torch.zeros(1)
        state.step = step
        state.update(torch.zeros(3), torch.tensor(float(is_bad)), lr=0.0)
    state.settle()
    expected = 2 / 11 * 3 / 12 * 5 / 14 * 6 / 15  # step 3 was skipped
    assert state.lag.initial_share == pytest.approx(expected)
    assert state.ema["w"].item() == pytest.approx(expected)
    assert math.isclose(state.metadata()["average"]["initial_share"], expected)
