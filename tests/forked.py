"""Runs the scripts many times for the price of one start: a server imports them once, then forks.

Except for its imports, such a run is what it is from a shell: a process of its own, with its own
arguments, folder, output, signals and exit code. tests/test_scripts.py starts each script afresh.
"""
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("preprocess", "postprocess", "train_vae", "train", "sample", "evaluate", "download", "bench")
USED_BY_SCRIPTS = ("diffusers.models.autoencoders.autoencoder_kl", "matplotlib.pyplot",
                   "torchmetrics.image.fid")  # imported late by the scripts, and slow to import
SECONDS = 600  # after which a run is killed


def serve():
    """Reads jobs from stdin, one line of JSON each, and answers on stdout."""
    sys.path.insert(0, str(ROOT))
    from utils.errors import run_script
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    for name in USED_BY_SCRIPTS:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        if "pid" in job:
            print(json.dumps(_exit_code(job["pid"])), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(job)
            run_script(modules[job["script"]].main)  # exits
        print(json.dumps(pid), file=answers, flush=True)


def _become(job):
    """Gives this process the input, output, folder, environment and arguments of a job."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, key in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[key], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    sys.argv = [job["script"] + ".py", *job["argv"]]


def _exit_code(pid):
    """Waits for a run to end; minus the number of the signal that ended it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"killed after {SECONDS} s"


class Server:
    """`start` begins a run and returns its process id; `wait` waits for its exit code."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})

    def _ask(self, **job):
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, script, *argv, output, errors=None, cwd=ROOT, env=None):
        """Starts e.g. "train"; its stdout goes to the file `output`, stderr too or to `errors`."""
        return self._ask(script=script, argv=[str(a) for a in argv], stdout=str(output),
                         stderr=str(errors or output), cwd=str(cwd), env=env or {})

    def wait(self, pid):
        return self._ask(pid=pid)

    def __call__(self, script, *argv, output, expect=0, env=None):
        """Runs a script to its end; returns its output, stdout and stderr together."""
        code = self.wait(self.start(script, *argv, output=output, env=env))
        text = Path(output).read_text()
        assert code == expect and "Traceback" not in text, f"{script} exited {code}\n{text}"
        return text

    def run(self, script, argv, cwd, env):
        """Runs a script to its end; returns a subprocess.CompletedProcess."""
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "stdout"), Path(folder, "stderr")
            code = self.wait(self.start(script, *argv, output=output, errors=errors, cwd=cwd, env=env))
            return subprocess.CompletedProcess(
                [script, *argv], code, output.read_text(), errors.read_text())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


if __name__ == "__main__":
    serve()
