"""Resuming: the run folder to continue in, with its newest state loaded, or a new one."""
from training.run_folder import Run
from utils import distributed
from utils.errors import UserError

# what a resumed run must have in common with its state, beyond the flags: metadata key and name
UNCHANGED = {
    "header": "the data folder's geometry",
    "vae": "the VAE",
    "begun_from": "the weights of --ckpt",
    "data_key": "the mosaics or their classes",
}


def open_run(state, metadata, *, results_dir, model, resume, flags):
    """Finds or creates the run folder, and loads its newest state into `state` in all processes.

    :param state: TrainingState
    :param metadata: what the run's checkpoints record
    :param results_dir, model, resume, flags: see `Run.find`
    :return: the Run in process 0, None in the others
    :raises UserError: see `Run.find`; or data, VAE or base weights changed
    """
    run, newest = None, None
    if distributed.is_main():
        run = Run.find(results_dir, model, resume, flags)
        newest = run.newest_state() if run else None
        if newest:
            path, recorded = newest
            _check_unchanged(metadata, recorded, resume, run.folder)
            newest = str(path.resolve()), recorded
        run = run or Run.create(results_dir, model, flags)
    newest = distributed.broadcast_json(newest)
    if newest:
        state.load(*newest)
    return run


def _check_unchanged(ours, theirs, resume, folder):
    for key, what in UNCHANGED.items():
        if _content(ours[key]) != _content(theirs[key]):
            raise UserError(f"--resume {resume}: {what} changed since {folder} was begun; "
                            "restore it, or give --resume none")


def _content(value):
    """A file's hash stands for it, wherever it is now."""
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value
