"""What a training run starts from: the model with its base weights, and the VAE."""
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from diffusion.foreground import Foreground, foreground_tokens
from diffusion.vae import downsampling_factor, draw_latents, fingerprint
from training import base_weights, pretrained
from training.finetuning import is_trained
from utils import distributed
from utils.errors import UserError


@dataclass(frozen=True)
class StartingPoint:
    """A model before training.

    :param config: constructor arguments of models.DiT
    :param base: path, name and SHA-256 of the weights it starts from; None for random weights
    :param notes: lines for the user
    """
    model: torch.nn.Module
    config: dict
    base: dict | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelOptions:
    """What decides the model and its weights before training.

    :param name: architecture, see models.DiT_models
    :param weights_path: pretrained weights, see `pretrained.load_weights`; "none": random weights
    :param base_path: base weights of `weights_path`, if that is a checkpoint of train.py; None:
        those that it names
    :param pos_embed: "interpolate" scales positions to the pretraining grid, "extrapolate" does not
    :param base_grid: for random weights: patches along a side that positions are scaled to, or None
    :param seed: of random weights
    :param method: name in finetuning.TUNING_METHODS
    :param covariates: see `models.ConditionEmbedder`
    """
    name: str
    num_classes: int
    gamma_blocks: int
    weights_path: str
    base_path: str | None = None
    pos_embed: str = "interpolate"
    base_grid: int | None = None
    seed: int = 0
    method: str = "difffit"
    covariates: tuple[int, ...] = ()


def latent_side(header, entries, vae, *, data_path, model, num_classes, image_size=None):
    """Side of the latents of a data folder's mosaics.

    :param header, entries: of the manifest
    :param model: name of the architecture
    :param image_size: side of the mosaics that the user expects, pixels; None: no check
    :raises UserError: flags that do not fit the data
    """
    pixels = header["grid"] * header["size"]
    factor = downsampling_factor(vae)
    patch = models.config_of(model)["patch_size"]
    if image_size not in (None, pixels):
        raise UserError(f"--image-size {image_size}: {data_path} holds mosaics of "
                        f"{pixels} pixels; leave the flag out, or preprocess again")
    if pixels % (factor * patch):
        raise UserError(f"--model {model}: mosaics of {pixels} pixels are not a multiple of "
                        f"VAE factor {factor} x patch size {patch}; use another patch size, or "
                        "preprocess with another --size")
    classes = max(entry["class"] for entry in entries) + 1
    if classes > num_classes:
        raise UserError(f"--num-classes {num_classes}: the data has {classes} classes")
    return pixels // factor


def build_model(options, latent_side, channels):
    """Builds a model for latents of this size, with pretrained or random weights.

    :param options: ModelOptions
    :param latent_side, channels: of the latents
    :raises UserError: see `pretrained.load_weights` and `base_weights.assemble`
    """
    config, weights = _configure(options, latent_side, channels)
    if weights is None:
        torch.manual_seed(options.seed)
        return StartingPoint(models.DiT(**config).initialize_weights(), config, None)
    tensors = base_weights.fit_base(weights, config)
    model = base_weights.assemble(config, tensors, options.weights_path)
    path = pretrained.locate(options.weights_path).resolve()
    base = dict(path=str(path), name=path.name, sha256=pretrained.sha256_of_weights(path))
    return StartingPoint(model, config, base, _notes(options, weights, config))


def check_model(options, latent_side, channels):
    """Checks what `build_model` would load by names and shapes, without reading the weights.

    :return: lines for the user
    :raises UserError: as `build_model`, except that damaged values are not noticed
    """
    config, weights = _configure(options, latent_side, channels, headers_only=True)
    if weights is None:
        return ()
    base_weights.check_fit(config, base_weights.fit_base(weights, config), options.weights_path)
    fits = f"--ckpt {options.weights_path}: names and shapes fit (its values were not read)"
    return (fits, *_notes(options, weights, config))


def _notes(options, weights, config):
    """Lines for the user about what the base weights lack or lose."""
    notes = base_weights.describe_changes(weights, config)
    if base_weights.describe_class_table(weights, config) and config["num_classes"] > 1 \
            and not is_trained("class table", options.method):
        notes += (f"--tune {options.method} does not train the class table: the classes remain "
                  "the same, and sample.py cannot tell them apart",)
    return notes


def _check_gammas(options, weights):
    """Refuses scale vectors that would remain 1: new ones that do not train."""
    last = f"blocks.{options.gamma_blocks - 1}.gamma1"
    if options.gamma_blocks and last not in weights.tensors \
            and not is_trained("gamma", options.method):
        raise UserError(f"--gamma-blocks {options.gamma_blocks}: --tune {options.method} does not "
                        "train scale vectors, and --ckpt has none; leave it out")


def model_config(options, latent_side, channels):
    """Constructor arguments of the model, but for those that its weights decide.

    :param options: ModelOptions
    :param latent_side, channels: of the latents
    """
    config = dict(models.config_of(options.name), input_size=latent_side, in_channels=channels,
                  num_classes=options.num_classes, gamma_blocks=options.gamma_blocks)
    if options.covariates:
        config["covariates"] = list(options.covariates)
    return config


def _configure(options, latent_side, channels, headers_only=False):
    """Constructor arguments of the model, and its pretrained weights or None."""
    config = model_config(options, latent_side, channels)
    grid = latent_side // config["patch_size"]
    if options.weights_path == "none":
        config.update(base_grid=options.base_grid or grid, numerics="official")
        return config, None
    weights = pretrained.load_weights(options.weights_path, options.base_path, headers_only)
    _check_gammas(options, weights)
    base_grid = grid if options.pos_embed == "extrapolate" else weights.base_grid
    config.update(base_grid=base_grid, numerics=weights.numerics)
    return config, weights


def find_foreground(touched, mean_moments, vae_config, model, margin):
    """The tokens that the training volumes touch, and the background around them.

    :param touched: (h, w) bool, the latents that are not black in all volumes
    :param mean_moments: (2C, h, w), the volumes' mean moments
    :param vae_config: mapping with scaling_factor and perhaps shift_factor
    :param model: name of the architecture
    :param margin: tokens that are added around, in all directions
    :return: Foreground, or None if it holds all tokens, which is printed
    """
    patch_size = models.config_of(model)["patch_size"]
    kept = foreground_tokens(touched, patch_size, margin)
    if len(kept) == touched.size // patch_size ** 2:
        if distributed.is_main():
            print(f"--tokens foreground: the training volumes touch all {len(kept):,} tokens, so "
                  "all are computed", flush=True)
        return None
    mean = mean_moments[None]
    background = draw_latents(vae_config, mean, torch.zeros_like(mean[:, :mean.shape[1] // 2]))[0]
    return Foreground(kept, background)


def describe_vae(name, vae):
    """What a checkpoint records of the VAE it was trained with.

    :param name: as the user gave it
    """
    folder = Path(name)
    return dict(name=name, scaling_factor=vae.config.scaling_factor,
                shift_factor=vae.config.get("shift_factor"), sha256=fingerprint(vae),
                path=str(folder.resolve()) if folder.is_dir() else None)


def describe_run(model, start, method, header, vae, labels, data_key, adapters=None,
                 conditions=None):
    """What the checkpoints of a run record, beside the step.

    :param model: name of the architecture
    :param start: StartingPoint
    :param method: name in TUNING_METHODS
    :param header: of the data folder's manifest
    :param vae: see `describe_vae`
    :param labels: (N,) int64, classes of the training volumes
    :param data_key: checksum of the latents and labels
    :param adapters: LoraOptions, or None
    :param conditions: Conditions; None: the model takes no covariates
    """
    header = {key: value for key, value in header.items() if key != "covariates"}
    found = {"lora": adapters.metadata()} if adapters else {}
    if conditions:
        found["covariates"] = conditions.to_json()
    return dict(
        found,
        model=model, config=start.config, tune=method,
        base=start.base if method != "full" else None, header=header, begun_from=start.base,
        vae=vae, image_size=header["grid"] * header["size"], data_key=data_key,
        class_counts=labels.bincount(minlength=len(header["classes"])).tolist())
