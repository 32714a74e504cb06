"""Runs train.py and sample.py many times for the price of one start: a server imports them once, and forks for each run.

Beside the imports, a run is what it is from a shell: a process of its own, its arguments, output, signals and exit code.
"""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def serve():
    sys.path.insert(0, str(ROOT))
    from utils import cli
    modules = {name: importlib.import_module(name) for name in ("train", "sample")}
    for line in sys.stdin:
        job = json.loads(line)
        if "pid" in job:
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(job["pid"], 0)[1])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            os.environ.update(job["env"])
            sys.argv = [job["script"] + ".py", *job["argv"]]
            cli.run(modules[job["script"]].main)  # exits
        print(json.dumps(pid), flush=True)


class Server:
    """`start` begins a run and returns its process id; `wait` its exit code, or minus the number of the signal that ended it."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                                        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})

    def _ask(self, **job):
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, script, *argv, output, env=None):
        return self._ask(script=script, argv=[str(a) for a in argv], output=str(output), env=env or {})

    def wait(self, pid):
        return self._ask(pid=pid)

    def __call__(self, script, *argv, output, expect=0, env=None):
        code = self.wait(self.start(script, *argv, output=output, env=env))
        text = Path(output).read_text()
        assert code == expect and "Traceback" not in text, f"{script} exited {code}\n{text}"
        return text

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


if __name__ == "__main__":
    serve()
