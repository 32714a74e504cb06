"""Resuming: the run folder to continue in, with its newest state loaded, or a new one."""
from dataclasses import dataclass

from training import run_folder, run_identity
from training.run_folder import Run
from utils import distributed
from utils.errors import UserError
from utils.flags import flag_of

MAX_NAMED_FLAGS = 4    # that differ from the nearest run


@dataclass(frozen=True)
class OpenedRun:
    """The run folder of this training.

    :param run: the Run in process 0, None in the others
    :param notes: lines for its log
    """
    run: Run | None
    notes: tuple[str, ...] = ()


def open_run(state, metadata, *, results_dir, model, resume, flags):
    """Finds or creates the run folder, and loads its newest state into `state` in all processes.

    A run is what its flags and the contents of its files make it, wherever these files are.

    :param state: TrainingState
    :param metadata: what the run's checkpoints record
    :param results_dir, model, resume, flags: see `Run.find`
    :return: OpenedRun
    :raises UserError: see `Run.find`; or data, VAE or base weights changed
    """
    run, newest, notes = None, None, []
    if distributed.is_main():
        content = run_identity.content_of(metadata)
        run = Run.find(results_dir, model, resume, flags, content)
        newest = run.newest_state(flags) if run else None
        if newest:
            path, recorded = newest
            _check_unchanged(content, recorded, resume, run.folder)
            run.resume_from(path)
            if "identity" not in recorded:
                notes.append(f"{path.name} was written by an earlier version, which did not record "
                             "the run; it is assumed to belong to this one")
            newest = str(path.resolve()), recorded
        if run is None:
            note = _why_new(results_dir, flags, content) if resume == "auto" else None
            notes += [note] if note else []
            run = Run.create(results_dir, model, flags)
        run.identity = run_identity.identity(flags)
    newest = distributed.broadcast_json(newest)
    if newest:
        state.load(*newest)
        if flags["ema_warmup"] and not state.lag.warm_up:
            notes.append("the EMA continues without warm-up, as this run was started: "
                         f"{state.lag.describe()}")
    return OpenedRun(run, tuple(notes))


def _check_unchanged(content, recorded, resume, folder):
    theirs = run_identity.content_of(recorded)
    for key, what in run_identity.CONTENT.items():
        if content[key] != theirs[key]:
            raise UserError(f"--resume {resume}: {what} changed since {folder} was started; "
                            "restore it, or give --resume none")


# ------------------------------------------------------------------------------- why a run is new

def _why_new(results_dir, flags, content):
    """How a new run differs from the nearest one on the same data; None if there is none."""
    nearest = None
    for folder in sorted(results_dir.glob(run_folder.RUN_PATTERN), reverse=True):
        differences = _differences(folder, flags, content)
        if differences is not None and (nearest is None or len(differences) < len(nearest[1])):
            nearest = folder, differences
    if nearest is None:
        return None
    folder, differences = nearest
    if not differences:
        return f"a new run: another job is writing to {folder}, which has the same flags"
    more = len(differences) - MAX_NAMED_FLAGS
    rest = f", and {more} more flags" if more > 0 else ""
    return (f"a new run: it differs from {folder} in {', '.join(differences[:MAX_NAMED_FLAGS])}"
            f"{rest}")


def _differences(folder, flags, content):
    """What differs between a run and this one, in words; None if it is on other data."""
    try:
        theirs = run_folder.read_flags(folder)
    except (UserError, OSError):
        return None
    recorded = run_folder.recorded_content(folder)
    differences = [f"{flag_of(name)} ({flags[name]}, there {theirs.get(name)})"
                   for name in run_identity.differing_flags(flags, theirs)]
    if recorded is None:
        return differences if run_identity.has_same_paths(flags, theirs) else None
    has_other_vae = recorded["vae"] != content["vae"]
    if has_other_vae:  # the data's checksum is that of its latents: only the path can be compared
        is_same_data = run_identity.has_same_paths(flags, theirs, ["data_path"])
    else:
        is_same_data = recorded["data_key"] == content["data_key"]
    if not is_same_data:
        return None
    if has_other_vae:
        differences.append(f"--vae ({flags['vae']}, there {theirs.get('vae')})")
    if recorded["begun_from"] != content["begun_from"]:
        differences.append(f"the weights of --ckpt ({flags['ckpt']}, there {theirs.get('ckpt')})")
    return differences + [run_identity.CONTENT[key] for key in ("header", "covariates")
                          if recorded.get(key) != content.get(key)]
