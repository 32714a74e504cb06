"""The training loop: what its speed is of."""
from pathlib import Path
from types import SimpleNamespace

import torch

from training import bookkeeping, loop


class Clock:
    """Stands for the module time; goes by when it is told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


def test_the_speed_is_that_of_steps_alone(monkeypatch):
    """A step takes 2 s, a preview 100 s, and a held-out loss 1,000 s."""
    clock, speeds = Clock(), []
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "take_step", lambda *_: clock.advance(2) or 1e-3)
    monkeypatch.setattr(loop, "begin_previews", lambda *_: bookkeeping.Preview())
    for name, seconds in (("sample_preview", 100), ("log_held_out", 0), ("show_preview", 0),
                          ("report_skipped_steps", 0), ("save", 0), ("say_best_step", 0),
                          ("say_how_it_ended", 0)):
        monkeypatch.setattr(bookkeeping, name,
                            lambda *_, seconds=seconds, **__: clock.advance(seconds))
    monkeypatch.setattr(bookkeeping, "log_means",
                        lambda *_, steps_per_second, **__: speeds.append(steps_per_second))
    monkeypatch.setattr(bookkeeping, "lacks_held_out", lambda *_: False)
    held_out = SimpleNamespace(describe=str, is_due=lambda step, _: step % 2 == 0,
                               measure=lambda *_: clock.advance(1000))
    state = SimpleNamespace(step=0, trained={"b": torch.zeros(1)}, start_log_line=lambda: None)
    options = loop.LoopOptions(
        max_steps=6, lr=1e-3, lr_schedule="constant", global_batch_size=1, accum=1,
        precision="fp32", device="cpu", skip_nonfinite=False, log_every=3, ckpt_every=2, keep=None,
        keep_every=None, sample_every=1, vae="v", seed=0)
    code = loop.train(
        None, state, None, options, entries=[],
        run=SimpleNamespace(folder=Path("r"), say=print, close_trackers=lambda: None),
        metadata={"config": {}, "header": {}}, held_out=held_out,
        stop_watch=SimpleNamespace(decide=lambda: (False, False), saved=lambda: None))
    assert code == 0 and speeds == [0.5, 0.5]
