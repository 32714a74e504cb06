"""What a run writes about itself: log lines, skipped steps, checkpoints, preview mosaics."""
import math
from dataclasses import dataclass

import torch

from diffusion import samplers
from diffusion import vae as vae_module
from mri.mosaic import untile
from mri.mosaic_files import write_mosaic
from mri.view_images import view_images
from training import run_identity
from training.checkpoint import save_checkpoint
from training.condition_choice import choose_as_in_training, describe_row
from training.conditions import with_covariates
from training.log_lines import read_entries
from utils import distributed
from utils.errors import UserError
from utils.precision import autocast
from utils.seeding import seeded_generator

MAX_SKIPPED_IN_A_ROW = 20  # after that the weights are to blame, not a batch
# deterministic samplers keep the errors of a model at the beginning of its training, which would
# look worse than it is
PREVIEW_SAMPLER, PREVIEW_STEPS = "ddpm", 50


def announce(run, model, state, *, name, method, volumes, precision, device, notes,
             wandb_project=None):
    """Opens the logs and says what is about to happen.

    :param name: of the model
    :param method: the tuning method in words
    :param volumes: number of volumes to train on
    :param notes: lines for the log; those that are None are left out
    :param wandb_project: see `Run.open_logs`
    """
    run.open_logs(state.step, wandb_project)
    values = sum(p.numel() for p in state.trained.values())
    tokens = f"{model.grid ** 2:,}"
    if model.kept_tokens is not None:
        tokens = f"{model.computed_tokens:,} of {tokens}"
    message = (f"{run.folder}: {name} on {volumes} mosaics, --tune {method}: "
               f"{values:,} trainable parameters, {tokens} tokens, {precision} on {device}")
    if distributed.world_size() > 1:
        message += (f", {distributed.world_size()} processes, {4 * values / 1e6:.1f} MB reduced "
                    "per step")
    if state.step:
        message += f"; resumes at step {state.step}"
    for line in (message, *filter(None, notes)):
        run.say(line)


def log_held_out(run, held_out, step, measured, seconds):
    """Writes a held-out loss to the logs, and says which step had the lowest so far.

    :param held_out: HeldOutLoss
    :param measured: its Measured
    :param seconds: that it took
    """
    run.record(held_out.entry(step, measured), "held_out")
    best = best_entry(run, held_out)
    if best is None:
        run.say(f"step {step}: the held-out loss is not finite")
        return
    which = "the lowest so far"
    if best["step"] != step:
        which = f"lowest so far {best['held_out_loss']:.5f} at step {best['step']}"
    run.say(f"step {step}: held-out loss {measured.held_out:.5f} ({held_out.split}), training "
            f"volumes measured alike {measured.training:.5f}, {seconds:.1f} s; {which}")


def best_entry(run, held_out):
    """The line of log.jsonl with the lowest held-out loss of these volumes; None if none has one.

    The log knows it, which a resumed run continues: it needs no place in the states.
    """
    entries = [entry for entry in read_entries(run.log_path) if entry.get("key") == held_out.key
               and isinstance(entry.get("held_out_loss"), float)]
    return min(entries, key=lambda entry: entry["held_out_loss"], default=None)


def lacks_held_out(run, held_out, step, is_last):
    """Whether the job that saved this step ended before it had measured the held-out loss."""
    return step > 0 and held_out.is_due(step, is_last) and not any(
        entry["step"] == step and entry.get("key") == held_out.key
        for entry in read_entries(run.log_path))


def say_best_step(run, held_out):
    """Says which step had the lowest held-out loss, and whether there is a checkpoint of it."""
    best = best_entry(run, held_out)
    if best is None:
        return
    step = best["step"]
    path = run.checkpoints / f"{step:07d}.safetensors"
    kept = str(path)
    if not path.is_file():
        kept = "its checkpoint was not kept"
        steps = [int(other.stem) for other in run.checkpoint_files()]
        if steps:
            nearest = min(steps, key=lambda other: abs(other - step))
            kept += (f", the nearest is of step {nearest}; see --ckpt-every, --keep and "
                     "--keep-every")
    run.say(f"lowest held-out loss {best['held_out_loss']:.5f} at step {step}: {kept}")


def say_how_it_ended(run, last_step, max_steps, stop_watch):
    """Says whether training is done, or how to continue."""
    if last_step == max_steps:
        run.say(f"done: {run.checkpoints / f'{last_step:07d}.safetensors'}")
    else:
        run.say(f"stopped by {stop_watch.reason()} after step {last_step}/{max_steps}, saved; "
                "the same command resumes")


def say_that_it_is_done(run, step, flags):
    """Says that a run has all its steps, and how to train further. Returns the exit code.

    :param run: the Run, or None in a process that does not write
    :param step: its last
    :param flags: {name: value} of all flags, as `args.json` holds them
    """
    if run is None:
        return 0
    how = f"a higher --{'epochs' if flags['epochs'] else 'max-steps'} to continue this one"
    if run_identity.depends_on_its_end(flags):
        how = ("its checkpoint as --ckpt of another run, as --lr-schedule cosine and --full-steps "
               "end with the last step")
    print(f"{run.folder} has its {step} steps already; give --resume none for another run, or "
          f"{how}")
    return 0


def log_means(run, state, *, max_steps, lr, steps_per_second, batch_size):
    """Writes the mean losses since the last log line to the logs."""
    loss = mse = vb = None
    figures = "no finite loss"
    if state.log_count:
        loss, mse, vb = (state.log_sums / state.log_count).tolist()
        figures = f"loss {loss:.4f} (mse {mse:.4f}, vb {vb:.5f})"
    entry = dict(step=state.step, loss=loss, mse=mse, vb=vb, lr=lr, skipped=state.skipped)
    run.record(entry, "train", {"images_per_s": round(steps_per_second * batch_size, 4)})
    skipped = f", {state.skipped} steps skipped" if state.skipped else ""
    hours = (max_steps - state.step) / steps_per_second / 3600
    run.say(f"step {state.step}/{max_steps}: {figures}, {steps_per_second:.3g} steps/s, "
            f"{hours:.2f} h left, {state.lag.describe()}{skipped}")


def report_skipped_steps(run, state, batches, entries, *, lr, tolerate):
    """Asks the device which steps were not finite, and names their volumes.

    Under fp16 a gradient that overflows although the loss is finite only lowers the loss scale.

    :param run: the Run, or None in a process that does not write
    :param batches: Batches, to draw the volumes of a step again
    :param entries: manifest entries, for the names of the volumes
    :param tolerate: log such steps and continue, unless there are too many in a row
    :raises UserError: there were some, and they are not tolerated
    """
    for skipped in state.settle():
        is_overflow = state.loss_scaler is not None and math.isfinite(skipped.loss)
        if is_overflow and skipped.in_a_row < MAX_SKIPPED_IN_A_ROW:
            if run:
                run.say(f"step {skipped.step} skipped: fp16 gradients overflowed, the loss scale "
                        "is halved")
            continue
        volumes = ", ".join(entries[i]["id"] for i in batches.drawn(skipped.step).index.tolist())
        what = (f"loss {skipped.loss:g} at step {skipped.step}, or a gradient that is not finite, "
                f"on the volumes {volumes}")
        if not tolerate or skipped.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            count = f" ({skipped.in_a_row} steps in a row were skipped)" if tolerate else ""
            raise UserError(f"--lr {lr:g}: {what}; use a lower rate, look at these volumes, or "
                            f"give --skip-nonfinite. Earlier checkpoints are intact{count}")
        if run:
            run.say(f"skipped: {what}")


def save(run, state, metadata, *, with_checkpoint, keep, keep_every, lr):
    """Writes the state to resume from and, before it, a checkpoint to sample from if one is due.

    :param keep, keep_every: see `Run.save_state`
    :raises UserError: weights are not finite
    """
    tensors = [tensor for named in state.weights().values() for tensor in named.values()]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise UserError(f"--lr {lr:g}: the weights are no longer finite at step {state.step}; "
                        "use a lower rate. Earlier checkpoints are intact")
    if with_checkpoint:
        path = run.checkpoints / f"{state.step:07d}.safetensors"
        save_checkpoint(path, dict(metadata, step=state.step, average=state.lag.metadata()),
                        **state.weights())
    run.save_state(state.step, metadata | state.metadata(), state.groups(), keep, keep_every)


@dataclass(frozen=True)
class Preview:
    """What previews are of: sample 0 of sample.py --conditions cohort, of the same seed.

    :param class_index: its class
    :param row: its covariates, {name: value}, those of a training volume; None: the model takes
        none
    :param covariates: the same for the network, (1, K), or None
    """
    class_index: int = 0
    row: dict | None = None
    covariates: torch.Tensor | None = None

    def describe(self, names):
        """A line for the log; None if there are no covariates.

        :param names: of the classes
        """
        if self.row is None:
            return None
        values = describe_row(self.row) or "no covariates"
        return (f"--sample-every: previews have class {names[self.class_index]} and {values}, "
                "those of one training volume")


def choose_preview(metadata, seed, path):
    """The Preview of a run.

    :param metadata: of its checkpoints
    :param path: of the run, for errors
    """
    choice, class_index = choose_as_in_training(metadata, path)
    if choice.conditions is None:
        return Preview(class_index)
    row = choice.of_sample(seed, 0, class_index)
    return Preview(class_index, row, choice.encode([row]))


def show_preview(run, step, mosaic, header):
    """Shows a sampled mosaic, and the three views of its volume.

    :param mosaic: (H, W, 3) uint8
    :param header: of the data folder, for layout and proportions
    """
    volume = untile(mosaic, header["size"], header["layout"])
    views = view_images(volume, header["affine"])
    run.show(step, {"samples/mosaic": mosaic,
                    **{f"samples/{view}": image for view, image in views.items()}})


def sample_preview(path, model, state, config, *, vae, seed, precision, device,
                   preview=Preview()):
    """Writes one mosaic sampled from the EMA weights, to look at while training continues.

    The VAE is loaded for the one mosaic and freed after it.

    :param config: constructor arguments of the model
    :param vae: name or folder of the VAE
    :param preview: Preview
    :return: the mosaic, (H, W, 3) uint8
    """
    shape = (config["in_channels"], config["input_size"], config["input_size"])
    with state.averaged_weights(), autocast(device, precision):
        latents = samplers.sample(
            with_covariates(model, preview.covariates, device), shape,
            torch.tensor([preview.class_index]), model.num_classes, [seeded_generator(seed, 0)],
            PREVIEW_SAMPLER, PREVIEW_STEPS, device=device)
    if state.foreground:
        latents = state.foreground.fill(latents, model.kept_latents)
    path.parent.mkdir(exist_ok=True)
    mosaic = vae_module.decode(vae_module.load_vae(vae, device), latents)[0]
    write_mosaic(path, mosaic)
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # the VAE's memory, for other processes on this GPU
    return mosaic
