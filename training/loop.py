"""The training loop: steps, log lines, checkpoints and previews, until done or asked to stop."""
import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

from training import bookkeeping, step
from training.cuda_graphs import GraphedGradients
from utils import distributed
from utils.errors import EXIT_STOPPED


@dataclass(frozen=True)
class LoopOptions:
    """The options of the training loop.

    :param max_steps: last step
    :param lr, lr_schedule: see `step.learning_rate`
    :param global_batch_size: volumes per step, over all processes
    :param accum: parts in which a process computes its share of a batch
    :param precision: compute dtype, see utils.precision
    :param skip_nonfinite: skip steps whose loss or gradient is not finite; else stop
    :param log_every, ckpt_every, sample_every: steps between log lines, checkpoints and preview
        mosaics; sample_every may be 0: never
    :param keep, keep_every: checkpoints to keep, see `Run.save_state`
    :param vae: name or folder of the VAE that decodes previews
    :param seed: of the run
    :param cuda_graphs: compute gradients by CUDA graphs
    """
    max_steps: int
    lr: float
    lr_schedule: str
    global_batch_size: int
    accum: int
    precision: str
    device: str
    skip_nonfinite: bool
    log_every: int
    ckpt_every: int
    keep: int | None
    keep_every: int | None
    sample_every: int
    vae: str
    seed: int
    cuda_graphs: bool = False


def train(model, state, batches, options, *, run, entries, metadata, stop_watch,
          held_out=None):
    """Trains from `state.step` up to `options.max_steps`, or until asked to stop.

    :param state: TrainingState
    :param batches: step.Batches
    :param options: LoopOptions
    :param run: the Run in process 0, which alone writes; None in the others
    :param entries: of the manifest, for the names of the volumes
    :param metadata: of the run's checkpoints
    :param stop_watch: StopWatch
    :param held_out: HeldOutLoss; None: it is not measured
    :return: exit code
    """
    bar = progress_bar(state.step, options.max_steps, is_shown=run and sys.stderr.isatty())
    stop, end = False, state.step == options.max_steps
    preview = begin_previews(options, run, metadata)
    begin_held_out(model, state, held_out, run, options.max_steps)
    gradients = GraphedGradients() if options.cuda_graphs else step.compute_gradients
    clock, clock_step = time.monotonic(), state.step
    while not (stop or end):
        state.step += 1
        lr = take_step(model, state, batches, options, gradients)
        bar.update()

        end = state.step == options.max_steps
        stop, overdue = stop_watch.decide()
        stop = stop and not end     # what belongs to the last step is done in any case
        checkpoint_due = end or state.step % options.ckpt_every == 0
        measure_due = held_out is not None and held_out.is_due(state.step, end)
        # also before the held-out loss, which takes long: a job killed meanwhile loses nothing
        save_due = checkpoint_due or stop or overdue or measure_due
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
            clock += sample_preview(model, state, options, run, metadata, preview, stop)
        if measure_due and not stop:  # a run that is stopped measures when it resumes
            clock += measure_held_out(model, state, held_out, run)
    bar.close()
    if run:
        close(run, state, held_out, options.max_steps, stop_watch)
    # until process 0 has saved: torchrun ends the others as soon as one has ended
    distributed.barrier()
    return 0 if end else EXIT_STOPPED


def close(run, state, held_out, max_steps, stop_watch):
    """Says how the run ended, and its best step, if it is at its end."""
    if held_out and state.step == max_steps:
        bookkeeping.say_best_step(run, held_out)
    bookkeeping.say_how_it_ended(run, state.step, max_steps, stop_watch)
    run.close_trackers()


def progress_bar(first_step, last_step, is_shown):
    return tqdm(total=last_step, initial=first_step, desc="steps", disable=not is_shown,
                dynamic_ncols=True)


def take_step(model, state, batches, options, gradients):
    """One step of the optimizer; returns its learning rate.

    :param gradients: `step.compute_gradients`, or GraphedGradients
    """
    lr = step.learning_rate(state.step, lr=options.lr, schedule=options.lr_schedule,
                            max_steps=options.max_steps)
    losses, is_bad = gradients(
        model, batches.take(state.step), list(state.trained.values()), accum=options.accum,
        device=options.device, global_batch_size=options.global_batch_size,
        precision=options.precision, loss_scaler=state.loss_scaler)
    state.update(losses, is_bad, lr)
    state.optimizer.zero_grad(set_to_none=True)
    return lr


def begin_previews(options, run, metadata):
    """Says which covariates the previews have. Returns the Preview, or None if there are none."""
    if not (run and options.sample_every):
        return None
    preview = bookkeeping.choose_preview(metadata, options.seed, run.folder)
    line = preview.describe(metadata["header"]["classes"])
    if line:
        run.say(line)
    return preview


def sample_preview(model, state, options, run, metadata, preview, is_stopping):
    """Samples a mosaic into the run folder, and shows it and its three views. Returns the seconds
    it took.

    :param is_stopping: there is no preview then, as the job may be killed before it is done
    """
    if is_stopping:
        run.say(f"step {state.step}: no preview, as the run stops")
        return 0
    began = time.monotonic()
    mosaic = bookkeeping.sample_preview(
        run.folder / "samples" / f"{state.step:07d}.png", model, state, metadata["config"],
        vae=options.vae, device=options.device, seed=options.seed, precision=options.precision,
        preview=preview)
    bookkeeping.show_preview(run, state.step, mosaic, metadata["header"])
    return time.monotonic() - began


def is_done(step, max_steps, held_out, run):
    """Whether nothing is left to do: not even the held-out loss of the last step.

    :param step: the run's last so far
    :param held_out, run: see `train`
    """
    return step > max_steps or (
        step == max_steps and not lacks_held_out(step, max_steps, held_out, run))


def lacks_held_out(step, max_steps, held_out, run):
    """Whether the job that saved this step had no time for its held-out loss; in all processes."""
    is_lacking = run and held_out is not None and bookkeeping.lacks_held_out(
        run, held_out, step, is_last=step == max_steps)
    return distributed.broadcast_json(is_lacking)


def begin_held_out(model, state, held_out, run, max_steps):
    """Says what is measured, if anything is, and measures what the job before this one had no time
    for."""
    if held_out is None:
        return
    if run:
        run.say(held_out.describe())
    if lacks_held_out(state.step, max_steps, held_out, run):
        measure_held_out(model, state, held_out, run)


def measure_held_out(model, state, held_out, run):
    """Measures the held-out loss, in all processes, and logs it. Returns the seconds it took."""
    began = time.monotonic()
    measured = held_out.measure(model, state)
    seconds = time.monotonic() - began
    if run:
        bookkeeping.log_held_out(run, held_out, state.step, measured, seconds)
    return seconds
