"""The whole weights of a model, as the original repository (facebookresearch/DiT) loads them."""
import torch

import models
from training.base_weights import CLASS_TABLE, CONDITION_EMBEDDER

ORIGINAL_CHANNELS = 4           # of its latents
ORIGINAL_CLASSES = 1000         # its sample.py takes class 1000 for the null class
ORIGINAL_SIZES = (256, 512)     # pixels that its sample.py accepts
ORIGINAL_FACTOR = 8             # pixels per latent along a side
ORIGINAL_SCALING = 0.18215      # of its latents
UNPUBLISHED = "DiT-T/"          # beginning of the names of models that it does not have


def official_state_dict(model, covariates=None):
    """The state dict of a model under the official names.

    DiffFit's scale vectors become part of the layers whose outputs they scale:
    gamma * (W x + b) = (gamma W) x + gamma b.

    :param model: models.DiT
    :param covariates: (1, K), see `models.ConditionEmbedder`, of all samples: they become part of
        the class table; None: the embedder of a model with covariates stays, under our names
    :return: {name: contiguous fp32 tensor on the CPU}, with the position table of its grid
    """
    tensors = {name: tensor.detach().float().cpu().contiguous()
               for name, tensor in model.state_dict().items()}
    for i in range(len(model.blocks)):
        for gamma, layer in (("gamma1", "attn.proj"), ("gamma2", "mlp.fc2")):
            scale = tensors.pop(f"blocks.{i}.{gamma}", None)        # (width,)
            if scale is not None:
                name = f"blocks.{i}.{layer}"
                tensors[f"{name}.weight"] = scale[:, None] * tensors[f"{name}.weight"]
                tensors[f"{name}.bias"] = scale * tensors[f"{name}.bias"]
    return tensors if covariates is None else _fold_covariates(tensors, model, covariates)


def _fold_covariates(tensors, model, covariates):
    """The state dict without the embedder, whose vectors are added to the rows of the class table.

    t + table[y] + embedder(covariates) = t + (table[y] + embedder(covariates)). The null class, the
    last row, has no covariates.
    """
    classes = model.num_classes
    is_null = torch.arange(classes + 1) == classes
    with torch.no_grad():
        vectors = model.condition_embedder(covariates.expand(classes + 1, -1), is_null)
    found = {name: tensor for name, tensor in tensors.items()
             if not name.startswith(CONDITION_EMBEDDER)}
    return found | {CLASS_TABLE: found[CLASS_TABLE] + vectors}


def official_config(config, folded):
    """Constructor arguments of a models.DiT that loads what `official_state_dict` returns.

    :param config: of the model
    :param folded: covariates became part of the class table
    """
    changed = {**config, "gamma_blocks": 0}
    if folded:
        changed.pop("covariates", None)
    return changed


def needed_changes(metadata):
    """What has to be changed in the original sample.py for the weights of a checkpoint.

    :param metadata: of the checkpoint
    :return: list of sentences
    """
    config, pixels = metadata["config"], metadata["image_size"]
    changes = []
    if metadata["model"] not in models.DiT_models or metadata["model"].startswith(UNPUBLISHED):
        changes.append(f"its DiT_models has no {metadata['model']}: add it, with width "
                       f"{config['hidden_size']}, {config['depth']} blocks, "
                       f"{config['num_heads']} heads and patch size {config['patch_size']}")
    if config["in_channels"] != ORIGINAL_CHANNELS:
        changes.append(f"its latents have {ORIGINAL_CHANNELS} channels, these "
                       f"{config['in_channels']}: give in_channels to the model, and draw as many")
    if pixels not in ORIGINAL_SIZES:
        changes.append(f"it accepts images of {ORIGINAL_SIZES[0]} and {ORIGINAL_SIZES[1]} pixels: "
                       f"add {pixels}")
    if pixels != ORIGINAL_FACTOR * config["input_size"]:
        changes.append(f"its latents have a side of {pixels // ORIGINAL_FACTOR}, these "
                       f"{config['input_size']}: set latent_size")
    if config["num_classes"] != ORIGINAL_CLASSES:
        changes.append(f"its null class is {ORIGINAL_CLASSES}: write {config['num_classes']}")
    changes.append("its class_labels are of ImageNet: write those of the classes here, 0 to "
                   f"{len(metadata['header']['classes']) - 1}")
    vae = metadata["vae"]
    if vae["name"] not in ("ema", "mse") or vae["scaling_factor"] != ORIGINAL_SCALING:
        changes.append("it decodes with a public VAE: load the one of training, whose latents are "
                       f"multiplied by {vae['scaling_factor']:g}")
    return changes


def differences(metadata, kept_tokens=None):
    """What the original code computes otherwise than MosaicDiT, and cannot be part of the weights.

    :param metadata: of the checkpoint
    :param kept_tokens: number of tokens that the model computes; None: all
    :return: list of sentences
    """
    config = metadata["config"]
    found = []
    if config["numerics"] == "diffusers":
        found.append("the weights were trained with the time frequencies and layer norms of "
                     "diffusers, which differ a little from those of the original code")
    if kept_tokens is not None:
        tokens = (config["input_size"] // config["patch_size"]) ** 2
        found.append(f"the model was trained on {kept_tokens:,} of {tokens:,} tokens, the "
                     "foreground, and the original code computes all of them: its samples differ")
    return found
