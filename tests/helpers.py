"""What tests share: small scans, small weights, and the scripts run as a user runs them."""
import atexit
import functools
import os
import subprocess
import sys
from pathlib import Path

import forked
import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = ROOT.parent / "shared"  # cohort of real size; absent in a plain clone
AFFINE = np.array([[1.5, 0, 0, -14], [0, 1.25, 0, -16], [0, 0, 2.0, -22], [0, 0, 0, 1.0]])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def golden(name):
    with np.load(GOLDEN / name) as z:
        return {k: z[k] for k in z.files}


# ---------------------------------------------------------------------------------------- scripts

@functools.cache
def script_server():
    """This test process's server of scripts (see forked.py)."""
    server = forked.Server()
    atexit.register(server.close)
    return server


def script(name, *args, cwd=ROOT, expect=0, env=None, preexec_fn=None, fresh=False,
           max_file_bytes=None):
    """Runs a script of the repository as a user does; its exit code must be `expect`.

    :param preexec_fn: called in the new process before the script starts; implies `fresh`
    :param fresh: start a new Python instead of forking one that has imported the scripts; for
        environment variables that matter at import, and for code outside the repository
    :param max_file_bytes: files cannot grow larger: writing then fails as on a full disk; not
        with `fresh`
    :return: subprocess.CompletedProcess
    """
    argv = [str(a) for a in args]
    if fresh or preexec_fn:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(env or {})}
        done = subprocess.run(
            [sys.executable, str(ROOT / name), *argv], cwd=cwd, capture_output=True, text=True,
            timeout=600, env=environment, preexec_fn=preexec_fn)
    else:
        done = script_server().run(name.removesuffix(".py"), argv, cwd, env, max_file_bytes)
    assert done.returncode == expect, (
        f"{name} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_line(done):
    """The one line of an error that the user can fix; fails if there is not exactly one."""
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


# ------------------------------------------------------------------------------------------ scans

def brain(shape=(20, 26, 22), seed=0):
    """A smooth ellipsoid with structure and no symmetry, float32, 0 outside."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    phase = rng.uniform(0, 2 * np.pi, 3)
    inside = (x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.8) ** 2 < 1
    value = 500 + 200 * np.sin(4 * x + phase[0]) * np.cos(3 * y + phase[1])
    value += 150 * np.sin(5 * z + phase[2]) + 100 * x
    return ndimage.gaussian_filter(np.where(inside, value, 0), 1.2).astype(np.float32)


def related(n, side, seed=0):
    """Volumes that share structure, as brains do, (n, side, side, side) in [0, 1]."""
    rng = np.random.default_rng(seed)
    common = ndimage.gaussian_filter(rng.random((side,) * 3), 2)

    def one():
        own = 0.5 * ndimage.gaussian_filter(rng.random((side,) * 3), 2)
        return common + own + 0.02 * rng.random((side,) * 3)

    out = np.stack([one() for _ in range(n)])
    return (out - out.min()) / (out.max() - out.min())


def save_nifti(path, array, affine, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


# ---------------------------------------------------------------------------------------- weights

def small_dit(**config):
    """A DiT of 3 blocks of width 64, for latents of 4 x 8 x 8, unless the config says otherwise."""
    import models
    return models.DiT(**{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64,
                         "depth": 3, "num_heads": 4, "num_classes": 10, **config})


def randomize(model, std=0.1):
    """Draws all parameters that train from a normal distribution: then every branch matters."""
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=std)
    return model


def random_vae(folder, blocks=(16, 16, 16), channels=5, seed=0, **config):
    """Writes a small AutoencoderKL of random weights; by default of factor 4 with 5 channels."""
    from diffusers import AutoencoderKL
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=blocks, layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks), mid_block_add_attention=False,
        **{"scaling_factor": 0.7, **config})
    vae.save_pretrained(folder)
    return folder


TRAIN = ("--ckpt", "none", "--model", "DiT-T/4", "--num-classes", 2, "--precision", "fp32",
         "--global-batch-size", 4, "--lr", 1e-3, "--ema-decay", 0.9, "--log-every", 2,
         "--ckpt-every", 2, "--device", "cpu")


def train_flags(base):
    """TRAIN, but starting from these weights instead of random ones."""
    return [base if a == "none" else a for a in TRAIN]


def finetune_flags(pretrained):
    """TRAIN on top of the run folder `pretrained`."""
    return train_flags(pretrained / "checkpoints" / "0000002.safetensors")
