#!/usr/bin/env python3
"""Summarizes the demo's evaluations, checks their order, draws real, sampled and refined side by
side, and names the figures to open.

    python demo/summary.py demo/out
"""
import sys
from pathlib import Path

# run.sh calls this file by its path; the repository's root holds the folders it imports from
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metrics.volume_sets import find_set  # noqa: E402
from reporting import figures  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.files import read_json  # noqa: E402
from utils.flags import make_parser  # noqa: E402

COMPARED = {
    # folder in evaluation/: what is compared with the held-out real scans
    "real": "other real scans",
    "difffit": "DiffFit on this contrast",
    "refined": "DiffFit, refined",
    "base": "base, the other contrast",
}
PICTURE = "demo.png"
FILES = {
    # file: what it shows
    PICTURE: "a real, a sampled and the refined brain",
    "refiner/refinement.png": "what the refiner does to a noised and resampled real brain",
    "vae/reconstruction.png": "what the VAE loses",
    "evaluation/difffit/figures/montage.png": "real next to synthetic, three views at three depths",
    "evaluation/difffit/figures/gallery.png": "eight real and eight synthetic brains",
    "evaluation/base/figures/montage.png": "the base model, before DiffFit",
    "samples/difffit/mosaics/000000.png": "a sampled mosaic",
    "nifti/restored/000000.nii.gz": "the same sample, refined, for any NIfTI viewer",
    "evaluation/difffit/figures/nearest.png": "the nearest training volumes: are there copies?",
    "evaluation/difffit/report.html": "every number, its interval, its floor and its ceiling",
}
MARGIN = 2  # the base model's MMD must be this many times that of the finetuned model


def main():
    p = make_parser(__doc__)
    p.add_argument("folder", type=Path, help="folder that demo/run.sh wrote")
    folder = p.parse_args().folder
    metrics = {name: read_json(folder / "evaluation" / name / "metrics.json")["metrics"]
               for name in COMPARED}
    print_numbers(metrics)
    print_round_trips(read_json(folder / "refiner" / "refiner.json")["held_out"])
    draw_picture(folder)
    print("\nOpen these:")
    for file, shown in FILES.items():
        print(f"  {folder / file}  ({shown})")
    mmd = {name: entries["mmd_linear"]["value"] for name, entries in metrics.items()}
    if not (mmd["real"] < mmd["difffit"] and MARGIN * mmd["difffit"] < mmd["base"]):
        print(f"The MMDs are not in the order real < DiffFit < base, the last {MARGIN} times the "
              "second: a step above went wrong.", file=sys.stderr)
        return 1
    return 0


def print_numbers(metrics):
    """The main numbers, a line per evaluation.

    :param metrics: {folder: {key: entry of metrics.json}}
    """
    print(f"{'compared with held-out real scans':34}  MMD, linear   MS-SSIM within the set, %   "
          "gradient energy R-L, A-P   through-plane roughness")
    for name, words in COMPARED.items():
        mmd = metrics[name]["mmd_linear"]["value"]
        similarity = metrics[name]["ms_ssim"]["value"]
        in_plane = [metrics[name][f"gradient_{axis}"]["value"] for axis in ("right", "anterior")]
        energies = ", ".join(f"{value:.3f}" for value in in_plane)
        roughness = metrics[name]["through_plane"]["value"]
        print(f"  {words:32}  {mmd:11.1f}   {100 * similarity:25.1f}   {energies:>24}   "
              f"{roughness:23.2f}")


def print_round_trips(held_out):
    """What the VAE loses, and what the refiner gives back.

    :param held_out: of refiner.json
    """
    before, after = (held_out[f"round trips, {when}"] for when in ("before", "after"))
    print(f"held-out volumes after the VAE: PSNR {before['psnr_db']:.1f} dB, roughness "
          f"{before['through_plane']:.2f}; refined: {after['psnr_db']:.1f} dB, "
          f"{after['through_plane']:.2f}")


def draw_picture(folder):
    """A held-out real volume, a sample and the refined sample, side by side."""
    real = find_set(folder / "data" / "mprage", "test", "--real")
    samples = find_set(folder / "samples" / "difffit", None, "--synthetic")
    refined = find_set(folder / "nifti" / "refined", None, "--synthetic", like=real)
    middle = len(samples) // 2
    columns = [("real", real.read(0)), ("sampled", samples.read(middle)),
               ("sampled, refined", refined.read(middle))]
    figures.montage(folder / PICTURE, columns, real.voxel_sizes, affine=real.affine)


if __name__ == "__main__":
    run_script(main)
