#!/usr/bin/env python3
"""Reads the demo's three evaluations, checks that they come in the order they must, and names the figures to open.

    python demo/summary.py demo/out
"""
import json
import sys
from pathlib import Path

NAMES = {"real": "other real scans", "difffit": "DiffFit on this contrast", "base": "base, the other contrast"}


def main():
    out = Path(sys.argv[1])
    mmd, similarity, rough = {}, {}, {}
    for name in NAMES:
        metrics = json.loads((out / "evaluation" / name / "metrics.json").read_text())["metrics"]
        mmd[name], similarity[name], rough[name] = (metrics[k]["value"] for k in ("mmd_linear", "ms_ssim", "through_plane"))
    print("against held-out real scans         MMD, linear   MS-SSIM within, %   through-plane roughness")
    for name, words in NAMES.items():
        print(f"  {words:32}  {mmd[name]:11.1f}   {100 * similarity[name]:17.1f}   {rough[name]:23.2f}")
    psnr = json.loads((out / "vae" / "psnr.json").read_text())["mean"]["volume"]
    print(f"VAE, held-out volumes there and back: {psnr:.1f} dB")
    print("\nOpen these:")
    for path, words in (("vae/reconstruction.png", "what the VAE loses"),
                        ("evaluation/difffit/figures/montage.png", "real beside synthetic, three views by three depths"),
                        ("evaluation/difffit/figures/gallery.png", "eight real and eight synthetic brains"),
                        ("evaluation/base/figures/montage.png", "the base model, before DiffFit"),
                        ("samples/difffit/mosaics/000000.png", "a sampled mosaic"),
                        ("nifti/000000.nii.gz", "the same as a volume, for any NIfTI viewer"),
                        ("evaluation/difffit/figures/nearest.png", "has it copied? the nearest training volumes"),
                        ("evaluation/difffit/report.html", "every number, its interval, its floor and its ceiling")):
        print(f"  {out / path}  ({words})")
    if not 2 * mmd["real"] < 2 * mmd["difffit"] < mmd["base"]:
        print("The MMDs are not in the order real < DiffFit < base by a clear margin: something went wrong above.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
