"""The files in slurm/ under a real Slurm of one node: `make test-slurm`.

They are submitted as they are, with small settings.
"""
import json
import re

import pytest
import slurm_cluster
from helpers import ROOT, finetune_flags
from test_cluster import assert_same

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if slurm_cluster.missing():
        pytest.skip(f"{', '.join(slurm_cluster.missing())} not installed: "
                    "apt install slurm-wlm munge, or `make test-slurm` as root")
    try:
        cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    except RuntimeError as e:
        pytest.skip(f"a Slurm of one node cannot be started here: {e}")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def flags(vae_folder, pretrained, data):
    return [str(a) for a in ("--vae", vae_folder, *finetune_flags(pretrained),
                             "--gamma-blocks", 2, "--ckpt-every", 50, "--log-every", 10)]


SMALL = ("--cpus-per-task=1", "--mem=1G")
# Seconds before the walltime at which Slurm signals; it counts walltimes in whole minutes, and may
# send the signal up to 15 s earlier.
LEAD = 20


def step_of(log):
    """The last step in a job's log."""
    found = re.findall(r"step (\d+)/", log.read_text()) if log.exists() else []
    return int(found[-1]) if found else 0


def stops(text):
    """The signals and steps at which a job's log says that it stopped: [(signal, step)]."""
    return re.findall(r"stopped by (\w+) after step (\d+)/\d+, saved", text)


def resumes(text):
    """The steps at which a job's log says that it resumed."""
    return re.findall(r"resumes at step (\d+)\n", text)


def test_the_chain(cluster, server, scans, data, flags, tmp_path):
    """From scans to metrics. The training is requeued and meets its walltime on its way.

    Its results are bitwise identical to those of a training that was left alone.
    """
    said = server("train", "--data-path", data, *flags, "--max-steps", 50,
                  "--results-dir", tmp_path / "speed", output=tmp_path / "out")
    rate = float(re.findall(r"([\d.]+) steps/s", said)[-1])
    # 80 s of training, of which Slurm grants 25 to 40 at a time, set-up included: enough even if
    # the machine is faster than while its speed was measured
    steps = 100 * max(2, round(rate * 80 / 100))
    log, train = tmp_path / "train.log", [*flags, "--max-steps", steps]
    small = " ".join(SMALL)
    said = cluster(
        "bash", "slurm/chain.sh",
        SCANS=str(scans), NAME="small", ROOT=str(tmp_path),
        OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1",
        PREPROCESS=f"--size 16 --split 3:2 --workers 1 --labels {scans}/participants.tsv "
                   "--label-column group",
        TRAIN=" ".join(map(str, train)),
        SAMPLE="--num-samples 4 --batch-size 2 --sampler ddim --num-sampling-steps 3 --device cpu",
        EVALUATE="--device cpu",
        SBATCH_FOR_PREPROCESS=f"{small} --array=1-2 --output={tmp_path}/preprocess-%a.log",
        SBATCH_FOR_TRAIN=f"{small} --time=1 --signal=B:USR1@{LEAD} --output={log}",
        SBATCH_FOR_SAMPLE=f"{small} --array=1-2 --output={tmp_path}/sample-%a.log",
        SBATCH_FOR_EVALUATE=f"{small} --output={tmp_path}/evaluate.log")
    jobs = dict(line.split(": job ") for line in said.splitlines())
    assert list(jobs) == ["preprocess", "train", "sample", "evaluate"]
    assert cluster.ended(jobs["preprocess"]) == {"COMPLETED"}
    cluster.until(lambda: step_of(log) >= 50, 120)
    cluster("scontrol", "requeue", jobs["train"])
    folder = tmp_path / "data" / "small"
    whole = server.start("train", "--data-path", folder, *train,
                         "--results-dir", tmp_path / "whole", output=tmp_path / "out")
    assert cluster.ended(jobs["train"], 400) == {"COMPLETED"}
    text = log.read_text()
    assert {name for name, _ in stops(text)} == {"SIGTERM", "SIGUSR1"}
    assert f"done: {tmp_path}" in text
    restarts = cluster.job(jobs["train"])["Restarts"]
    assert int(restarts) >= 2
    assert not set("\r\x1b") & set(text), "control characters in the log"
    assert cluster.ended(jobs["evaluate"]) == {"COMPLETED"}

    ours, theirs = (path / "manifest.json" for path in (folder, data))
    assert ours.read_bytes() == theirs.read_bytes()
    assert server.wait(whole) == 0
    assert_same(tmp_path / "results" / "small" / "000-DiT-T-4",
                tmp_path / "whole" / "000-DiT-T-4")
    assert len(list((tmp_path / "samples" / "small" / "nifti").glob("[0-9]*"))) == 4
    metrics = json.loads((tmp_path / "evaluation" / "small" / "metrics.json").read_text())
    assert metrics["metrics"]["mmd_linear"]["value"] > 0
    print(f"steps {steps}, restarts {restarts}, stops: {stops(text)}")


def test_a_canceled_job_stays_canceled_and_the_same_command_resumes(cluster, server, data, flags,
                                                                    tmp_path):
    log = tmp_path / "train.log"
    train = ("--data-path", data, *flags, "--max-steps", 150, "--results-dir")
    command = ("sbatch", "--parsable", *SMALL, f"--output={log}", "slurm/train.sbatch", *train,
               tmp_path / "r")
    job = cluster(*command).strip()
    cluster.until(lambda: step_of(log) >= 10, 120)
    cluster("scancel", job)
    assert cluster.ended(job) == {"CANCELLED"}
    ((name, step),) = stops(log.read_text())
    assert name == "SIGTERM"
    assert cluster.ended(cluster(*command).strip()) == {"COMPLETED"}
    assert resumes(log.read_text()) == [step]
    server("train", *train, tmp_path / "whole", output=tmp_path / "out")
    assert_same(tmp_path / "r" / "000-DiT-T-4", tmp_path / "whole" / "000-DiT-T-4")


def test_two_torchruns(cluster, data, flags, tmp_path):
    """train_multi.sbatch, as if on two nodes: requeued and signaled, or left alone."""
    jobs = {name: cluster(
        "sbatch", "--parsable", *SMALL, "--nodes=1", "--ntasks-per-node=2",
        f"--output={tmp_path / name}.log", "slurm/train_multi.sbatch", "--data-path", data, *flags,
        "--max-steps", 100, "--device", "cpu", "--results-dir", tmp_path / name,
        PROCESSES="1", OMP_NUM_THREADS="1").strip() for name in ("stopped", "whole")}
    log = tmp_path / "stopped.log"
    cluster.until(lambda: step_of(log) >= 10, 180)
    cluster("scontrol", "requeue", jobs["stopped"])
    cluster.until(lambda: step_of(log) >= 30, 180)
    cluster("scancel", "--batch", "--signal=USR1", jobs["stopped"])  # as before a walltime
    assert all(cluster.ended(job) == {"COMPLETED"} for job in jobs.values())
    text = log.read_text()
    assert "2 processes" in text
    assert len(stops(text)) == len(resumes(text)) == 2
    assert cluster.job(jobs["stopped"])["Restarts"] == "2"
    assert stops((tmp_path / "whole.log").read_text()) == []
    assert_same(*(tmp_path / name / "000-DiT-T-4" for name in jobs))


def test_every_file_is_accepted_as_it_is(cluster):
    for path in sorted((ROOT / "slurm").glob("*.sbatch")):
        size = ("--nodes=1", "--cpus-per-task=16") if path.name == "train_multi.sbatch" else ()
        cluster("sbatch", "--test-only", *size, path, "--help")
