"""A Slurm of one node in a folder, for tests: starts and stops munged, slurmctld and slurmd.

The node claims 16 cores and 4 A100s that it does not have, so that the files in slurm/ can be
submitted as they are.
"""
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port1}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=512000 Gres=gpu:a100:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Programs of the packages slurm-wlm and munge that are not installed."""
    return [p for p in PROGRAMS if not shutil.which(p, path=PATH)]


class Cluster:
    """Starts the daemons; `env` is the environment that Slurm's commands need.

    :raises RuntimeError: it cannot be started; the message holds the logs
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.chmod(0o755)
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._write_configuration()
        munge = dict(socket="munge.socket", pid_file="munged.pid", log_file="munged.log",
                     seed_file="munge.seed", key_file="munge.key")
        munge_flags = [f"--{name.replace('_', '-')}={self.folder / file}"
                       for name, file in munge.items()]
        try:
            self._run("munged", "--force", *munge_flags)
            self._run("slurmctld")
            self._run("slurmd")
            self.until(lambda: "idle" in self("sinfo", "-h", "-o", "%t"), 60)
        except (RuntimeError, subprocess.CalledProcessError, OSError) as e:
            logs = [f"\n{p.name}: {p.read_text()[-600:]}" for p in self.folder.glob("*.log")]
            self.stop()
            raise RuntimeError(f"{e}{''.join(logs)}") from None

    def _write_configuration(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True)
        port = free_ports()
        (self.folder / "slurm.conf").write_text(CONF.format(
            host=host, port=port, port1=port + 1, folder=self.folder, user=user.stdout.strip()))
        for i in range(4):
            (self.folder / f"gpu{i}").touch()
        (self.folder / "gres.conf").write_text(
            f"Name=gpu Type=a100 File={self.folder}/gpu[0-3]\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def _run(self, *command):
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=60)

    def __call__(self, *command, **env):
        """Runs a Slurm command in the root of the repository, and returns its output."""
        done = subprocess.run(
            [str(c) for c in command], env={**self.env, **env}, capture_output=True, text=True,
            timeout=60, cwd=Path(__file__).resolve().parent.parent)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number):
        """`scontrol show job` of a job, or of the first task of an array, as a dict."""
        words = self("scontrol", "-o", "show", "job", number).splitlines()[0].split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def states(self, number):
        """The states of a job, or of all tasks of an array."""
        words = self("scontrol", "-o", "show", "job", number).split()
        return {w.split("=")[1] for w in words if w.startswith("JobState=")}

    def ended(self, number, seconds=300):
        """Waits until a job has ended for good, and returns the states of its tasks."""
        seen = []

        def is_steady():  # a job that is requeued passes through other states for a moment
            seen.append(self.states(number))
            time.sleep(0.5)
            return (len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]
                    and seen[-1] <= FINAL_STATES)

        self.until(is_steady, seconds)
        return seen[-1]

    @staticmethod
    def until(condition, seconds):
        """Waits until the condition holds; RuntimeError if it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"not so within {seconds} s")
            time.sleep(0.2)

    def stop(self):
        """Ends the jobs and the daemons that this cluster started."""
        subprocess.run(["scancel", "--user", self.env.get("USER", "root")], env=self.env,
                       capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            try:
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                self.until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20)
            except (OSError, ValueError, RuntimeError):
                pass


def free_ports():
    """The first of two consecutive ports that nobody uses."""
    while True:
        with socket.socket() as a:
            a.bind(("127.0.0.1", 0))
            port = a.getsockname()[1]
            try:
                with socket.socket() as b:
                    b.bind(("127.0.0.1", port + 1))
                    return port
            except OSError:
                continue
