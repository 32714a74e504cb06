"""The training loop: steps, and after each what is due: a log line, a save, a preview mosaic."""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training import bookkeeping, step
from utils import distributed
from utils.errors import EXIT_STOPPED


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How to train, and when to write; the flags of train.py of the same names."""
    lr: float
    lr_schedule: str
    max_steps: int
    global_batch_size: int
    accum: int
    precision: str
    device: str
    seed: int
    vae: str
    skip_nonfinite: bool = False
    log_every: int = 100
    ckpt_every: int = 5000
    keep: int | None = None
    keep_every: int | None = None
    sample_every: int = 0


def train(options, *, model, config, state, batches, run, entries, metadata, stop_watch):
    """Trains up to `options.max_steps`, or until asked to stop.

    :param options: LoopOptions
    :param model: DiT on its device
    :param config: its constructor arguments
    :param state: TrainingState
    :param batches: Batches
    :param run: the Run in process 0, which alone writes; None in the others
    :param entries: manifest entries of the volumes, for their names
    :param metadata: what checkpoints record
    :param stop_watch: StopWatch
    :return: exit code
    """
    parameters = list(state.trained.values())
    show_bar = run is not None and sys.stderr.isatty()
    bar = tqdm(total=options.max_steps, initial=state.step, desc="steps", disable=not show_bar,
               dynamic_ncols=True)
    clock, clock_step = time.monotonic(), state.step
    stop = end = False
    while not (stop or end):
        state.step += 1
        lr = step.learning_rate(state.step, lr=options.lr, schedule=options.lr_schedule,
                                max_steps=options.max_steps)
        losses, is_bad = step.compute_gradients(
            model, batches.take(state.step), parameters, accum=options.accum,
            device=options.device, global_batch_size=options.global_batch_size,
            precision=options.precision, loss_scaler=state.loss_scaler)
        state.update(losses, is_bad, lr)
        state.optimizer.zero_grad(set_to_none=True)
        bar.update()

        end = state.step == options.max_steps
        stop, overdue = stop_watch.decide()
        checkpoint_due = end or state.step % options.ckpt_every == 0
        save_due = checkpoint_due or stop or overdue
        log_due = end or state.step % options.log_every == 0
        if log_due or save_due:
            bookkeeping.report_skipped_steps(run, state, batches, entries, lr=options.lr,
                                             tolerate=options.skip_nonfinite)
        if log_due:
            speed = (state.step - clock_step) / (time.monotonic() - clock)
            if run:
                bookkeeping.log_means(run, state, max_steps=options.max_steps, lr=lr,
                                      steps_per_second=speed,
                                      batch_size=options.global_batch_size)
            state.start_log_line()
            clock, clock_step = time.monotonic(), state.step
        if run and save_due:
            bookkeeping.save(run, state, metadata, with_checkpoint=checkpoint_due, lr=options.lr,
                             keep=options.keep, keep_every=options.keep_every)
            stop_watch.saved()
        if run and options.sample_every and state.step % options.sample_every == 0:
            _preview(options, run, model, state, config)
    bar.close()
    if run:
        _say_how_it_ended(run, state.step, options.max_steps, end, stop_watch)
    # until process 0 has saved: torchrun ends the others as soon as one has ended
    distributed.barrier()
    return 0 if end else EXIT_STOPPED


def _preview(options, run, model, state, config):
    path = Path(run.folder) / "samples" / f"{state.step:07d}.png"
    bookkeeping.sample_preview(path, model, state, config, vae=options.vae, device=options.device,
                               seed=options.seed, precision=options.precision)


def _say_how_it_ended(run, last_step, max_steps, end, stop_watch):
    if end:
        run.say(f"done: {run.checkpoints / f'{last_step:07d}.safetensors'}")
    else:
        run.say(f"stopped by {stop_watch.reason()} after step {last_step}/{max_steps}, saved; "
                "the same command resumes")
