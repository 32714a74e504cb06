"""Three slices in three colors, or one slice a tile: what each layout keeps of real volumes.

For each layout, the decoder as it is and adapted by train_vae.py, and after each of them nothing or
a refiner of train_refiner.py. Decoders and refiners are trained on the train split and measured on
the test split. The scripts run as a user runs them, and what they wrote stays in the output folder:
the same command again continues where it was interrupted.
"""
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import models
from benchmarks import training_cost
from diffusion import refiner as refiners
from diffusion import vae as latents
from metrics import ceiling, ms_ssim, psnr, refinement
from mri import geometry, manifest, mosaic, mosaic_files
from reporting import charts
from utils.errors import UserError
from utils.files import SCRIPTS_DIR, atomic_folder, read_json, write_text
from utils.progress import progress

PLACES = max(mosaic.SLICES_PER_TILE.values())
DECODERS = ("published", "adapted")
SETTINGS_NAME = "settings.json"


@dataclass(frozen=True)
class LayoutStudy:
    """What is compared, and how long decoders and refiners train."""
    data_path: Path
    vae: str            # as diffusion.vae.load_vae takes it
    output: Path
    model: str          # whose tokens and operations are counted
    decoder_steps: int
    refiner_steps: int
    device: str
    precision: str      # compute dtype in training


@dataclass(frozen=True)
class Way:
    """One way through mosaic and latents, and what is left of the test volumes."""
    layout: str
    decoder: str        # one of DECODERS
    refined: bool
    tokens: int         # of a mosaic
    operations: float   # of a training step of one mosaic
    numbers: dict       # of `measure`

    @property
    def name(self):
        return f"{self.layout}, {self.decoder}{', refined' if self.refined else ''}"


def run(study):
    """Trains what is missing, measures all ways, and writes layouts.md, layouts.json, layouts.png.

    :return: lines of the table
    :raises UserError: the VAE fits no layout, or the output folder is of another study
    """
    header, entries = manifest.read_manifest(study.data_path)
    test = manifest.select_split(entries, "test", study.data_path)
    vae = latents.load_vae(study.vae, study.device)
    usable, skipped = ceiling.usable_layouts(vae, list(mosaic.SLICES_PER_TILE), header["size"])
    for name, reason in skipped.items():
        print(f"{name}: left out, {reason}", flush=True)
    if not usable:
        raise UserError(f"--vae {study.vae}: can encode neither layout of {study.data_path}")
    _begin(study)
    factor = latents.downsampling_factor(vae)
    ways = []
    for layout in usable:
        ways += _ways_of_layout(study, header, entries, test, layout, factor)
    lines = table(ways)
    write(study.output, lines, ways)
    return lines


def _ways_of_layout(study, header, entries, test, layout, factor):
    folder = _data_in_layout(study, header, entries, layout)
    mosaics = mosaic_files.read_mosaics(folder, manifest.read_manifest(folder)[0], test)
    volumes = np.stack([mosaic.untile(one, header["size"], layout) for one in mosaics])
    tokens = tokens_of(mosaics.shape[1], factor, study.model)
    cost = tokens, operations_of(tokens, study.model)
    ways = []
    for decoder in DECODERS:
        vae_folder = _decoder(study, folder, layout, decoder)
        decoded, refined = _round_trip(study, folder, layout, decoder, vae_folder, mosaics)
        ways.append(Way(layout, decoder, False, *cost, measure(decoded, volumes)))
        ways.append(Way(layout, decoder, True, *cost, measure(refined, volumes)))
    return ways


def _begin(study):
    """Creates the output folder, or continues one of the same settings."""
    settings = {"data_path": str(Path(study.data_path).resolve()), "vae": study.vae,
                "decoder_steps": study.decoder_steps, "refiner_steps": study.refiner_steps,
                "precision": study.precision}
    path = study.output / SETTINGS_NAME
    if path.is_file():
        if read_json(path) != settings:
            raise UserError(f"--output {study.output}: was started with other settings "
                            f"({SETTINGS_NAME}); name a new folder")
        return
    if study.output.exists() and any(study.output.iterdir()):
        raise UserError(f"--output {study.output}: exists already and was not begun by bench.py; "
                        "name a new folder")
    study.output.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _data_in_layout(study, header, entries, layout):
    """The data folder itself, or a copy of it whose mosaics have another layout."""
    if header["layout"] == layout:
        return study.data_path
    folder = study.output / f"data-{layout}"
    if folder.is_dir():
        return folder
    with atomic_folder(folder) as temporary:
        (temporary / "mosaics").mkdir()
        for entry in progress(entries, f"mosaics in layout {layout}"):
            pixels = mosaic_files.read_mosaic(
                mosaic_files.mosaic_path(study.data_path, entry["id"]), header)
            volume = mosaic.untile(pixels, header["size"], header["layout"])
            mosaic_files.write_mosaic(mosaic_files.mosaic_path(temporary, entry["id"]),
                                      mosaic.tile(volume, layout))
        grid = mosaic.grid_size(header["size"], layout)
        manifest.write_manifest(temporary, {**header, "layout": layout, "grid": grid}, entries)
    return folder


def _decoder(study, data, layout, decoder):
    """The VAE as it is, or the folder of one whose decoder was adapted to the layout."""
    if decoder == "published":
        return study.vae
    folder = study.output / f"vae-{layout}"
    if not folder.is_dir():
        _run_script("train_vae.py", "--data-path", data, "--init", study.vae, "--tune", "decoder",
                    "--max-steps", study.decoder_steps, "--output", folder,
                    "--device", study.device, "--precision", study.precision)
    return str(folder)


def _round_trip(study, data, layout, decoder, vae_folder, mosaics):
    """The test volumes after the VAE, and these refined, (N, D, D, D) uint8 each."""
    folder = study.output / f"refiner-{layout}-{decoder}"
    if not folder.is_dir():
        _run_script("train_refiner.py", "--data-path", data, "--vae", vae_folder,
                    "--max-steps", study.refiner_steps, "--output", folder,
                    "--device", study.device, "--precision", study.precision)
    vae = latents.load_vae(vae_folder, study.device)
    refiner = refiners.load_refiner(folder, study.device)
    size = refiner.config["size"]
    decoded = np.stack([mosaic.untile(latents.reconstruct(vae, one[None])[0], size, layout)
                        for one in progress(mosaics, f"round trips, {layout}, {decoder}")])
    return decoded, np.stack([refiner.refine(one) for one in decoded])


def _run_script(name, *flags):
    command = [sys.executable, str(SCRIPTS_DIR / name), *map(str, flags)]
    print(f"$ python {name} {' '.join(command[2:])}", flush=True)
    done = subprocess.run(command)
    if done.returncode:
        raise UserError(f"{name} ended with status {done.returncode}; see above. The same command "
                        "continues after what is done")


# --------------------------------------------------------------------------------------- measuring

def tokens_of(side, factor, model):
    """Tokens of a mosaic: latents of its side, in the patches of a model of models.DiT_models."""
    return (side // factor // models.config_of(model)["patch_size"]) ** 2


def operations_of(tokens, model):
    """Floating-point operations of a training step with frozen matrices, as DiffFit takes it."""
    with torch.device("meta"):
        network = models.DiT_models[model](input_size=models.config_of(model)["patch_size"])
    return training_cost.count_operations(network, tokens, backward=True)


def measure(volumes, real):
    """What a way leaves of real volumes.

    :param volumes, real: (N, D, D, D) uint8
    :return: dict of `metrics.refinement.numbers`; axial, coronal and sagittal: mean PSNR of
        slices, dB; place_0 to place_2: PSNR of the slices in each place of a tile of three, dB;
        ms_ssim: mean MS-SSIM of each volume to the original
    """
    found = refinement.numbers(volumes, real)
    for view, axis in geometry.VIEWS.items():
        found[view] = float(np.mean([psnr.slice_psnr(original, volume, axis)
                                     for original, volume in zip(real, volumes)]))
    for place in range(PLACES):
        found[f"place_{place}"] = psnr.psnr(real[..., place::PLACES], volumes[..., place::PLACES])
    pairs = np.stack([np.arange(len(real)), len(real) + np.arange(len(real))], 1)
    similarity = ms_ssim.ms_ssim_pairs(np.concatenate([real, volumes]), pairs=pairs)
    return {**found, "ms_ssim": float(similarity.mean())}


# --------------------------------------------------------------------------------------- reporting

def table(ways):
    """Markdown lines, a row for each way."""
    views = list(geometry.VIEWS)
    lines = [f"| layout, decoder | tokens | TFLOP per step | PSNR, dB | {', '.join(views)} "
             "| place in tile 0, 1, 2 | gradient energy R-L, A-P, I-S | through-plane roughness "
             "| MS-SSIM to the original |",
             "|" + "---|" * 9]
    for way in ways:
        found = way.numbers
        cells = [way.name, f"{way.tokens:,}", f"{way.operations / 1e12:.3g}",
                 f"{found['psnr_db']:.2f}", _joined(found, views, ".2f"),
                 _joined(found, [f"place_{k}" for k in range(PLACES)], ".2f"),
                 _joined(found, [f"gradient_{axis}" for axis in refinement.AXES], ".3f"),
                 f"{found['through_plane']:.3f}", f"{found['ms_ssim']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _joined(found, keys, form):
    return ", ".join(format(found[key], form) for key in keys)



def write(output, lines, ways):
    """Writes layouts.md, the table, layouts.json and layouts.png."""
    write_text(output / "layouts.md", "\n".join(lines) + "\n")
    found = [{"layout": way.layout, "decoder": way.decoder, "refined": way.refined,
              "tokens": way.tokens, "operations": way.operations, **way.numbers} for way in ways]
    write_text(output / "layouts.json", json.dumps(found, indent=1) + "\n")
    charts.layouts(output / "layouts.png", {way.name: way.numbers for way in ways})
