"""What a training run starts from: the model with its base weights, and the VAE."""
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from diffusion.vae import fingerprint
from training import pretrained


@dataclass(frozen=True)
class StartingPoint:
    """A model before training.

    :param config: constructor arguments of models.DiT
    :param base: path, name and SHA-256 of the weights it starts from; None for random weights
    """
    model: torch.nn.Module
    config: dict
    base: dict | None


def build_model(name, *, latent_side, channels, num_classes, gamma_blocks, weights_path, pos_embed,
                base_grid, seed):
    """Builds a model for latents of this size, with pretrained or random weights.

    :param name: architecture, see models.DiT_models
    :param latent_side, channels: of the latents
    :param weights_path: pretrained weights, see `pretrained.load_weights`; "none": random weights
    :param pos_embed: "interpolate" scales positions to the pretraining grid, "extrapolate" does not
    :param base_grid: for random weights: patches along a side that positions are scaled to, or None
    :param seed: of random weights
    :raises UserError: see `pretrained.load_weights` and `pretrained.assemble`
    """
    size = models.config_of(name)
    grid = latent_side // size["patch_size"]
    config = dict(size, input_size=latent_side, in_channels=channels, num_classes=num_classes,
                  gamma_blocks=gamma_blocks)
    if weights_path == "none":
        torch.manual_seed(seed)
        config.update(base_grid=base_grid or grid, numerics="official")
        return StartingPoint(models.DiT(**config).initialize_weights(), config, None)
    weights = pretrained.load_weights(weights_path)
    config.update(base_grid=grid if pos_embed == "extrapolate" else weights.base_grid,
                  numerics=weights.numerics)
    model = pretrained.assemble(config, pretrained.fit_base(weights, config), weights_path)
    path = pretrained.locate(weights_path).resolve()
    base = dict(path=str(path), name=path.name, sha256=pretrained.sha256_of_weights(path))
    return StartingPoint(model, config, base)


def describe_vae(name, vae):
    """What a checkpoint records of the VAE it was trained with.

    :param name: as the user gave it
    """
    folder = Path(name)
    return dict(name=name, scaling_factor=vae.config.scaling_factor,
                shift_factor=vae.config.get("shift_factor"), sha256=fingerprint(vae),
                path=str(folder.resolve()) if folder.is_dir() else None)
