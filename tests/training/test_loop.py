"""The training loop: what its speed is of, and what it leaves out when it is asked to stop."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training import bookkeeping, loop
from utils.errors import EXIT_STOPPED

SECONDS = {"step": 2, "preview": 100, "held-out loss": 1000}


@pytest.fixture
def train(monkeypatch):
    """loop.train of 6 steps on a clock of its own: logs every third step, a preview after each, a
    held-out loss after every second."""
    clock, found = [0.0], SimpleNamespace(speeds=[], previews=0, said=[])

    def work(kind):
        clock[0] += SECONDS[kind]

    def preview(*_, **__):
        found.previews += 1
        work("preview")

    def log_means(*_, steps_per_second, **__):
        found.speeds.append(steps_per_second)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "take_step", lambda *_: work("step"))
    monkeypatch.setattr(loop, "begin_previews", lambda *_: bookkeeping.Preview())
    monkeypatch.setattr(bookkeeping, "sample_preview", preview)
    monkeypatch.setattr(bookkeeping, "log_means", log_means)
    for name in ("lacks_held_out", "log_held_out", "show_preview", "report_skipped_steps", "save",
                 "say_best_step", "say_how_it_ended"):
        monkeypatch.setattr(bookkeeping, name, lambda *_, **__: None)
    options = loop.LoopOptions(
        max_steps=6, lr=1e-3, lr_schedule="constant", global_batch_size=1, accum=1,
        precision="fp32", device="cpu", skip_nonfinite=False, log_every=3, ckpt_every=2, keep=None,
        keep_every=None, sample_every=1, vae="v", seed=0)
    run = SimpleNamespace(folder=Path("r"), say=found.said.append, close_trackers=lambda: None)
    held_out = SimpleNamespace(describe=str, is_due=lambda step, _: step % 2 == 0,
                               measure=lambda *_: work("held-out loss"))

    def train(stop_at=None):
        state = SimpleNamespace(step=0, trained={"b": torch.zeros(1)}, start_log_line=lambda: None)
        watch = SimpleNamespace(decide=lambda: (state.step == stop_at, False), saved=lambda: None)
        found.code = loop.train(None, state, None, options, run=run, entries=[], stop_watch=watch,
                                metadata={"config": {}, "header": {}}, held_out=held_out)
        return found

    return train


def test_the_speed_is_that_of_steps_alone(train):
    found = train()
    assert (found.code, found.previews) == (0, 6)
    assert found.speeds == [1 / SECONDS["step"]] * 2


def test_a_run_that_stops_has_no_time_for_a_preview(train):
    found = train(stop_at=3)
    assert (found.code, found.previews) == (EXIT_STOPPED, 2)
    assert "step 3: no preview, as the run stops" in found.said


def test_a_last_step_has_its_preview_even_if_it_is_asked_to_stop(train):
    found = train(stop_at=6)
    assert (found.code, found.previews) == (0, 6)
