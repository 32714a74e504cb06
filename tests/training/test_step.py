"""The pieces of a training step, where running the script would not show them."""
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models
from diffusion import gaussian_diffusion
from training import finetuning
from training.state import TrainingState
from training.step import Batches, compute_gradients, draw_step, learning_rate

LR = 1e-2


class Setting:
    """A small model with random weights, its batches and its state."""

    def __init__(self, accum=2, precision="fp32", prefetch=True):
        torch.manual_seed(0)
        self.accum, self.precision = accum, precision
        self.model = models.DiT(input_size=8, hidden_size=64, depth=2, num_heads=2, num_classes=3)
        for p in self.model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        self.batches = Batches(
            torch.randn(5, 8, 8, 8), torch.tensor([0, 1, 2, 0, 1]), dict(scaling_factor=0.5), 3,
            seed=3, global_batch_size=4, label_dropout=0.5, last_step=9, device="cpu",
            prefetch=prefetch)
        trained = finetuning.set_trainable(self.model, "difffit")
        self.state = TrainingState(trained, lr=LR, weight_decay=0.1, ema_decay=0.75)
        self.parameters = list(trained.values())

    def gradients(self, batch):
        return compute_gradients(self.model, batch, self.parameters, global_batch_size=4,
                                 accum=self.accum, precision=self.precision)

    def step(self, spoil=False):
        self.state.step += 1
        losses, is_bad = self.gradients(self.batches.take(self.state.step))
        if spoil:
            self.state.update(losses * math.nan, torch.ones_like(is_bad), LR)
        else:
            self.state.update(losses, is_bad, LR)
        self.state.optimizer.zero_grad(set_to_none=True)
        return losses

    def snapshot(self):
        return {f"{group}.{name}": tensor.detach().clone()
                for group, named in self.state.groups().items() for name, tensor in named.items()}


@pytest.mark.parametrize("threads", [1, 3])     # as for a CPU, and as for a GPU
def test_batches_are_the_steps_draws_in_any_order(monkeypatch, threads):
    ahead, plain = Setting().batches, Setting(prefetch=False).batches
    monkeypatch.setattr(ahead, "ahead", threads)
    monkeypatch.setattr(ahead, "_pool", ThreadPoolExecutor(threads))
    index, t, noise, vae_noise, drop, *_ = draw_step(3, 2, 5, 4, (4, 8, 8), 0.5)
    mean, std = ahead.moments[index].chunk(2, 1)
    y = torch.where(drop, 3, ahead.labels[index])
    expected = (mean + std * vae_noise) * 0.5, t, y, noise, torch.zeros(4, 0)
    for step in (1, 2, 3, 2, 9):  # in turn from the thread, out of order without it
        assert all(torch.equal(a, b) for a, b in zip(ahead.take(step), plain.take(step)))
        assert sorted(ahead._next) == [s for s in range(step + 1, step + threads + 1)
                                       if s <= ahead.last_step]
        if step == 2:
            assert all(torch.equal(a, b) for a, b in zip(plain.take(2), expected))
    assert drop.any() and not drop.all()


def test_steps_draw_one_of_the_variants_and_nothing_else_changes():
    one, three = (draw_step(3, 2, 5, 400, (1, 2, 2), 0.5, variants) for variants in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one[:5], three[:5]))
    assert not one.variant.any() and three.variant.unique().tolist() == [0, 1, 2]
    moments = torch.arange(15.0).view(15, 1, 1, 1).expand(15, 2, 4, 4).contiguous()
    moments[:, 1] = 0       # no noise of the posterior
    batches = Batches(
        moments, torch.zeros(5, dtype=torch.long), dict(scaling_factor=1), 3, seed=3,
        global_batch_size=8, label_dropout=0, last_step=9, device="cpu", variants=3)
    drawn, (x0, *_) = batches.drawn(2), batches.take(2)
    assert torch.equal(x0[:, 0, 0, 0], (drawn.index * 3 + drawn.variant).float())


def test_update_is_adamw_and_an_average():
    setting = Setting()
    state = setting.state
    reference = {k: p.detach().clone().requires_grad_() for k, p in state.trained.items()}
    optimizer = torch.optim.AdamW(reference.values(), LR, weight_decay=0.1, foreach=False)
    ema = {k: p.detach().clone() for k, p in reference.items()}
    for step in (1, 2, 3):
        losses, is_bad = setting.gradients(setting.batches.take(step))
        for k, p in reference.items():
            p.grad = state.trained[k].grad.clone()
        state.step += 1
        state.update(losses, is_bad, LR)
        state.optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        for k, p in reference.items():
            decay = (2 / 11, 3 / 12, 4 / 13)[step - 1]  # (1 + s) / (10 + s), below 0.75
            ema[k] = decay * ema[k] + (1 - decay) * p.detach()
            assert torch.allclose(state.trained[k], p, atol=1e-6), (step, k)
            assert torch.allclose(state.ema[k], ema[k], atol=1e-6), (step, k)
    assert state.settle() == [] and state.log_count == 3


def test_a_bad_step_changes_nothing_and_is_reported_when_asked():
    setting = Setting()
    state, good = setting.state, []
    for spoil in (False, True, False, True, True, True):
        before = setting.snapshot()
        losses = setting.step(spoil)
        changed = [k for k, v in setting.snapshot().items() if not torch.equal(v, before[k])]
        assert bool(changed) != spoil
        if not spoil:
            good.append(losses)
    skipped = state.settle()
    assert [(s.step, s.in_a_row) for s in skipped] == [(2, 1), (4, 1), (5, 2), (6, 3)]
    assert all(math.isnan(s.loss) for s in skipped)
    assert state.settle() == [] and (state.skipped, state.log_count) == (4, 2)
    assert torch.allclose(state.log_sums, sum(good))
    assert {int(s["step"]) for s in state.optimizer.state.values()} == {2}
    setting.step(spoil=True)
    assert [(s.step, s.in_a_row) for s in state.settle()] == [(7, 4)]  # the count continues
    assert state.metadata()["skipped"] == 5 and state.metadata()["log_count"] == 2


def test_gradients_know_when_they_are_not_finite():
    setting = Setting(accum=1)
    assert setting.gradients(setting.batches.take(1))[1] == 0
    x0, *others = setting.batches.take(2)
    x0[1, 0, 0, 0] = float("inf")
    assert setting.gradients((x0, *others))[1] == 1
    for p in setting.parameters:
        p.grad = None
    setting.parameters[0].register_hook(lambda g: g * float("inf"))  # of a loss that is finite
    losses, is_bad = setting.gradients(setting.batches.take(3))
    assert losses.isfinite().all() and is_bad == 1


def test_learning_rate_by_hand():
    def rates(schedule):
        steps = (1, 3, 5)
        return [learning_rate(s, lr=2.0, schedule=schedule, max_steps=4) for s in steps]

    assert rates("constant") == [2.0, 2.0, 2.0]
    assert rates("cosine") == pytest.approx([2.0, 1.0, 0.0])  # half of a cosine over 4 steps


class NoValueLeavesTheDevice(TorchDispatchMode):
    """Raises where a tensor's value becomes a Python number, for which the host would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_read = func is torch.ops.aten._local_scalar_dense.default
        assert not is_read, "the host waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(precision):
    setting = Setting(precision=precision)
    setting.model.save_memory(True, 2)
    setting.step()  # what is set up at the first
    batch = setting.batches.take(2)
    copies = gaussian_diffusion._table_on.cache_info().misses
    with NoValueLeavesTheDevice():
        setting.state.step += 1
        losses, is_bad = setting.gradients(batch)
        setting.state.update(losses, is_bad, LR)
        with pytest.raises(AssertionError, match="waits"):
            bool(setting.state.log_sums.sum() > 0)
    assert gaussian_diffusion._table_on.cache_info().misses == copies  # the tables are there
