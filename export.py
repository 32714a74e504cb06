#!/usr/bin/env python3
"""Exports a checkpoint of train.py for other programs, or as a folder to publish.

    python export.py --ckpt results/000-DiT-XL-2 --format dit --output DiT-XL-2-896x896.pt
    python export.py --ckpt results/000-DiT-XL-2 --format safetensors --repo --output published/adni
    python export.py --ckpt results/001-DiT-XL-2 --format peft --output adapter/

dit and safetensors contain all weights under the official names, with LoRA and scale vectors merged
into them, and the position table of the mosaic's grid. peft contains what --tune lora trained, for
the library peft. With --repo, --output is a folder that also gets a model card and config.json. For
a model with covariates, dit fixes one choice of them (--condition); the others keep its embedder.
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
from reporting import loading_code, model_card
from training import (
    checkpoint,
    checkpoint_choice,
    lora,
    official_format,
    pretrained,
    weight_files,
)
from training.condition_choice import ConditionChoice, choose_condition
from training.conditions import recorded_conditions
from utils.escaping import printable
from utils.files import atomic_file, atomic_folder, require_new_folder, write_text
from utils.flags import make_parser

# that train as a whole beside LoRA's matrices
WHOLE_MODULES = ("y_embedder.embedding_table", "condition_embedder")


@dataclass(frozen=True)
class Source:
    """The checkpoint to export.

    :param base: path that replaces its recorded base weights, or None
    :param weights: "ema" or "raw"
    :param asked: ConditionChoice, the covariates that --format dit holds
    """
    path: Path
    metadata: dict
    base: str | None
    weights: str
    asked: ConditionChoice


@dataclass(frozen=True)
class Format:
    """A format of exported weights.

    :param help: phrase for --help
    :param file_name: Source -> name of the file of weights in a folder
    :param write: (Source, path of the file of weights); may write other files beside it
    :param usage: Source -> Markdown for the model card
    :param holds: what the file of weights holds, for the model card
    :param config: constructor arguments of the checkpoint's model -> those of the models.DiT that
        the weights belong to
    :param is_folder: even without --repo, the output is a folder
    :param folds_covariates: one choice of covariates is part of the class table
    """
    help: str
    file_name: Callable
    write: Callable
    usage: Callable
    holds: str
    config: Callable
    is_folder: bool = False
    folds_covariates: bool = False


# ------------------------------------------------------------------------------------ the formats

def restore(source):
    model, _ = pretrained.restore_model(source.path, source.weights, source.base)
    return model


def write_dit(source, path):
    covariates = source.asked.encode([source.asked.fixed])
    tensors = official_format.official_state_dict(restore(source), covariates)
    try:
        torch.save(tensors, path)
    except RuntimeError as e:     # how PyTorch says that a disk is full
        raise OSError(None, str(e).splitlines()[0], str(path)) from None


def write_whole_safetensors(source, path):
    tensors = official_format.official_state_dict(restore(source))
    weight_files.write_safetensors(path, tensors, header_of(source))


def header_of(source):
    """What a safetensors file says of itself: one entry, as several lie in random order."""
    if source.asked.conditions:
        return {"covariates": json.dumps(source.asked.conditions.columns_to_json())}
    return {"format": "pt"}


def write_peft(source, path):
    trained = pretrained.read_trained(source.path, source.weights)
    whole = [module for module in WHOLE_MODULES
             if any(name.startswith(f"{module}.") for name in trained)]
    options = lora.from_metadata(source.metadata["lora"], source.path)
    config = lora.peft_config(options, whole, source.metadata["base"]["name"])
    weight_files.write_safetensors(path, lora.peft_tensors(trained), header_of(source))
    write_text(path.with_name("adapter_config.json"), json.dumps(config, indent=1) + "\n")


def official_name(source):
    """A name as the public files have: "DiT-XL-2-896x896.pt"."""
    pixels = source.metadata["image_size"]
    return f"{source.metadata['model'].replace('/', '-')}-{pixels}x{pixels}.pt"


def example_row(source):
    """Covariates to ask for, as the model card shows it; None if the model takes none."""
    known = source.asked.conditions
    return known.example_row() if known else None


def describe_use_of_dit(source):
    return loading_code.original_code(source.metadata, official_name(source),
                                      official_format.needed_changes(source.metadata))


def describe_use_of_safetensors(source):
    return loading_code.state_dict(source.metadata, WHOLE_NAME, example_row(source))


def describe_use_of_peft(source):
    return loading_code.peft_adapter(source.metadata, example_row(source))


WHOLE_NAME = "model.safetensors"
FORMATS = {
    "dit": Format(
        "all weights as a .pt file that the original repository's sample.py loads", official_name,
        write_dit, describe_use_of_dit, "all weights, fp32, with the mosaic's position table",
        lambda config: official_format.official_config(config, folded=True),
        folds_covariates=True),
    "safetensors": Format(
        "the same weights as safetensors", lambda source: WHOLE_NAME, write_whole_safetensors,
        describe_use_of_safetensors, "all weights, fp32, with the mosaic's position table",
        lambda config: official_format.official_config(config, folded=False)),
    "peft": Format(
        "folder of adapter_config.json and adapter_model.safetensors, of a --tune lora checkpoint",
        lambda source: "adapter_model.safetensors", write_peft, describe_use_of_peft,
        "LoRA's matrices, the class table and the embedder of covariates if there is one, for the "
        "library peft, which also reads adapter_config.json", dict, is_folder=True),
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
                   help="trained parameters to export: their moving average (ema), or their "
                   "values at that step (raw)")
    g = p.add_argument_group("output")
    g.add_argument("--format", choices=FORMATS, required=True,
                   help="; ".join(f"{name}: {known.help}" for name, known in FORMATS.items()))
    g.add_argument("--condition", nargs="+", default=[], metavar="NAME=VALUE",
                   help="with --format dit and a model of train.py --condition-on: covariates of "
                   "all samples, such as age=70 sex=F; the others count as missing; default: none")
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
    if name == "peft" and not (metadata.get("lora") and metadata["base"]):
        raise UserError(f"--format peft: {source.path} is of --tune {metadata['tune']} and has no "
                        "LoRA; use --format dit or safetensors")
    if name == "peft" and source.base:
        raise UserError(f"--base {source.base}: --format peft does not read the base weights; "
                        "leave it out")


def choose_covariates(condition, metadata, path, name):
    """The ConditionChoice of --condition.

    :param name: of the format
    :raises UserError: the model or the format has none to choose
    """
    conditions = recorded_conditions(metadata, path)
    if condition and conditions and not FORMATS[name].folds_covariates:
        raise UserError(f"--condition {' '.join(condition)}: --format {name} holds the embedder, "
                        "which takes any covariates; leave it out, or give --format dit")
    return choose_condition(conditions, set(), condition=condition, table=None, sweep=None,
                            checkpoint=path)


# ----------------------------------------------------------------------------------------- output

def notes_of_covariates(asked, chosen):
    """Sentences on what becomes of the covariates: for the model card, and for the terminal."""
    if not asked.conditions:
        return [], []
    if chosen.folds_covariates:
        return [f"the class table holds one choice of covariates ({asked.describe_all()}), which "
                "is that of all samples; to change it, export again with --condition"], []
    return [], ["names, scales, ranges and levels of the covariates are written; the training "
                "volumes' rows, which the checkpoint holds, are not"]


def describe_covariates(asked, chosen):
    """The covariates, for the model card; None if the model takes none."""
    if not asked.conditions:
        return None
    known = "; ".join(column.describe() for column in asked.conditions.columns)
    return f"{known}; here {asked.describe_all()}" if chosen.folds_covariates else known


def describe_model(source, chosen):
    """The content of config.json: what rebuilds the model and the volumes; no paths."""
    metadata = source.metadata
    vae = metadata["vae"]
    return {
        "name": metadata["model"], "model": chosen.config(metadata["config"]), "image_size":
        metadata["image_size"], "header": metadata["header"], "tune": metadata["tune"],
        "lora": metadata.get("lora"), "step": metadata["step"], "weights": source.weights,
        "vae": {key: vae.get(key) for key in ("scaling_factor", "shift_factor", "sha256")},
        **covariates_of(source.asked, chosen),
        "mosaicdit_version": metadata.get("mosaicdit_version")}


def covariates_of(asked, chosen):
    """What config.json holds of the covariates: no row of a training volume."""
    if not asked.conditions:
        return {}
    fixed = {"condition": asked.fixed} if chosen.folds_covariates else {}
    return {"covariates": asked.conditions.columns_to_json(), **fixed}


def write_card(folder, source, chosen, sha256, notes, metrics):
    files = {chosen.file_name(source): chosen.holds,
             "config.json": "arguments of the model, geometry of the volumes, scale of the latents"}
    card = model_card.model_card(
        source.metadata, sha256=sha256, weights=source.weights, files=files,
        usage=chosen.usage(source), notes=notes, metrics=metrics,
        covariates=describe_covariates(source.asked, chosen))
    write_text(folder / "README.md", card)
    write_text(folder / "config.json", json.dumps(describe_model(source, chosen), indent=1) + "\n")


def main():
    args = parse_args()
    chosen = FORMATS[args.format]
    is_folder = args.repo or chosen.is_folder
    require_new_output(args.output, is_folder)
    found = checkpoint_choice.choose_checkpoint(args.ckpt)
    metadata = checkpoint.verify(found.path)
    asked = choose_covariates(args.condition, metadata, found.path, args.format)
    source = Source(found.path, metadata, args.base, args.weights, asked)
    check_source(source, args.format)
    kept = pretrained.read_foreground(source.path, source.metadata["config"])
    notes, hints = notes_of_covariates(asked, chosen)
    notes += official_format.differences(metadata, kept and len(kept.kept))
    sha256 = pretrained.sha256_of_weights(source.path)
    metrics = model_card.read_metrics(args.metrics, source.path, sha256) if args.metrics else None
    average = checkpoint_choice.warn_of_average(source.metadata, args.weights)
    for note in filter(None, (*found.notes, average, *asked.warnings, *notes, *hints)):
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
