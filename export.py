#!/usr/bin/env python3
"""Exports a checkpoint of train.py for other programs, or as a folder to publish.

    python export.py --ckpt results/000-DiT-XL-2 --format dit --output DiT-XL-2-896x896.pt
    python export.py --ckpt results/000-DiT-XL-2 --format safetensors --repo --output published/adni
    python export.py --ckpt results/001-DiT-XL-2 --format peft --output adapter/

dit and safetensors hold all weights under the official names: LoRA and scale vectors are part of
them, and so is the position table of the mosaic's grid. peft holds what --tune lora trained, for
the library peft. With --repo, --output is a folder that also gets a model card and config.json.
"""
from utils.errors import UserError, run_script  # first: Ctrl-C during imports

# isort: split
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mri import manifest
from reporting import model_card
from training import (
    base_weights,
    checkpoint,
    checkpoint_choice,
    lora,
    official_format,
    pretrained,
    weight_files,
)
from utils.escaping import printable
from utils.files import atomic_file, atomic_folder, require_new_folder, write_text
from utils.flags import make_parser

CLASS_TABLE_MODULE = "y_embedder.embedding_table"


@dataclass(frozen=True)
class Source:
    """The checkpoint to export.

    :param base: path that replaces its recorded base weights, or None
    :param weights: "ema" or "raw"
    """
    path: Path
    metadata: dict
    base: str | None
    weights: str


@dataclass(frozen=True)
class Format:
    """A format of exported weights.

    :param help: phrase for --help
    :param file_name: Source -> name of the file of weights in a folder
    :param write: (Source, path of the file of weights); may write other files beside it
    :param usage: Source -> Markdown for the model card
    :param holds: what the file of weights holds, for the model card
    :param is_folder: even without --repo, the output is a folder
    """
    help: str
    file_name: Callable
    write: Callable
    usage: Callable
    holds: str
    is_folder: bool = False


# ------------------------------------------------------------------------------------ the formats

def whole_weights(source):
    model, _ = pretrained.restore_model(source.path, source.weights, source.base)
    return official_format.official_state_dict(model)


def write_dit(source, path):
    tensors = whole_weights(source)
    try:
        torch.save(tensors, path)
    except RuntimeError as e:     # how PyTorch says that a disk is full
        raise OSError(None, str(e).splitlines()[0], str(path)) from None


def write_whole_safetensors(source, path):
    weight_files.write_safetensors(path, whole_weights(source), {"format": "pt"})


def write_peft(source, path):
    trained = pretrained.read_trained(source.path, source.weights)
    whole = [CLASS_TABLE_MODULE] if base_weights.CLASS_TABLE in trained else []
    config = lora.peft_config(adapters_of(source), whole, source.metadata["base"]["name"])
    weight_files.write_safetensors(path, lora.peft_tensors(trained), {"format": "pt"})
    write_text(path.with_name("adapter_config.json"), json.dumps(config, indent=1) + "\n")


def adapters_of(source):
    return lora.from_metadata(source.metadata["lora"], source.path)


def official_name(source):
    """A name as the public files have: "DiT-XL-2-896x896.pt"."""
    pixels = source.metadata["image_size"]
    return f"{source.metadata['model'].replace('/', '-')}-{pixels}x{pixels}.pt"


def describe_use_of_dit(source):
    changes = official_format.needed_changes(source.metadata)
    config = source.metadata["config"]
    text = (f"With the original repository's sample.py: `--model {source.metadata['model']} "
            f"--image-size {source.metadata['image_size']} --num-classes {config['num_classes']} "
            f"--ckpt {official_name(source)}`.")
    if changes:
        text += " Its code has to be changed:\n\n" + "\n".join(f"- {line}" for line in changes)
    return f"{text}\n\n{untiling(source)}"


def describe_use_of_safetensors(source):
    return ("A state dict under the names of the original repository's `models.DiT`, built with "
            f"the arguments in `config.json`; also `train.py --ckpt {WHOLE_NAME}` of MosaicDiT.\n\n"
            + untiling(source))


def describe_use_of_peft(source):
    return ("In MosaicDiT's folder, with this folder's path as FOLDER and the base weights in "
            "`weights/`:\n\n"
            "    import json, peft\n"
            "    from training import base_weights, pretrained\n"
            "    config = json.load(open('FOLDER/config.json'))['model']\n"
            f"    path = {'weights/' + source.metadata['base']['name']!r}\n"
            "    tensors = base_weights.fit_base(pretrained.load_weights(path), config)\n"
            "    base = base_weights.assemble(config, tensors, path)\n"
            "    model = peft.PeftModel.from_pretrained(base, 'FOLDER')\n\n" + untiling(source))


def untiling(source):
    header = source.metadata["header"]
    return ("A sampled mosaic becomes a volume by MosaicDiT's "
            f"`mri.mosaic.untile(mosaic, {header['size']}, {header['layout']!r})`; its voxels' "
            "place in the world is the `affine` in `config.json`.")


WHOLE_NAME = "model.safetensors"
FORMATS = {
    "dit": Format(
        "all weights as a .pt file that the original repository's sample.py loads", official_name,
        write_dit, describe_use_of_dit, "all weights, fp32, with the mosaic's position table"),
    "safetensors": Format(
        "the same weights as safetensors", lambda source: WHOLE_NAME, write_whole_safetensors,
        describe_use_of_safetensors, "all weights, fp32, with the mosaic's position table"),
    "peft": Format(
        "folder of adapter_config.json and adapter_model.safetensors, of a --tune lora checkpoint",
        lambda source: "adapter_model.safetensors", write_peft, describe_use_of_peft,
        "LoRA's matrices and the class table, for the library peft", is_folder=True),
}


# ------------------------------------------------------------------------------------------ flags

def parse_args():
    p = make_parser(__doc__)
    g = p.add_argument_group("model")
    g.add_argument("--ckpt", type=Path, required=True, metavar="FILE|DIR",
                   help="checkpoint of train.py; for a run folder its newest checkpoint")
    g.add_argument("--base", metavar="FILE",
                   help="base weights; default: where train.py read them, or weights/")
    g.add_argument("--weights", choices=("ema", "raw"), default="ema",
                   help="trained parameters to export: their moving average, or their last values")
    g = p.add_argument_group("output")
    g.add_argument("--format", choices=FORMATS, required=True,
                   help="; ".join(f"{name}: {known.help}" for name, known in FORMATS.items()))
    g.add_argument("--output", type=Path, required=True, metavar="FILE|DIR",
                   help="new file, or with --repo and for peft a new folder")
    g.add_argument("--repo", action="store_true",
                   help="write a folder to publish, with a model card (README.md) and config.json")
    g.add_argument("--metrics", type=Path, metavar="FILE",
                   help="with --repo: metrics.json of evaluate.py on samples of this checkpoint, "
                   "for the model card; default: none")
    args = p.parse_args()
    if args.metrics and not args.repo:
        raise UserError(f"--metrics {args.metrics}: is for the model card; add --repo")
    return args


def require_new_output(path, is_folder):
    """Refuses an output that exists, before the work."""
    if is_folder:
        require_new_folder(path)
    elif os.path.lexists(path):
        raise UserError(f"--output {path}: exists already; name a new file, or remove this one "
                        "first")


def check_source(source, name):
    """Refuses a checkpoint that a format cannot hold."""
    metadata = source.metadata
    manifest.check_header(metadata["header"], source.path)
    if metadata.get("covariates"):
        raise UserError(f"--ckpt {source.path}: was trained on covariates, which no format of "
                        "export.py can hold; sample from it with sample.py")
    if name == "peft" and not (metadata.get("lora") and metadata["base"]):
        raise UserError(f"--format peft: {source.path} is of --tune {metadata['tune']} and has no "
                        "LoRA; use --format dit or safetensors")
    if name == "peft" and source.base:
        raise UserError(f"--base {source.base}: --format peft does not read the base weights; "
                        "leave it out")


# ----------------------------------------------------------------------------------------- output

def describe_model(source):
    """The content of config.json: what rebuilds the model and the volumes; no paths."""
    metadata = source.metadata
    vae = metadata["vae"]
    return {
        "name": metadata["model"], "model": metadata["config"], "image_size":
        metadata["image_size"], "header": metadata["header"], "tune": metadata["tune"],
        "lora": metadata.get("lora"), "step": metadata["step"], "weights": source.weights,
        "vae": {key: vae.get(key) for key in ("scaling_factor", "shift_factor", "sha256")},
        "mosaicdit_version": metadata.get("mosaicdit_version")}


def write_card(folder, source, chosen, sha256, notes, metrics):
    files = {chosen.file_name(source): chosen.holds,
             "config.json": "arguments of the model, geometry of the volumes, scale of the latents"}
    card = model_card.model_card(
        source.metadata, sha256=sha256, weights=source.weights, files=files,
        usage=chosen.usage(source), notes=notes, metrics=metrics)
    write_text(folder / "README.md", card)
    write_text(folder / "config.json", json.dumps(describe_model(source), indent=1) + "\n")


def main():
    args = parse_args()
    chosen = FORMATS[args.format]
    is_folder = args.repo or chosen.is_folder
    require_new_output(args.output, is_folder)
    found = checkpoint_choice.choose_checkpoint(args.ckpt)
    source = Source(found.path, checkpoint.verify(found.path), args.base, args.weights)
    check_source(source, args.format)
    kept = pretrained.read_foreground(source.path, source.metadata["config"])
    notes = official_format.differences(source.metadata, kept and len(kept.kept))
    sha256 = pretrained.sha256_of_weights(source.path)
    metrics = model_card.read_metrics(args.metrics, source.path, sha256) if args.metrics else None
    average = checkpoint_choice.warn_of_average(source.metadata, args.weights)
    for note in filter(None, (*found.notes, average, *notes)):
        print(f"note: {printable(note)}", file=sys.stderr, flush=True)
    if is_folder:
        with atomic_folder(args.output) as folder:
            chosen.write(source, folder / chosen.file_name(source))
            if args.repo:
                write_card(folder, source, chosen, sha256, notes, metrics)
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.output, durable=True) as temporary:
            chosen.write(source, temporary)
    print(f"{args.output}: {args.format}, {args.weights} weights of {printable(source.path)}, step "
          f"{source.metadata['step']}")
    if args.format == "dit":
        for change in official_format.needed_changes(source.metadata):
            print(f"in the original sample.py, {change}")


if __name__ == "__main__":
    run_script(main)
