"""What tests share: small scans, small weights, and the scripts run as a user runs them."""
import os
import subprocess
import sys
from pathlib import Path

import forked
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = ROOT.parent / "shared"  # cohort of real size; absent in a plain clone
torch.set_num_threads(2)


def golden(name):
    with np.load(GOLDEN / name) as z:
        return {k: z[k] for k in z.files}


def script(name, *args, cwd=ROOT, expect=0, env=None, preexec_fn=None):
    """Runs a script of the repository as a user does. Returns the completed process, whose exit code must be `expect`."""
    done = subprocess.run([sys.executable, str(ROOT / name), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", **(env or {})}, preexec_fn=preexec_fn)
    assert done.returncode == expect, f"{name} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_line(done):
    """The one line of an error that the user can mend; fails when there is more, or less."""
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def brain(shape=(20, 26, 22), seed=0):
    """A smooth ellipsoid with structure and no symmetry, float32, 0 outside."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    phase = rng.uniform(0, 2 * np.pi, 3)
    inside = (x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.8) ** 2 < 1
    value = 500 + 200 * np.sin(4 * x + phase[0]) * np.cos(3 * y + phase[1]) + 150 * np.sin(5 * z + phase[2]) + 100 * x
    return ndimage.gaussian_filter(np.where(inside, value, 0), 1.2).astype(np.float32)


def related(n, side, seed=0):
    """Volumes that share structure, as brains do, in [0, 1]."""
    rng = np.random.default_rng(seed)
    common = ndimage.gaussian_filter(rng.random((side,) * 3), 2)
    out = np.stack([common + 0.5 * ndimage.gaussian_filter(rng.random((side,) * 3), 2) + 0.02 * rng.random((side,) * 3) for _ in range(n)])
    return (out - out.min()) / (out.max() - out.min())


def save_nifti(path, array, affine, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


AFFINE = np.array([[1.5, 0, 0, -14], [0, 1.25, 0, -16], [0, 0, 2.0, -22], [0, 0, 0, 1.0]])


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A BIDS-like folder of 6 scans of 5 subjects in two axis orders."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(6):
        subject, session = (0, i + 1) if i < 2 else (i - 1, 1)
        array, affine = brain(seed=i), AFFINE
        if i % 2:
            array, affine = array[::-1], AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        name = f"sub-{subject:02d}_ses-{session}_T1w.nii.gz"
        save_nifti(folder / f"sub-{subject:02d}" / f"ses-{session}" / "anat" / name, array, affine)
    rows = "".join(f"sub-{s:02d}\t{'AD' if s % 2 else 'CN'}\n" for s in range(5))
    (folder / "participants.tsv").write_text("participant_id\tgroup\n" + rows)
    return folder


@pytest.fixture(scope="session")
def data(scans, tmp_path_factory):
    """A data folder of 16-voxel cubes: 3 x 3 rgb tiles, 48 x 48 mosaics."""
    folder = tmp_path_factory.mktemp("data") / "d16"
    script("preprocess.py", "--input", scans, "--output", folder, "--size", 16, "--split", "3:2", "--workers", 1,
           "--labels", scans / "participants.tsv", "--label-column", "group")
    return folder


def random_vae(folder, blocks=(16, 16, 16), channels=5, seed=0, **config):
    """Writes a small AutoencoderKL of random weights: factor 4, 5 channels unless told otherwise."""
    from diffusers import AutoencoderKL
    torch.manual_seed(seed)
    vae = AutoencoderKL(block_out_channels=blocks, layers_per_block=1, latent_channels=channels, norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * len(blocks), up_block_types=("UpDecoderBlock2D",) * len(blocks),
                        mid_block_add_attention=False, **{"scaling_factor": 0.7, **config})
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    return random_vae(tmp_path_factory.mktemp("vae") / "small")


TRAIN = ("--ckpt", "none", "--model", "DiT-T/4", "--num-classes", 2, "--precision", "fp32", "--global-batch-size", 4, "--lr", 1e-3,
         "--ema-decay", 0.9, "--log-every", 2, "--ckpt-every", 2, "--device", "cpu")


def train_flags(base):
    """TRAIN with these weights to begin with instead of none."""
    return [base if a == "none" else a for a in TRAIN]


def finetune_flags(pretrained):
    """TRAIN on top of the run folder `pretrained`."""
    return train_flags(pretrained / "checkpoints" / "0000002.safetensors")


@pytest.fixture(scope="module")
def server():
    """train.py and sample.py, run many times for the price of one start."""
    server = forked.Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def pretrained(data, vae_folder, tmp_path_factory):
    """A run folder of `--tune full` from random weights: the stand-in for a pretrained model."""
    results = tmp_path_factory.mktemp("pretrained")
    script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir", results, "--tune", "full", "--max-steps", 2,
           *TRAIN, "--lr", 1e-2)
    return results / "000-DiT-T-4"


@pytest.fixture(scope="session")
def finetuned(data, vae_folder, pretrained, tmp_path_factory):
    """A run folder of `--tune difffit` with scale vectors on top of `pretrained`."""
    results = tmp_path_factory.mktemp("finetuned")
    script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir", results, "--gamma-blocks", 2, "--max-steps", 4,
           *finetune_flags(pretrained))
    return results / "000-DiT-T-4"


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the format of pt_inception-2015-12-05, scaled so that features do not vanish."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    torch.manual_seed(0)
    init = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    load, torch.load = torch.load, lambda *a, **k: None
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="unused")
    finally:
        FeatureExtractorInceptionV3.load_state_dict, torch.load = init, load
    for p in net.parameters():
        if p.dim() == 4:
            torch.nn.init.kaiming_normal_(p)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(net.state_dict(), path)
    return path
