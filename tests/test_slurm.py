"""The files in slurm/ under a real Slurm of one node: `make test-slurm`. They are submitted as they are, with small settings."""
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
        pytest.skip(f"{', '.join(slurm_cluster.missing())} not installed: apt install slurm-wlm munge, or `make test-slurm` as root")
    try:
        cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    except RuntimeError as e:
        pytest.skip(f"a Slurm of one node cannot be started here: {e}")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def flags(vae_folder, pretrained, data):
    return [str(a) for a in ("--vae", vae_folder, *finetune_flags(pretrained), "--gamma-blocks", 2, "--ckpt-every", 50, "--log-every", 10)]


SMALL = ("--cpus-per-task=1", "--mem=1G")
LEAD = 20  # s before the walltime, which Slurm counts in whole minutes; the signal comes up to 15 s earlier


def step_of(log):
    """The last step that a job's log tells of."""
    found = re.findall(r"step (\d+)/", log.read_text()) if log.exists() else []
    return int(found[-1]) if found else 0


def test_the_chain(cluster, server, scans, data, flags, tmp_path):
    """Scans to metrics. On its way the training is requeued, meets its walltime, and goes on: its bits are as if it had not."""
    said = server("train", "--data-path", data, *flags, "--max-steps", 50, "--results-dir", tmp_path / "speed", output=tmp_path / "out")
    rate = float(re.findall(r"([\d.]+) steps/s", said)[-1])
    steps = 100 * max(2, round(rate * 50 / 100))  # 50 s, of which Slurm grants 25 to 40 at a time, set-up included
    log, train = tmp_path / "train.log", [*flags, "--max-steps", steps]
    env = dict(
        SCANS=str(scans), NAME="small", ROOT=str(tmp_path), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1",
        PREPROCESS=f"--size 16 --split 3:2 --workers 1 --labels {scans}/participants.tsv --label-column group",
        TRAIN=" ".join(map(str, train)),
        SAMPLE="--num-samples 4 --batch-size 2 --sampler ddim --num-sampling-steps 3 --device cpu", EVALUATE="--device cpu",
        SBATCH_FOR_PREPROCESS=f"{' '.join(SMALL)} --array=1-2 --output={tmp_path}/preprocess-%a.log",
        SBATCH_FOR_TRAIN=f"{' '.join(SMALL)} --time=1 --signal=B:USR1@{LEAD} --output={log}",
        SBATCH_FOR_SAMPLE=f"{' '.join(SMALL)} --array=1-2 --output={tmp_path}/sample-%a.log",
        SBATCH_FOR_EVALUATE=f"{' '.join(SMALL)} --output={tmp_path}/evaluate.log")
    said = cluster("bash", "slurm/chain.sh", **env)
    jobs = dict(line.split(": job ") for line in said.splitlines())
    assert list(jobs) == ["preprocess", "train", "sample", "evaluate"]
    assert cluster.ended(jobs["preprocess"]) == {"COMPLETED"}
    cluster.until(lambda: step_of(log) >= 50, 120)
    cluster("scontrol", "requeue", jobs["train"])
    whole = server.start("train", "--data-path", tmp_path / "data" / "small", *train, "--results-dir", tmp_path / "whole",
                         output=tmp_path / "out")
    assert cluster.ended(jobs["train"], 400) == {"COMPLETED"}
    text = log.read_text()
    assert "stopped by SIGTERM" in text and "stopped by SIGUSR1" in text and f"done: {tmp_path}" in text
    assert int(cluster.job(jobs["train"])["Restarts"]) >= 2
    assert not set("\r\x1b") & set(text), "control characters in the log"
    assert cluster.ended(jobs["evaluate"]) == {"COMPLETED"}
    assert (tmp_path / "data" / "small" / "manifest.json").read_bytes() == (data / "manifest.json").read_bytes()
    assert server.wait(whole) == 0
    assert_same(tmp_path / "results" / "small" / "000-DiT-T-4", tmp_path / "whole" / "000-DiT-T-4")
    assert len(list((tmp_path / "samples" / "small" / "nifti").glob("[0-9]*"))) == 4
    metrics = json.loads((tmp_path / "evaluation" / "small" / "metrics.json").read_text())
    assert metrics["metrics"]["mmd_linear"]["value"] > 0
    print(f"steps {steps}, restarts {cluster.job(jobs['train'])['Restarts']}, steps at which it stopped: "
          + ", ".join(re.findall(r"after step (\d+)/", text)))


def test_a_cancelled_job_stays_cancelled_and_the_same_command_goes_on(cluster, server, data, flags, tmp_path):
    log = tmp_path / "train.log"
    command = ("sbatch", "--parsable", *SMALL, f"--output={log}", "slurm/train.sbatch", "--data-path", data, *flags, "--max-steps", 150)
    job = cluster(*command, "--results-dir", tmp_path / "r").strip()
    cluster.until(lambda: step_of(log) >= 10, 120)
    cluster("scancel", job)
    assert cluster.ended(job) == {"CANCELLED"} and "stopped by SIGTERM after step" in log.read_text()
    assert cluster.ended(cluster(*command, "--results-dir", tmp_path / "r").strip()) == {"COMPLETED"}
    server("train", "--data-path", data, *flags, "--max-steps", 150, "--results-dir", tmp_path / "whole", output=tmp_path / "out")
    assert_same(tmp_path / "r" / "000-DiT-T-4", tmp_path / "whole" / "000-DiT-T-4")


def test_two_torchruns(cluster, data, flags, tmp_path):
    """train_multi.sbatch as if of two nodes, requeued, and signalled as before a walltime, against the same left alone."""
    jobs = {name: cluster(
        "sbatch", "--parsable", *SMALL, "--nodes=1", "--ntasks-per-node=2", f"--output={tmp_path / name}.log",
        "slurm/train_multi.sbatch", "--data-path", data, *flags, "--max-steps", 100, "--device", "cpu",
        "--results-dir", tmp_path / name, PROCESSES="1", OMP_NUM_THREADS="1").strip() for name in ("stopped", "whole")}
    for step, command in ((10, ("scontrol", "requeue")), (30, ("scancel", "--batch", "--signal=USR1"))):
        cluster.until(lambda step=step: step_of(tmp_path / "stopped.log") >= step, 180)
        cluster(*command, jobs["stopped"])
    assert all(cluster.ended(job) == {"COMPLETED"} for job in jobs.values())
    text = (tmp_path / "stopped.log").read_text()
    assert "2 processes" in text and text.count("saved; the same command goes on") == text.count("; goes on at step") == 2
    assert cluster.job(jobs["stopped"])["Restarts"] == "2"
    assert "stopped" not in (tmp_path / "whole.log").read_text().replace("/stopped", "")
    assert_same(*(tmp_path / name / "000-DiT-T-4" for name in jobs))


def test_every_file_is_accepted_as_it_is(cluster):
    for path in sorted((ROOT / "slurm").glob("*.sbatch")):
        size = ("--nodes=1", "--cpus-per-task=16") if path.name == "train_multi.sbatch" else ()
        cluster("sbatch", "--test-only", *size, path, "--help")
