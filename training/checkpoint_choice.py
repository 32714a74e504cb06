"""Which file of a run or results folder `sample.py --ckpt` means, and what there is beside it."""
import time
from dataclasses import dataclass
from pathlib import Path

from training.run_folder import CHECKPOINT_PATTERN, RUN_PATTERN, states_in
from utils.errors import UserError
from utils.version import __version__

MAX_INITIAL_SHARE = 0.01    # of the initial weights in an EMA, without a warning


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A file to sample from.

    :param notes: lines for the user: what else might have been meant
    """
    path: Path
    notes: tuple[str, ...] = ()


def choose_checkpoint(path):
    """The file that --ckpt means.

    :param path: a file; a run folder, for its newest checkpoint; or a results folder, for that of
        its last run. A run that was interrupted before its first checkpoint is sampled from its
        newest state
    :raises UserError: the folder holds neither checkpoints nor states
    """
    path = Path(path)
    if not path.is_dir():
        return ChosenCheckpoint(path)
    if (path / "checkpoints").is_dir():
        chosen = _newest_of_run(path)
        beside = sorted(path.resolve().parent.glob(RUN_PATTERN))
    else:
        beside = sorted(path.glob(RUN_PATTERN))
        chosen = next(filter(None, map(_newest_of_run, reversed(beside))), None)
    if chosen is None:
        raise UserError(f"--ckpt {path}: holds no checkpoints/STEP.safetensors and no state; name "
                        "a file, or a run folder that has one")
    notes = []
    if chosen not in _checkpoints(chosen.parent):
        notes.append(f"{run_of(chosen)} has no checkpoint yet: sampling from its last state, "
                     f"{chosen.name}")
    return ChosenCheckpoint(chosen, (*notes, *_other_runs(chosen, beside)))


def checkpoints_by_step(run):
    """All checkpoints of a run folder, {step: file} in the order of their steps.

    :raises UserError: no such folder, or it holds none
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"--ckpt-folder {run}: no such folder")
    found = {int(path.stem): path for path in _checkpoints(run / "checkpoints")}
    if not found:
        raise UserError(f"--ckpt-folder {run}: holds no checkpoints/STEP.safetensors; name a run "
                        "folder of train.py that has one")
    return dict(sorted(found.items()))


def run_of(path):
    """Name of the run folder that a checkpoint lies in: "000-DiT-XL-2"; None if in none."""
    folder = Path(path).resolve().parent
    return folder.parent.name if folder.name == "checkpoints" else None


def _checkpoints(folder):
    return sorted(folder.glob(CHECKPOINT_PATTERN))


def _newest_of_run(folder):
    """A run's newest checkpoint, else its newest state, else None."""
    found = _checkpoints(folder / "checkpoints")[-1:] or states_in(folder / "checkpoints")[:1]
    return found[0] if found else None


def _other_runs(chosen, runs):
    """Says which runs are newer than the chosen file's: by their numbers, or by their files."""
    notes = []
    for folder in runs:
        newest = _newest_of_run(folder)
        if folder.name == run_of(chosen):
            continue
        if folder.name > run_of(chosen):
            what = f"has {newest.name}" if newest else "has no checkpoint yet"
            notes.append(f"{run_of(chosen)} is not the newest run: {folder.name} {what}")
        elif newest and newest.stat().st_mtime > chosen.stat().st_mtime:
            notes.append(f"{run_of(chosen)} is not the run that was trained last: {folder.name} "
                         f"has {newest.name}, which is newer")
    return notes


# --------------------------------------------------------------------------- what samples say of it

def provenance(path, metadata, refiner=None):
    """What samples.json records of the checkpoint that its samples are from, and of the toolkit.

    The date has no time of day, so that all jobs of an array write the same.

    :param refiner: its folder; None: there is none
    """
    found = {"checkpoint": str(Path(path).resolve()), "run": run_of(path),
             "step": metadata["step"], "mosaicdit_version": __version__,
             "date": time.strftime("%Y-%m-%d")}
    return found | ({"refiner": str(Path(refiner).resolve())} if refiner else {})


def nifti_description(metadata, sha256, refiner_sha256=None):
    """What made a synthetic volume, for its NIfTI header (79 bytes).

    :param metadata, sha256: of the checkpoint
    """
    refined = f" refiner {refiner_sha256[:8]}" if refiner_sha256 else ""
    return f"MosaicDiT {__version__} ckpt {sha256[:8]} step {metadata['step']}{refined}"


def warn_of_average(metadata, weights):
    """A line for the user if the average still is in part what the run began with, else None."""
    share = metadata.get("average", {}).get("initial_share", 0)
    if weights != "ema" or share <= MAX_INITIAL_SHARE:
        return None
    return (f"{share:.0%} of the EMA of step {metadata['step']} is still the weights that the run "
            "started from; --weights raw uses those of the last step instead")
