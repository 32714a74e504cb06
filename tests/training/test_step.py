"""The pieces of a training step, where running the script would not show them."""
import argparse

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models
from diffusion import gaussian_diffusion as diffusion
from training import finetuning
from training.state import TrainingState
from training.step import Batches, compute_gradients, draw_step


def options(**changed):
    usual = dict(global_seed=3, global_batch_size=4, accum=2, label_dropout=0.5, prefetch=True, max_steps=9, lr=1e-2,
                 lr_schedule="constant", weight_decay=0.1, ema_decay=0.75, device="cpu", precision="fp32")
    return argparse.Namespace(**usual | changed)


def setting(**changed):
    torch.manual_seed(0)
    args = options(**changed)
    model = models.DiT(input_size=8, hidden_size=64, depth=2, num_heads=2, num_classes=3)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    batches = Batches(torch.randn(5, 8, 8, 8), torch.tensor([0, 1, 2, 0, 1]), dict(scaling_factor=0.5), 3, args)
    trained = finetuning.set_trainable(model, "difffit")
    return model, batches, TrainingState(trained, args), args


def one_step(model, batches, state, args, spoil=False):
    state.step += 1
    losses, bad = compute_gradients(model, batches.take(state.step), list(state.trained.values()), args)
    state.update(losses * float("nan") if spoil else losses, torch.ones_like(bad) if spoil else bad)
    state.optimizer.zero_grad(set_to_none=True)
    return losses


def snapshot(state):
    return {f"{g}.{k}": t.detach().clone() for g, named in state.groups().items() for k, t in named.items()}


def test_batches_are_the_steps_draws_in_any_order():
    _, ahead, _, args = setting()
    index, t, noise, vae_noise, drop = draw_step(3, 2, 5, 4, (4, 8, 8), 0.5)
    mean, std = ahead.moments[index].chunk(2, 1)
    expected = (mean + std * vae_noise) * 0.5, t, torch.where(drop, 3, ahead.labels[index]), noise
    _, plain, _, _ = setting(prefetch=False)
    for step in (1, 2, 3, 2, 9):  # in turn from the thread, back and forth without it
        assert all(torch.equal(a, b) for a, b in zip(ahead.take(step), plain.take(step)))
        if step == 2:
            assert all(torch.equal(a, b) for a, b in zip(plain.take(2), expected))
    assert drop.any() and not drop.all()


def test_update_is_adamw_and_an_average():
    model, batches, state, args = setting()
    reference = {k: p.detach().clone().requires_grad_() for k, p in state.trained.items()}
    optimizer = torch.optim.AdamW(reference.values(), 1e-2, weight_decay=0.1, foreach=False)
    ema = {k: p.detach().clone() for k, p in reference.items()}
    for step in (1, 2, 3):
        losses, bad = compute_gradients(model, batches.take(step), list(state.trained.values()), args)
        for k, p in reference.items():
            p.grad = state.trained[k].grad.clone()
        state.step += 1
        state.update(losses, bad)
        state.optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        for k, p in reference.items():
            ema[k] = 0.75 * ema[k] + 0.25 * p.detach()
            assert torch.allclose(state.trained[k], p, atol=1e-6) and torch.allclose(state.ema[k], ema[k], atol=1e-6), (step, k)
    assert state.settle() == [] and state.count == 3


def test_a_bad_step_changes_nothing_and_is_told_when_asked():
    model, batches, state, args = setting()
    good, bad_run = [], [False, True, False, True, True, True]
    for spoil in bad_run:
        before = snapshot(state)
        losses = one_step(model, batches, state, args, spoil)
        changed = [k for k, v in snapshot(state).items() if not torch.equal(v, before[k])]
        assert bool(changed) != spoil
        if not spoil:
            good.append(losses)
    told = state.settle()
    assert [(step, row) for step, _, row in told] == [(2, 1), (4, 1), (5, 2), (6, 3)] and all(loss != loss for _, loss, _ in told)
    assert state.settle() == [] and (state.skipped, state.count) == (4, 2)
    assert torch.allclose(state.sums, sum(good)) and {int(s["step"]) for s in state.optimizer.state.values()} == {2}
    one_step(model, batches, state, args, True)
    assert [(step, row) for step, _, row in state.settle()] == [(7, 4)]  # the row goes on
    assert state.meta()["skipped"] == 5 and state.meta()["log_count"] == 2


def test_gradients_know_when_they_are_not_finite():
    model, batches, state, args = setting(accum=1)
    trained = list(state.trained.values())
    assert compute_gradients(model, batches.take(1), trained, args)[1] == 0
    x0, t, y, noise = batches.take(2)
    x0[1, 0, 0, 0] = float("inf")
    assert compute_gradients(model, (x0, t, y, noise), trained, args)[1] == 1
    for p in trained:
        p.grad = None
    trained[0].register_hook(lambda g: g * float("inf"))  # of a loss that is finite
    losses, bad = compute_gradients(model, batches.take(3), trained, args)
    assert losses.isfinite().all() and bad == 1


class NoValueLeavesTheDevice(TorchDispatchMode):
    """Raises where a tensor's value becomes a Python number, for which the host would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(precision):
    model, batches, state, args = setting(precision=precision)
    model.save_memory(True, 2)
    one_step(model, batches, state, args)  # what is set up at the first
    batch, copies = batches.take(2), diffusion._on_device.cache_info().misses
    with NoValueLeavesTheDevice():
        state.step += 1
        state.update(*compute_gradients(model, batch, list(state.trained.values()), args))
        with pytest.raises(AssertionError, match="waits"):
            bool(state.sums.sum() > 0)
    assert diffusion._on_device.cache_info().misses == copies  # the tables are there already
