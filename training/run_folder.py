"""A training run's folder: its lock, its logs, and which checkpoints it keeps and resumes from.

    results/000-DiT-XL-2/args.json  log.txt  log.jsonl  TensorBoard events
    checkpoints/0066000.safetensors          trained parameters, to sample from
    checkpoints/0066000.state.safetensors    everything needed to resume; the last few are kept
"""
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from training import checkpoint, run_identity
from training.log_lines import lines_until
from training.run_lock import lock_file, lock_patience
from training.trackers import TensorBoard, WeightsAndBiases
from utils import leftovers
from utils.errors import UserError, shorten
from utils.escaping import printable
from utils.files import (
    make_folder,
    read_json,
    remove_leftovers,
    umask,
    write_bytes,
    write_text,
)
from utils.flags import flag_of
from utils.shared_folders import open_own

RUN_PATTERN = "[0-9][0-9][0-9]-*"
MIN_STATES = 2        # states kept at least: if the newest is damaged, there is one before it
SET_ASIDE = ".damaged"   # after the name of a state that is not resumed from
STATE_PATTERN = "[0-9]*.state.safetensors"
CHECKPOINT_PATTERN = "[0-9]*[0-9].safetensors"


def recorded_content(folder):
    """`content_of` the newest readable state of a run folder; None if it has none."""
    for path in states_in(folder / "checkpoints"):
        try:
            return run_identity.content_of(checkpoint.read_metadata(path))
        except UserError:
            continue  # `Run.newest_state` warns of it
    return None


def states_in(checkpoints):
    """Files to resume from, newest first; version 1 called its only one last.safetensors."""
    found = sorted(checkpoints.glob(STATE_PATTERN), reverse=True)
    version_1 = checkpoints / "last.safetensors"
    return found + ([version_1] if version_1.is_file() else [])


def read_flags(folder):
    """The flags of a run folder, from its args.json.

    :raises UserError: missing, damaged, or no flags
    """
    flags = read_json(folder / "args.json")
    if not isinstance(flags, dict):
        raise UserError(f"{folder / 'args.json'}: holds no train.py flags")
    return flags


class Run:
    """A run folder that this job has locked. Only process 0 of a job may have one.

    :param folder: an existing run folder
    :param patience: seconds to wait for the lock
    :raises BlockingIOError: another job holds the lock
    """

    def __init__(self, folder, patience=0):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._lock = lock_file(folder / ".lock", patience)
        self._intact = set()    # names of states that this process wrote or resumed from
        self.identity = None    # what its states say of the run: `identity` of its flags
        self.checkpoints.mkdir(exist_ok=True)
        self._remove_temporary_files()

    def _remove_temporary_files(self):
        """Removes what a killed job was writing: our temporary files, and those of safetensors."""
        for leftover in (*self.checkpoints.glob(".*.safetensors"), *self.checkpoints.glob(".tmp*"),
                         *self.folder.glob(".*.tmp")):
            leftover.unlink()
        leftovers.remove(self.folder / "samples")

    @classmethod
    def create(cls, results_dir, model, flags):
        """Creates a run folder with the next free number.

        Even if jobs start at the same moment, the folder is complete and locked once it has its
        name.

        :param model: name of the model, for the folder's name
        :param flags: {name: value} of all flags, for args.json
        """
        make_folder(results_dir, f"--results-dir {results_dir}")
        named = results_dir / _folder_name(model)
        remove_leftovers(results_dir, (results_dir, named))
        hidden = Path(tempfile.mkdtemp(prefix=leftovers.prefix_of(named), dir=results_dir))
        try:
            run = cls(hidden)
            write_text(hidden / "args.json", json.dumps(flags, indent=1) + "\n")
            hidden.chmod(0o777 & ~umask())
            folder = _rename_to_next_number(hidden, results_dir, model)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        run.folder = folder
        run.checkpoints = folder / "checkpoints"
        return run

    @classmethod
    def find(cls, results_dir, model, resume, flags, content=None):
        """The run that --resume means, locked, or None for a new one.

        With "auto", that is the newest run of the same flags and the same content that no job
        holds. A run of the same flags and paths whose content differs is returned, too, for the
        caller to refuse: the files were changed.

        :param resume: "auto", "none", or the path of a run folder or of a file in its checkpoints/
        :param flags: {name: value} of all flags
        :param content: see `content_of`; None: the paths alone decide
        :raises UserError: its flags contradict these, another job holds it, or it has no state
        """
        if resume == "none":
            return None
        if resume == "auto":
            return cls._find_same(results_dir, model, flags, content)
        return cls._open_named(Path(resume), flags)

    @classmethod
    def _open_named(cls, folder, flags):
        if folder.suffix == ".safetensors":
            folder = folder.parent.parent
        theirs = read_flags(folder)
        for name in run_identity.differing_flags(flags, theirs):
            raise UserError(f"{flag_of(name)} {flags[name]}: {folder} was started with "
                            f"{theirs.get(name)}; give that, or --resume none")
        try:
            run = cls(folder, lock_patience(folder))
        except BlockingIOError:
            raise UserError(f"--resume {folder}: another job is writing there; wait for it, "
                            "or give --resume none") from None
        if not run.states():
            raise UserError(f"--resume {folder}: holds no state to resume from; "
                            "give --resume none")
        return run

    @classmethod
    def _find_same(cls, results_dir, model, flags, content):
        """The newest run of the same flags and content that no job holds; first those with states.

        Of a run without states nothing but its flags is known; then the paths must be the same.
        """
        folders = results_dir.glob(f"[0-9][0-9][0-9]-{_folder_name(model)}")
        newest_first = sorted(folders, reverse=True, key=lambda folder: (
            any(folder.glob("checkpoints/*.safetensors")), folder.name))
        same, changed = [], []
        for folder in newest_first:
            try:
                theirs = read_flags(folder)
            except (UserError, OSError) as e:
                print(f"warning: {printable(folder)} is not resumed: {printable(e)}",
                      file=sys.stderr, flush=True)
                continue
            if run_identity.differing_flags(flags, theirs):
                continue
            recorded = recorded_content(folder)
            if content is not None and recorded == content:
                same.append(folder)
            elif run_identity.has_same_paths(flags, theirs):
                (changed if recorded and content else same).append(folder)
        for folder in same or changed[:1]:
            try:
                return cls(folder, lock_patience(folder))
            except BlockingIOError:  # the same command is running: this is a second run
                continue
        return None

    @property
    def log_path(self):
        """The log of numbers, a line of JSON each."""
        return self.folder / "log.jsonl"

    # --------------------------------------------------------------------------------- states

    def checkpoint_files(self):
        """Checkpoints to sample from, oldest first."""
        return sorted(self.checkpoints.glob(CHECKPOINT_PATTERN))

    def states(self):
        """Files to resume from, newest first."""
        return states_in(self.checkpoints)

    def newest_state(self, flags=None):
        """The newest intact state of this run and its metadata, or None if there is none.

        Damaged states, and those of other runs, are named in a warning.

        :param flags: {name: value} of all flags; None: any run's state will do
        :raises UserError: there are states, and none is intact
        """
        states = self.states()
        for path in states:
            try:
                metadata = checkpoint.verify(path)
                _check_is_of_run(path, metadata, flags)
                return path, metadata
            except UserError as e:
                print(f"warning: {printable(e)}", file=sys.stderr, flush=True)
        if states:
            raise UserError(f"{self.folder}: none of its states to resume from is intact; "
                            "give --resume none to start again")
        return None

    def resume_from(self, path):
        """Sets aside the states later than the one that is resumed from, none of which is usable.

        They get SET_ASIDE behind their names: neither the newest state nor one of those to keep.
        """
        self._intact.add(path.name)
        for later in self.states():
            if later == path:
                break
            aside = later.with_name(later.name + SET_ASIDE)
            os.replace(later, aside)
            print(f"warning: {printable(later)} is set aside as {aside.name}", file=sys.stderr,
                  flush=True)

    def save_state(self, step, metadata, groups, keep=None, keep_every=None):
        """Writes the state of a step, and removes files that need not be kept.

        :param groups: {group: {name: tensor}}
        :param keep: number of last checkpoints to keep, and of states, at least MIN_STATES; None:
            all checkpoints
        :param keep_every: with `keep`: also keep checkpoints of every step that this divides
        """
        for log in (self._text_log, self._json_log):
            os.fsync(log.fileno())  # never a state whose log is lost
        path = self.checkpoints / f"{step:07d}.state.safetensors"
        own = {"step": step, "identity": self.identity} if self.identity else {"step": step}
        checkpoint.save_checkpoint(path, {**metadata, **own}, **groups)
        self._intact.add(path.name)
        self._remove_old_states(max(keep or 0, MIN_STATES))
        if keep:
            for old in self.checkpoint_files()[:-keep]:
                if not keep_every or int(old.stem) % keep_every:
                    old.unlink()

    def _remove_old_states(self, keep):
        """Removes all but the last states, once MIN_STATES of those are known to be intact.

        Known are those that this process wrote or resumed from; any other may be damaged.
        """
        states = self.states()
        if sum(path.name in self._intact for path in states[:keep]) >= MIN_STATES:
            for old in states[keep:]:
                old.unlink()

    # ----------------------------------------------------------------------------------- logs

    def open_logs(self, step, wandb_project=None):
        """Opens the logs after `step`; what an interrupted run wrote beyond it is dropped.

        :param wandb_project: project of Weights & Biases that mirrors TensorBoard; None: none
        """
        write_bytes(self.log_path, b"".join(lines_until(step, self.log_path)))
        self._text_log = open_own(self.folder / "log.txt")
        self._json_log = open_own(self.log_path)
        self._trackers = [TensorBoard(self.folder, step)]
        if wandb_project:
            flags = read_flags(self.folder)
            self._trackers.append(WeightsAndBiases(wandb_project, self.folder, flags))

    def say(self, message):
        """Prints a message with the time, and appends it to log.txt."""
        line = f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {printable(message)}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self._text_log, flush=True)

    def record(self, entry, topic, unlogged=None):
        """Appends a line to log.jsonl and points to TensorBoard.

        log.jsonl has the same bytes whenever and wherever a run is computed.

        :param entry: {name: value}, its step among them
        :param topic: heading of the numbers in TensorBoard
        :param unlogged: {name: number} for TensorBoard, but not for the log, such as a speed
        """
        print(json.dumps(entry), file=self._json_log, flush=True)
        values = {f"{topic}/{key}": value for key, value in {**entry, **(unlogged or {})}.items()
                  if key != "step" and isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.scalars(entry["step"], values)
            tracker.flush()

    def show(self, step, images):
        """Shows images in TensorBoard, and wherever else the run is shown.

        :param images: {name: (H, W) or (H, W, 3) uint8}
        """
        for tracker in self._trackers:
            tracker.images(step, images)
            tracker.flush()

    def close_trackers(self):
        """Ends what shows the run, such as a mirror that has not sent everything yet."""
        for tracker in self._trackers:
            tracker.close()


def _folder_name(model):
    return model.replace("/", "-")


def _rename_to_next_number(hidden, results_dir, model):
    taken = [int(path.name[:3]) for path in results_dir.glob("[0-9][0-9][0-9]-*")]
    number = max(taken, default=-1) + 1
    while True:
        folder = results_dir / f"{number:03d}-{_folder_name(model)}"
        try:
            hidden.rename(folder)
            return folder
        except OSError:
            if not folder.exists():
                raise
            number += 1  # another job was faster


def _check_is_of_run(path, metadata, flags):
    """Raises UserError if a state says that it is of another run; older ones do not say it."""
    if flags is None or "identity" not in metadata:
        return
    known = {**flags, **metadata["identity"]}    # a flag that came later contradicts nothing
    for name in run_identity.differing_flags(flags, known):
        theirs = shorten(known[name], 60)
        raise UserError(f"{path}: belongs to another run ({flag_of(name)} {theirs}, here "
                        f"{flags[name]})")
