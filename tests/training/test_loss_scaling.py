"""fp16 with loss scaling, its logic on a CPU; overflows are made by hand."""
import math

import pytest
import torch

from training import bookkeeping, loss_scaling
from training.loss_scaling import LossScaler
from training.state import TrainingState
from training.step import compute_gradients
from utils.errors import UserError

GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)


def reference(found_inf):
    """The same by torch.amp.GradScaler's own update, step after step: [(scale, good steps)]."""
    scale = torch.tensor(loss_scaling.INITIAL_SCALE)
    growth = torch.tensor(0, dtype=torch.int32)
    for value in found_inf:
        torch._amp_update_scale_(scale, growth, value, 2.0, 0.5, loss_scaling.GROWTH_INTERVAL)
        yield scale.item(), growth.item()


def test_scale_is_that_of_gradscaler(monkeypatch):
    monkeypatch.setattr(loss_scaling, "GROWTH_INTERVAL", 3)
    steps = [BAD, GOOD, GOOD, BAD, GOOD, GOOD, GOOD, GOOD, BAD, BAD]
    scaler, ours = LossScaler(), []
    tensors = scaler.scale, scaler.good_steps
    for value in steps:
        scaler.update(value)
        ours.append((scaler.scale.item(), int(scaler.good_steps)))
    assert ours == list(reference(steps))
    assert ours[0] == (2 ** 15, 0) and ours[6] == (2 ** 15, 0)
    # a captured CUDA graph reads the scale where it was
    assert scaler.scale is tensors[0] and scaler.good_steps is tensors[1]
    again = LossScaler()
    again.load(scaler.metadata())
    assert again.metadata() == scaler.metadata()


def test_the_scale_does_not_fall_below_one():
    scaler = LossScaler()
    for _ in range(40):
        scaler.update(BAD)
    assert scaler.scale == loss_scaling.MIN_SCALE


class Line(torch.nn.Module):
    """A model of one weight, for gradients that are known."""
    kept_latents = None

    def __init__(self, blow_up=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.blow_up = blow_up

    def forward(self, x, t, y, covariates):
        out = torch.cat([x, x], 1) * self.weight
        out.register_hook(lambda g: g * self.blow_up) if out.requires_grad else None
        return out


def batch():
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    return x0, torch.tensor([5, 700]), torch.tensor([0, 0]), noise, torch.zeros(2, 0)


def gradient(model, scaler):
    model.weight.grad = None
    _, is_bad = compute_gradients(model, batch(), [model.weight], global_batch_size=2,
                                  precision="fp32", loss_scaler=scaler)
    return model.weight.grad.clone(), is_bad


def test_gradients_are_unscaled_and_overflow_is_found():
    plain, _ = gradient(Line(), None)
    scaled, is_bad = gradient(Line(), LossScaler())
    assert torch.equal(plain, scaled) and is_bad == 0  # a power of two is exact
    overflowing, is_bad = gradient(Line(blow_up=1e36), LossScaler())  # finite but for the scale
    assert not overflowing.isfinite() and is_bad == 1
    assert gradient(Line(blow_up=1e30), None)[1] == 0


class Log:
    """Stands for a Run."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class Drawn:
    """Stands for Batches: every step draws volume 0."""

    class Step:
        index = torch.tensor([0])

    def drawn(self, step):
        return self.Step


def train(losses):
    """Steps of given losses, all with gradients that overflowed."""
    model = Line()
    state = TrainingState({"weight": model.weight}, lr=0.1, loss_scaler=LossScaler())
    for step, loss in enumerate(losses, 1):
        model.weight.grad = torch.tensor(math.inf)
        state.step = step
        state.update(torch.tensor([loss, loss, 0.0]), BAD, lr=0.1)
    assert model.weight == 0.5
    assert state.loss_scaler.scale == max(2.0 ** (16 - len(losses)), loss_scaling.MIN_SCALE)
    log = Log()
    bookkeeping.report_skipped_steps(log, state, Drawn(), [{"id": "sub-1"}], lr=0.1,
                                     tolerate=False)
    return log.lines


def test_an_overflow_is_no_error_but_a_loss_that_is_not_finite_is():
    lines = train([1.0, 2.0])
    assert len(lines) == 2 and "step 1 skipped: fp16 gradients overflowed" in lines[0]
    with pytest.raises(UserError, match="loss nan at step 2, .* on the volumes sub-1"):
        train([1.0, math.nan])
    with pytest.raises(UserError, match="at step 20, or a gradient that is not finite"):
        train([1.0] * 20)  # so many in a row are not the scale's fault
