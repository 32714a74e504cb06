"""Runs the scripts many times for the price of one start: a server imports them once, then forks.

Except for its imports, such a run is what it is from a shell: a process of its own, with its own
arguments, folder, output, signals and exit code. tests/test_scripts.py starts each script afresh.
"""
import atexit
import gc
import importlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "preprocess", "postprocess", "train_vae", "train", "sample", "evaluate", "download", "bench",
    "train_refiner", "export")
IMPORTED_LATE = (  # the scripts import these where they first need them; they are slow to import
    "diffusers.models.autoencoders.autoencoder_kl", "matplotlib.pyplot", "torchmetrics.image.fid",
    "torch.utils.tensorboard")
TIMEOUT = 600      # seconds after which a run is killed


def serve():
    """Reads jobs from stdin, one line of JSON each, and answers on stdout."""
    sys.path.insert(0, str(ROOT))
    from utils.errors import run_script
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in the forked processes skip the modules, and so do not copy them
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        if "pid" in job:
            print(json.dumps(_exit_code(job["pid"])), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _set_up(job)
            _run_to_the_end(lambda: run_script(modules[job["script"]].main))  # noqa: B023 (exits)
        print(json.dumps(pid), file=answers, flush=True)


def _set_up(job):
    """Gives this process the input, output, folder, environment, limits and arguments of a job.

    The process ends with the server, and the server with the tests.
    """
    from utils import workers
    workers.end_with(job["server"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, key in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[key], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    if job["max_file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"],) * 2)
    sys.argv = [job["script"] + ".py", *job["argv"]]
    if job["die_at"]:
        _die_at(*job["die_at"])
    if job["clock_jumps"]:
        _let_the_clock_jump()


def _die_at(module, name, count):
    """The count-th call of a function kills this process with SIGKILL."""
    owner = importlib.import_module(module)
    function, calls = getattr(owner, name), itertools.count(1)

    def deadly(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, deadly)


def _let_the_clock_jump():
    """Every look at the clock is a day later or earlier than the one before."""
    now, days = time.time, itertools.cycle((0, 1, 0, -1))
    time.time = lambda: now() + 86400 * next(days)


def _run_to_the_end(function):
    """Calls the function and exits as Python does, but leaves it to the system to free the memory.

    Python would free every object of every module, and so first copy all memory that is shared
    with the server: 1.6 s a run, for nothing.
    """
    code = 0
    try:
        function()
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()    # waits for threads, as at Python's own exit; so does multiprocessing
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(pid):
    """Waits for a run to end; minus the number of the signal that ended it."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"killed after {TIMEOUT} s"


class Server:
    """`start` begins a run and returns its process id; `wait` waits for its exit code."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                           "CUDA_VISIBLE_DEVICES": ""})    # no GPU survives a fork

    def _ask(self, **job):
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, script, *argv, output, errors=None, cwd=ROOT, env=None, max_file_bytes=None,
              die_at=None, clock_jumps=False):
        """Starts e.g. "train"; its stdout goes to the file `output`, stderr too or to `errors`.

        :param max_file_bytes: files cannot grow larger: writing then fails as on a full disk
        :param die_at: (module, name of a function, n): its n-th call is SIGKILL
        :param clock_jumps: time.time() jumps by a day, to and fro
        """
        return self._ask(
            server=self.process.pid, script=script, argv=[str(a) for a in argv], stdout=str(output),
            stderr=str(errors or output), cwd=str(cwd),
            env={k: str(v) for k, v in (env or {}).items()}, max_file_bytes=max_file_bytes,
            die_at=die_at, clock_jumps=clock_jumps)

    def wait(self, pid):
        """Waits for the run to end; returns its exit code, minus the signal's number if killed."""
        return self._ask(pid=pid)

    def __call__(self, script, *argv, output, expect=0, env=None):
        """Runs a script to its end; returns its output, stdout and stderr together."""
        code = self.wait(self.start(script, *argv, output=output, env=env))
        text = Path(output).read_text()
        assert code == expect and "Traceback" not in text, f"{script} exited {code}\n{text}"
        return text

    def run(self, script, argv, cwd, env, max_file_bytes=None):
        """Runs a script to its end; returns a subprocess.CompletedProcess."""
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "stdout"), Path(folder, "stderr")
            code = self.wait(self.start(script, *argv, output=output, errors=errors, cwd=cwd,
                                        env=env, max_file_bytes=max_file_bytes))
            return subprocess.CompletedProcess(
                [script, *argv], code, output.read_text(), errors.read_text())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


if __name__ == "__main__":
    serve()
