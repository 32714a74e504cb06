"""Writes the folders of format version 2 that tests/test_older_versions.py reads.

Run once, with the code of commit 243c70e (the flat modules before the house), in an empty folder:

    PYTHONPATH=/path/to/that/checkout python make.py /path/to/that/checkout

The model is a DiT of width 32 that no zoo holds, so that the files are small: it is added to the
zoo for the runs, as the test does.
"""
import os
import runpy
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from diffusers import AutoencoderKL

import models

root = Path(sys.argv[1])
models.SIZES["N"] = (32, 2, 2)
models.DiT_models["DiT-N/4"] = models.partial(models._build, "DiT-N/4")


def run(script, *args):
    sys.argv = [script, *map(str, args)]
    try:
        runpy.run_path(str(root / script), run_name="__main__")
    except SystemExit as e:
        assert not e.code, (script, e.code)


rng = np.random.default_rng(0)
grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 20, 16)], indexing="ij"))
os.mkdir("scans")
for i in range(5):
    inside = (grid ** 2).sum(0) < 0.8
    array = np.where(inside, 400 + 200 * np.sin(4 * grid[0] + i) * np.cos(3 * grid[1]) + 100 * grid[2], 0)
    affine = np.diag([-1.5 if i % 2 else 1.5, 1.25, 2.0, 1.0])
    affine[:3, 3] = [14 if i % 2 else -14, -12, -16]
    image = nib.Nifti1Image(array.astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, f"scans/sub-{i:02d}_T1w.nii.gz")
Path("labels.tsv").write_text("participant_id\tgroup\n" + "".join(
    f"sub-{i:02d}\t{'AD' if i % 2 else 'CN'}\n" for i in range(5)))
torch.manual_seed(0)
AutoencoderKL(block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
              down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
              mid_block_add_attention=False, scaling_factor=0.7).save_pretrained("vae")
run("preprocess.py", "--input", "scans", "--output", "data", "--size", 16, "--split", "3:2", "--workers", 1,
    "--labels", "labels.tsv", "--label-column", "group", "--crop", "brain")
common = ("--data-path", "data", "--vae", "vae", "--model", "DiT-N/4", "--num-classes", 2, "--precision", "fp32",
          "--global-batch-size", 2, "--lr", 1e-2, "--ema-decay", 0.5, "--log-every", 1, "--device", "cpu")
run("train.py", *common, "--ckpt", "none", "--tune", "full", "--max-steps", 2, "--results-dir", "base")
os.rename("base/000-DiT-N-4/checkpoints/0000002.safetensors", "base.safetensors")
shutil.rmtree("base")
tuning = (*common, "--ckpt", "base.safetensors", "--gamma-blocks", 1, "--max-steps", 4, "--ckpt-every", 2)
run("train.py", *tuning, "--results-dir", "results")
run("sample.py", "--ckpt", "results/000-DiT-N-4/checkpoints/0000004.safetensors", "--num-samples", 2, "--sampler", "ddim",
    "--num-sampling-steps", 3, "--precision", "fp32", "--device", "cpu", "--output", "samples")
run("evaluate.py", "--real", "data", "--synthetic", "data", "--synthetic-split", "train", "--output", "evaluation",
    "--metrics", "ms-ssim", "mmd", "smoothness", "histogram", "--device", "cpu")
