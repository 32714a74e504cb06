"""Fixtures that tests share, and the settings of a test run."""
import multiprocessing.process
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import (
    AFFINE,
    TRAIN,
    brain,
    finetune_flags,
    random_vae,
    save_nifti,
    script,
    script_server,
)

# Long files, the longest first. Under `--dist loadfile` each test process takes the next file when
# it has finished one; with the long ones first, all processes finish at about the same time.
LONG_FILES = ("test_evaluate.py", "test_cluster.py", "test_scripts.py", "test_bench.py",
              "test_train.py", "test_older_versions.py", "test_inception.py")


def listen_to_signals():
    """Undoes that a shell ignores signals of what it starts in the background: scripts that tests
    start would ignore them, too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true",
                     help="skip tests that start a process: scripts, training runs, servers")
    parser.addoption("--gpu", action="store_true",
                     help="let tests see this machine's GPUs: for tests/test_gpu.py alone")


def pytest_configure(config):
    listen_to_signals()
    if not config.getoption("gpu"):
        # what is tested is the CPU, also where there is a GPU, which scripts would choose
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.getoption("numprocesses", None):
        # inherited by the test processes: with several threads each, they would only wait for
        # one another
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def quick(pytestconfig):
    """Under --quick, skips a test as soon as it is about to start a Python process."""
    if not pytestconfig.getoption("--quick"):
        yield
        return

    def skip(*_):
        pytest.skip("starts a process, which --quick leaves out")

    def start(process, command, *args, **kwargs):
        if str(command[0]) == sys.executable:
            skip()
        popen(process, command, *args, **kwargs)

    popen = subprocess.Popen.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", start)
        patch.setattr(multiprocessing.process.BaseProcess, "start", skip)
        yield


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """A test may set the number of PyTorch's threads; the next one gets back what it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A BIDS-like folder of 6 scans of 5 subjects in two axis orders."""
    folder = tmp_path_factory.mktemp("scans")
    mirrored = AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for i in range(6):
        subject, session = (0, i + 1) if i < 2 else (i - 1, 1)
        array, affine = brain(seed=i), AFFINE
        if i % 2:
            array, affine = array[::-1], mirrored
        name = f"sub-{subject:02d}_ses-{session}_T1w.nii.gz"
        save_nifti(folder / f"sub-{subject:02d}" / f"ses-{session}" / "anat" / name, array, affine)
    rows = "".join(f"sub-{s:02d}\t{'AD' if s % 2 else 'CN'}\n" for s in range(5))
    (folder / "participants.tsv").write_text("participant_id\tgroup\n" + rows)
    return folder


@pytest.fixture(scope="session")
def data(scans, tmp_path_factory):
    """A data folder of 16-voxel cubes: 3 x 3 rgb tiles, 48 x 48 mosaics."""
    folder = tmp_path_factory.mktemp("data") / "d16"
    script("preprocess.py", "--input", scans, "--output", folder, "--size", 16, "--split", "3:2",
           "--workers", 1, "--labels", scans / "participants.tsv", "--label-column", "group")
    return folder


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    """A VAE of random weights: factor 4, 5 channels."""
    return random_vae(tmp_path_factory.mktemp("vae") / "small")


@pytest.fixture(scope="session")
def server():
    """The scripts, run many times for the price of one start; tests send them signals."""
    return script_server()


@pytest.fixture(scope="session")
def pretrained(data, vae_folder, tmp_path_factory):
    """A run folder of `--tune full` from random weights, which stands for a pretrained model."""
    results = tmp_path_factory.mktemp("pretrained")
    script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir", results,
           "--tune", "full", "--max-steps", 2, *TRAIN, "--lr", 1e-2)
    return results / "000-DiT-T-4"


@pytest.fixture(scope="session")
def finetuned(data, vae_folder, pretrained, tmp_path_factory):
    """A run folder of `--tune difffit` with scale vectors on top of `pretrained`."""
    results = tmp_path_factory.mktemp("finetuned")
    script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir", results,
           "--gamma-blocks", 2, "--max-steps", 4, *finetune_flags(pretrained))
    return results / "000-DiT-T-4"


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the format of pt_inception-2015-12-05, scaled so that features differ."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        net = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path="unused")
    for p in net.parameters():
        if p.dim() == 4:
            torch.nn.init.kaiming_normal_(p)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(net.state_dict(), path)
    return path
