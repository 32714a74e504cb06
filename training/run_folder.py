"""A training run's folder: its lock, its logs, and which of its checkpoints are kept and resumed from.

    results/000-DiT-XL-2/args.json  log.txt  log.jsonl  TensorBoard events
    checkpoints/0066000.safetensors          what was trained, to sample from: written every --ckpt-every steps
    checkpoints/0066000.state.safetensors    all of a run at that step, to go on from: the last of them are kept
"""
import fcntl
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import checkpoint as checkpoints
from utils.errors import UserError
from utils.files import read_json, umask, write_text

# What may differ between the command that began a run and the one that goes on with it.
FREE = ("results_dir", "resume", "max_steps", "epochs", "max_minutes", "log_every", "ckpt_every", "ckpt_minutes", "keep", "keep_every",
        "sample_every", "skip_nonfinite", "device", "compile", "grad_checkpoint", "keep_activations", "prefetch", "dry_run")
STATES = 2             # kept at least: when the newest is damaged, there is the one before it
PATIENCE = 120         # seconds that a job requeued by Slurm waits for its own last processes to end


class Run:
    """A run folder that one job holds. Only process 0 of a job may have one."""

    def __init__(self, folder, patience=0):
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self._lock = _locked(folder / ".lock", patience)
        self.checkpoints.mkdir(exist_ok=True)
        # of a job that was killed while it wrote: our temporary files, and those that safetensors itself may write first (.tmpXXXXXX)
        for leftover in (*self.checkpoints.glob(".*.safetensors"), *self.checkpoints.glob(".tmp*"), *folder.glob(".*.tmp")):
            leftover.unlink()

    @classmethod
    def new(cls, args):
        """A folder with the next free number. Whatever starts at the same time, it is whole and locked once it has its name."""
        args.results_dir.mkdir(parents=True, exist_ok=True)
        name = args.model.replace("/", "-")
        number = max([int(p.name[:3]) + 1 for p in args.results_dir.glob("[0-9][0-9][0-9]-*")], default=0)
        hidden = Path(tempfile.mkdtemp(prefix=".new-", dir=args.results_dir))
        try:
            run_ = cls(hidden)
            write_text(hidden / "args.json", json.dumps(identity(args, free=True), indent=1) + "\n")
            hidden.chmod(0o777 & ~umask)
            while True:
                folder = args.results_dir / f"{number:03d}-{name}"
                try:
                    hidden.rename(folder)
                    break
                except OSError:
                    if not folder.exists():
                        raise
                    number += 1
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        run_.folder, run_.checkpoints = folder, folder / "checkpoints"
        return run_

    @classmethod
    def to_resume(cls, args):
        """The run that --resume means, or None. Raises UserError where its flags contradict these."""
        if args.resume == "none":
            return None
        if args.resume != "auto":
            folder = Path(args.resume)
            folder = folder.parent.parent if folder.suffix == ".safetensors" else folder
            theirs, ours = read_json(folder / "args.json"), identity(args)
            different = [k for k in ours if theirs.get(k) != ours[k]]
            if different:
                k = different[0]
                raise UserError(f"--{k.replace('_', '-')} {ours[k]}: {folder} was begun with {theirs.get(k)}; give that, or --resume none")
            try:
                run_ = cls(folder, _patience(folder))
            except BlockingIOError:
                raise UserError(f"--resume {folder}: another job is writing there; wait for it, or --resume none") from None
            if not run_.states():
                raise UserError(f"--resume {folder}: holds no state to go on from; give --resume none")
            return run_
        folders = args.results_dir.glob(f"[0-9][0-9][0-9]-{args.model.replace('/', '-')}")
        for folder in sorted(folders, key=lambda f: (any(f.glob("checkpoints/*.safetensors")), f.name), reverse=True):
            if (folder / "args.json").is_file():
                theirs = read_json(folder / "args.json")
                if all(theirs.get(k) == v for k, v in identity(args).items()):
                    try:
                        return cls(folder, _patience(folder))
                    except BlockingIOError:  # the same command runs right now: this is a second run
                        continue
        return None

    # ------------------------------------------------------------------------------------------------ checkpoints

    def states(self):
        """Files to go on from, the newest first; `last.safetensors` is how versions before this one called theirs."""
        old = self.checkpoints / "last.safetensors"
        return sorted(self.checkpoints.glob("[0-9]*.state.safetensors"), reverse=True) + [old] * old.is_file()

    def newest_state(self):
        """The newest whole state and its metadata, or None where none was written; warns of damaged ones.

        :raises UserError: there are some, and not one is whole
        """
        states = self.states()
        for path in states:
            try:
                return path, checkpoints.verify(path)
            except UserError as e:
                print(f"warning: {e}", file=sys.stderr, flush=True)
        if states:
            raise UserError(f"{self.folder}: not one of its states to go on from is whole; give --resume none to begin anew")
        return None

    def save_state(self, step, meta, groups, keep=None, keep_every=None):
        """Writes the state of a step, and removes what need not be kept."""
        for log in (self._text, self._json):
            os.fsync(log.fileno())  # never a state whose log is lost
        checkpoints.save_checkpoint(self.checkpoints / f"{step:07d}.state.safetensors", dict(meta, step=step), **groups)
        for path in self.states()[max(keep or 0, STATES):]:
            path.unlink()
        if keep:
            for path in sorted(self.checkpoints.glob("[0-9]*[0-9].safetensors"))[:-keep]:
                if not keep_every or int(path.stem) % keep_every:
                    path.unlink()

    # ------------------------------------------------------------------------------------------------------- logs

    def open_logs(self, step):
        """Logs that go on after `step`: what an interrupted run wrote beyond it is dropped."""
        path = self.folder / "log.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step] if path.exists() else []
        write_text(path, "".join(line + "\n" for line in kept))
        self._text, self._json = open(self.folder / "log.txt", "a"), open(path, "a")
        self._board = SummaryWriter(self.folder, purge_step=step + 1 if step else None)

    def say(self, message):
        line = f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {message}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        print(line, file=self._text, flush=True)

    def record(self, entry, images_per_s):
        """One line of log.jsonl, which is the same whenever and wherever a run is done; its speed goes to TensorBoard alone."""
        print(json.dumps(entry), file=self._json, flush=True)
        for key, value in {**entry, "images_per_s": images_per_s}.items():
            if key != "step" and value is not None:
                self._board.add_scalar(f"train/{key}", value, entry["step"])
        self._board.flush()


def identity(args, free=False):
    """The flags that make a run what it is, as JSON holds them; with `free`, the others too."""
    fixed = ("max_steps",) if vars(args).get("lr_schedule") == "cosine" else ()  # the schedule ends there
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if free or k not in FREE or k in fixed}


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the job was killed
        return math.inf


def _locked(path, patience):
    """The open file, locked while this process lives, and the Slurm job's number in it. Raises BlockingIOError."""
    end = time.monotonic() + patience
    file = open(path, "a+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
        except OSError as e:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({e.strerror}): see to it that one job alone writes there", file=sys.stderr)
            break
    file.truncate(0)
    file.write(os.environ.get("SLURM_JOB_ID", ""))
    file.flush()
    return file


def _patience(folder):
    """Seconds to wait for the lock: a job that Slurm requeued waits for its own last processes, another does not."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        return PATIENCE if job and (folder / ".lock").read_text() == job else 0
    except OSError:
        return 0
