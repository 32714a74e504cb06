"""slurm/submit.sh and chain.sh with a stand-in for sbatch, which writes down what it is given."""
import os
import shutil
import subprocess

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


@pytest.fixture
def run(tmp_path):
    """Runs a file of slurm/; the calls of sbatch, each a list of words."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\nwc -l < "$CALLS"\n')
    sbatch.chmod(0o755)

    def call(file, *args, site="", **env):
        (tmp_path / "site.env").write_text((ROOT / "slurm" / "site.env").read_text() + site)
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "slurm" / file), *args], cwd=ROOT, capture_output=True, text=True,
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"),
                 "SITE_ENV": str(tmp_path / "site.env"), **env})
        assert done.returncode == 0, done.stderr
        return [line.split() for line in (tmp_path / "calls").read_text().splitlines()], done.stdout

    return call


def of_sbatch(words):
    """The flags that sbatch gets itself: those before the file."""
    file = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    return words[:file]


SITE = "ACCOUNT=me\nCPU_PARTITION=cpu\nGPU_PARTITION=gpu\nGPU_TYPE=v100\n"


def test_a_stage_gets_what_site_env_names(run):
    ((words,), _) = run("submit.sh", "train", "--data-path", "d", site=SITE)
    assert of_sbatch(words) == [
        "--parsable", "--account=me", "--partition=gpu", "--gres=gpu:v100:1"]
    assert words[-2:] == ["--data-path", "d"]
    ((words,), _) = run("submit.sh", "preprocess", "--input", "x", site=SITE)
    assert of_sbatch(words) == ["--parsable", "--account=me", "--partition=cpu"]
    ((words,), _) = run("submit.sh", "train_multi", site=SITE)
    assert "--gres=gpu:v100:4" in words
    ((words,), _) = run("submit.sh", "evaluate")
    assert of_sbatch(words) == ["--parsable"]   # nothing that a cluster may not have


def test_flags_of_sbatch_win(run):
    ((words,), _) = run("submit.sh", "train", site=SITE,
                        SBATCH_FLAGS="--account=other -p short --gres=gpu:1")
    assert of_sbatch(words) == ["--parsable", "--account=other", "-p", "short", "--gres=gpu:1"]


def test_gpus_per_node_does_not_clash_with_gres(run):
    ((words,), _) = run("submit.sh", "train", site=SITE, SBATCH_FLAGS="--gpus-per-node=a100:2")
    assert of_sbatch(words)[-1] == "--gres=gpu:a100:2"
    assert not any(word.startswith("--gpus-per-node") for word in words)
    for path in (ROOT / "slurm").glob("*.sbatch"):
        assert "#SBATCH --gpus" not in path.read_text(), path


@pytest.mark.parametrize("flags, tasks", [
    ((), 4), (("--num-samples", "1000"), 8), (("--num-samples=10", "--batch-size=4"), 3),
    (("--batch-size", "32"), 1), (("--num-samples", "9", "--batch-size", "8"), 2)])
def test_no_sampling_task_is_idle(run, flags, tasks):
    ((words,), _) = run("submit.sh", "sample", "--ckpt", "c", *flags)
    assert f"--array=1-{tasks}" in words
    ((words,), _) = run("submit.sh", "sample", *flags, SBATCH_FLAGS="--array=1-2")
    assert [word for word in words if word.startswith("--array")] == ["--array=1-2"]


def test_an_unknown_stage(run, tmp_path):
    done = subprocess.run(["bash", str(ROOT / "slurm" / "submit.sh"), "trian"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "no stage trian; usage:" in done.stderr


def test_the_chain(run, tmp_path):
    calls, said = run("chain.sh", SCANS="s/", NAME="x", ROOT=str(tmp_path), site="ACCOUNT=me\n",
                      TRAIN="--ckpt none --vae v1", SAMPLE="--num-samples 16",
                      SBATCH_FOR_EVALUATE="--time=1")
    assert said.splitlines() == [
        "preprocess: job 1", "train: job 2", "sample: job 3", "evaluate: job 4"]
    assert all("--account=me" in words for words in calls)
    for before, words in enumerate(calls[1:], 1):
        assert f"--dependency=afterok:{before}" in words
    evaluate = calls[3]
    assert evaluate[evaluate.index("--vae") + 1] == "v1"    # which the model was trained with
    assert evaluate[evaluate.index("--train") + 1] == f"{tmp_path}/data/x"
    assert "--update" in evaluate and "--time=1" in of_sbatch(evaluate)
    assert "--array=1-2" in calls[2]


def test_the_chain_again(run, tmp_path):
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "data" / "x" / "manifest.json").write_text("{}")
    (tmp_path / "evaluation" / "x").mkdir(parents=True)
    (tmp_path / "evaluation" / "x" / "metrics.json").write_text("{}")
    calls, said = run("chain.sh", SCANS="s/", NAME="x", ROOT=str(tmp_path), MULTI="1",
                      SAMPLE="--vae=mse --num-samples 64")
    assert said.splitlines()[0] == f"preprocess: {tmp_path}/data/x already exists"
    assert [line.split(":")[0] for line in said.splitlines()[1:]] == ["train", "sample", "evaluate"]
    assert "--array=1-8" in calls[1]
    assert calls[2][calls[2].index("--vae") + 1] == "mse"
    calls, _ = run("chain.sh", SCANS="s/", NAME="x", ROOT=str(tmp_path), VAE="v2")
    assert calls[2][calls[2].index("--vae") + 1] == "v2"
    calls, _ = run("chain.sh", SCANS="s/", NAME="x", ROOT=str(tmp_path))
    assert calls[2][calls[2].index("--vae") + 1] == "ema"


def test_a_job_finds_python(tmp_path):
    """setup.sh: modules, then conda or .venv, in the repository, from wherever it is called."""
    repository = tmp_path / "repository"
    (repository / "slurm").mkdir(parents=True)
    (repository / ".venv" / "bin").mkdir(parents=True)
    for name in ("setup.sh", "site.env"):
        shutil.copy(ROOT / "slurm" / name, repository / "slurm")
    code = ('module() { echo "module $*"; }\n'
            'conda() { [ "$1" = shell.bash ] || echo "conda $*"; }\n'
            'set -eu; . "${MOSAICDIT:-$SLURM_SUBMIT_DIR}/slurm/setup.sh"; pwd; echo "${PATH%%:*}"')

    def run(site="", **env):
        (repository / "slurm" / "site.env").write_text(
            (ROOT / "slurm" / "site.env").read_text() + site)
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd="/",
                              env={"PATH": os.environ["PATH"], **env})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    here = str(repository)
    assert run(SLURM_SUBMIT_DIR=here) == [here, f"{here}/.venv/bin"]
    assert run(MOSAICDIT=here, SLURM_SUBMIT_DIR="/") == [here, f"{here}/.venv/bin"]
    lines = run('MODULES="python/3.11 cuda"\nCONDA_ENV=brains\n', SLURM_SUBMIT_DIR=here)
    assert lines[:3] == ["module load python/3.11", "module load cuda", "conda activate brains"]
    assert lines[4] != f"{here}/.venv/bin"


def test_git_ignores_what_is_of_patients(tmp_path):
    """One `git add .` must not take scans along; the tests' own scans stay."""
    def is_ignored(path):
        done = subprocess.run(["git", "-c", "safe.directory=*", "check-ignore", "-q", "--no-index",
                               path], cwd=ROOT)
        if done.returncode > 1:
            pytest.skip("not a git checkout")
        return done.returncode == 0

    for path in ("adni/a.txt", "scans/x.dcm", "restored/x", "somewhere/deep/x.nii.gz", "x.nii",
                 "y.mgz", "nifti/a", "train-123.log", "sample-123_4.log", "slurm-123.out",
                 "data/x/manifest.json"):
        assert is_ignored(path), path
    for path in ("tests/golden/v2/scans/sub-00_T1w.nii.gz", "mri/nifti.py", "docs/demo.png",
                 "tests/golden/v2/data/mosaics/a.png"):
        assert not is_ignored(path), path
