"""A training run's folder: its lock, its logs, and which checkpoints it keeps and resumes from.

    results/000-DiT-XL-2/args.json  log.txt  log.jsonl  TensorBoard events
    checkpoints/0066000.safetensors          trained parameters, to sample from
    checkpoints/0066000.state.safetensors    everything needed to resume; the last few are kept
"""
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import checkpoint
from training.log_lines import lines_until
from training.run_lock import lock_file, lock_patience
from utils import leftovers
from utils.errors import UserError, shorten
from utils.escaping import printable
from utils.files import read_json, remove_leftovers, umask, write_bytes, write_text
from utils.flags import flag_of
from utils.shared_folders import open_own

# flags that name files: what counts is what the files hold, see CONTENT
PATH_FLAGS = ("data_path", "vae", "ckpt", "base")
# flags that may differ between the command that began a run and the one that resumes it
FREE_FLAGS = (
    *PATH_FLAGS, "image_size", "accum", "results_dir", "resume", "max_steps", "epochs",
    "max_minutes", "log_every", "ckpt_every", "ckpt_minutes", "keep", "keep_every", "sample_every",
    "skip_nonfinite", "device", "compile", "grad_checkpoint", "keep_activations", "prefetch",
    "dry_run")
# flags that earlier versions lacked, and what their runs did; the EMA's state knows it better
LATER_FLAGS = {
    "ema_warmup": True, "tokens": "all", "token_margin": 0, "augment": 1, "augment_flip": 0.0,
    "augment_rotate": 0.0, "augment_scale": 0.0, "augment_shift": 0.0, "augment_gamma": 0.0,
    "token_drop": 0.0, "token_route": 0.0, "route_blocks": None, "full_steps": 0}
# what a resumed run must have in common with its state, beyond the flags: metadata key and name
CONTENT = {
    "header": "the data folder's geometry",
    "vae": "the VAE",
    "begun_from": "the weights of --ckpt",
    "data_key": "the mosaics or their classes",
}
RUN_PATTERN = "[0-9][0-9][0-9]-*"
MIN_STATES = 2        # states kept at least: if the newest is damaged, there is one before it
SET_ASIDE = ".damaged"   # after the name of a state that is not resumed from
STATE_PATTERN = "[0-9]*.state.safetensors"
CHECKPOINT_PATTERN = "[0-9]*[0-9].safetensors"


def identity(flags):
    """The flags that make a run what it is: those on which a resumed run must agree.

    :param flags: {name: value} of all flags, as `args.json` holds them
    """
    depends_on_end = flags.get("lr_schedule") == "cosine" or flags.get("full_steps")
    fixed = ("max_steps",) if depends_on_end else ()
    return {name: value for name, value in flags.items()
            if name not in FREE_FLAGS or name in fixed}


def content_of(metadata):
    """What a run was given, as it is in the metadata of its states, by checksums: never by paths.

    :return: {key of CONTENT: value to compare}
    """
    return {key: _checksum_or_value(metadata.get(key)) for key in CONTENT}


def _checksum_or_value(value):
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def recorded_content(folder):
    """`content_of` the newest readable state of a run folder; None if it has none."""
    for path in states_in(folder / "checkpoints"):
        try:
            return content_of(checkpoint.read_metadata(path))
        except UserError:
            continue  # `Run.newest_state` warns of it
    return None


def states_in(checkpoints):
    """Files to resume from, newest first; version 1 called its only one last.safetensors."""
    found = sorted(checkpoints.glob(STATE_PATTERN), reverse=True)
    version_1 = checkpoints / "last.safetensors"
    return found + ([version_1] if version_1.is_file() else [])


def differing_flags(ours, theirs):
    """Names of the flags that make a run what it is and differ between two sets of flags."""
    ours, theirs = identity(ours), LATER_FLAGS | theirs if isinstance(theirs, dict) else {}
    return [name for name in ours if theirs.get(name) != ours[name]]


def has_same_paths(ours, theirs, names=PATH_FLAGS):
    """Whether two sets of flags name the same data, VAE and weights, however they spell it."""
    return all(_spelled_out(ours.get(name)) == _spelled_out(theirs.get(name)) for name in names)


def _spelled_out(path):
    is_path = isinstance(path, str) and path and "\0" not in path
    return os.path.realpath(path) if is_path else path


def read_flags(folder):
    """The flags of a run folder, from its args.json.

    :raises UserError: missing, damaged, or no flags
    """
    flags = read_json(folder / "args.json")
    if not isinstance(flags, dict):
        raise UserError(f"{folder / 'args.json'}: holds no flags of train.py")
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
        results_dir.mkdir(parents=True, exist_ok=True)
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
        for name in differing_flags(flags, theirs):
            raise UserError(f"{flag_of(name)} {flags[name]}: {folder} was begun with "
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
            if differing_flags(flags, theirs):
                continue
            recorded = recorded_content(folder)
            if content is not None and recorded == content:
                same.append(folder)
            elif has_same_paths(flags, theirs):
                (changed if recorded and content else same).append(folder)
        for folder in same or changed[:1]:
            try:
                return cls(folder, lock_patience(folder))
            except BlockingIOError:  # the same command is running: this is a second run
                continue
        return None

    # --------------------------------------------------------------------------------- states

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
            for old in sorted(self.checkpoints.glob(CHECKPOINT_PATTERN))[:-keep]:
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

    def open_logs(self, step):
        """Opens the logs after `step`; what an interrupted run wrote beyond it is dropped."""
        path = self.folder / "log.jsonl"
        write_bytes(path, b"".join(lines_until(step, path)))
        self._text_log = open_own(self.folder / "log.txt")
        self._json_log = open_own(path)
        # TensorBoard opens its file without such checks: nobody can put a link at a random name
        self._board = SummaryWriter(self.folder, purge_step=step + 1 if step else None,
                                    filename_suffix=f".{secrets.token_hex(8)}")

    def say(self, message):
        """Prints a message with the time, and appends it to log.txt."""
        line = f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {printable(message)}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self._text_log, flush=True)

    def record(self, entry, images_per_second):
        """Appends a line to log.jsonl and points to TensorBoard.

        log.jsonl has the same bytes whenever and wherever a run is computed; the speed goes to
        TensorBoard alone.
        """
        print(json.dumps(entry), file=self._json_log, flush=True)
        for key, value in {**entry, "images_per_s": images_per_second}.items():
            if key != "step" and value is not None:
                self._board.add_scalar(f"train/{key}", value, entry["step"])
        self._board.flush()


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
    for name in differing_flags(flags, known):
        theirs = shorten(known[name], 60)
        raise UserError(f"{path}: belongs to another run ({flag_of(name)} {theirs}, here "
                        f"{flags[name]})")
