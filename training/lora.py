"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"), all of it.

Beside a frozen linear layer W x + b come two thin matrices, A (rank, in) and B (out, rank):

    W x + b + alpha / rank * B A x

B starts at zero, so the first step sees the base model. Afterwards the product is added to W, and
sampling costs what it costs without LoRA. Checkpoints hold A and B as LAYER.lora_A and
LAYER.lora_B; the library peft calls the same tensors base_model.model.LAYER.lora_A.weight.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.seeding import seeded_generator

TARGETS = {  # value of --lora-targets: linear layers within a block
    "qkv": ("attn.qkv",),
    "proj": ("attn.proj",),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}
SUFFIXES = (".lora_A", ".lora_B")
DEFAULT_RANK = 8
MAX_RANK = 16384
PURPOSE = 1  # of the random numbers of new matrices, apart from those of a training step
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraOptions:
    """Size and place of the adapters.

    :param rank: rows of A and columns of B
    :param alpha: the product is multiplied by alpha / rank
    :param targets: names in TARGETS, sorted
    """
    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self):
        return self.alpha / self.rank

    def layers(self):
        """Names, within a block, of the linear layers that get adapters."""
        return tuple(layer for target in self.targets for layer in TARGETS[target])

    def describe(self):
        """A phrase for the user."""
        return (f"LoRA of rank {self.rank} beside {', '.join(self.layers())} of every block, "
                f"alpha {self.alpha:g}")

    def metadata(self):
        """What a checkpoint records, JSON-serializable; the inverse of `from_metadata`."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}


def choose(rank=None, alpha=None, targets=None):
    """LoraOptions from flags; None stands for the default of each.

    :raises UserError: a rank that is not positive
    """
    rank = DEFAULT_RANK if rank is None else rank
    if not 1 <= rank <= MAX_RANK:
        raise UserError(f"--lora-rank {rank}: must be 1 to {MAX_RANK}")
    return LoraOptions(rank, float(rank if alpha is None else alpha),
                       tuple(sorted(set(targets or TARGETS))))


def from_metadata(recorded, path):
    """The LoraOptions that a checkpoint records.

    :param recorded: dict, as `LoraOptions.metadata` made it
    :param path: of the checkpoint, for the error
    :raises UserError: it was not written by train.py
    """
    rank, alpha, targets = (recorded.get(key) for key in ("rank", "alpha", "targets"))
    is_known = (type(rank) is int and 1 <= rank <= MAX_RANK and type(alpha) in (int, float)
                and 0 < alpha < math.inf and isinstance(targets, list) and targets
                and all(isinstance(name, str) and name in TARGETS for name in targets))
    if not is_known:
        raise UserError(f"{path}: its metadata is damaged (lora), or not written by train.py; "
                        "use another checkpoint")
    return LoraOptions(rank, float(alpha), tuple(targets))


# -------------------------------------------------------------------------------------- in a model

class LoraLinear(nn.Linear):
    """A linear layer and its adapter; weight and bias are those of the layer itself.

    :param layer: nn.Linear
    :param generator: draws A, Kaiming uniform as PyTorch draws a linear layer; B is zero
    """

    def __init__(self, layer, options, generator):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, "meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = options.scale
        a = torch.empty(options.rank, layer.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        device = layer.weight.device
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, options.rank, device=device))

    def forward(self, x):                                           # (..., in) -> (..., out)
        narrow = self.scale * F.linear(x, self.lora_A)              # (..., rank)
        return super().forward(x) + F.linear(narrow, self.lora_B)


def add_adapters(model, options, seed=0):
    """Puts a LoraLinear in the place of each layer that gets an adapter.

    The outputs of the model remain bitwise the same. Layer i draws from (seed, i).

    :param model: models.DiT, or one of its blocks
    """
    targeted = [name for name, module in model.named_modules()
                if isinstance(module, nn.Linear) and _ends_with(name, options.layers())]
    for i, name in enumerate(targeted):
        parent, _, child = name.rpartition(".")
        layer = LoraLinear(model.get_submodule(name), options,
                           seeded_generator(seed, i, PURPOSE))
        setattr(model.get_submodule(parent), child, layer)


def _ends_with(name, layers):
    return any(name == layer or name.endswith(f".{layer}") for layer in layers)


# -------------------------------------------------------------------------------------- as tensors

def merge(tensors, options, path):
    """Weights without adapters: W + alpha / rank * B A in the place of W, A and B.

    :param tensors: {name: tensor} of a DiT and its adapters; they need no values
    :param path: of the checkpoint, for the error
    :raises UserError: an adapter is missing or of another shape
    """
    merged = dict(tensors)
    for name, weight in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or not _ends_with(layer, options.layers()):
            continue
        if weight.ndim != 2:
            raise UserError(f"{path}: {name} is not a matrix; use another checkpoint")
        rows, columns = weight.shape
        a = _take(merged, f"{layer}.lora_A", (options.rank, columns), path)
        b = _take(merged, f"{layer}.lora_B", (rows, options.rank), path)
        merged[name] = weight.float() + options.scale * (b.float() @ a.float())
    return merged


def _take(tensors, name, shape, path):
    """Takes a tensor of this name and shape out of the dict."""
    found = tensors.pop(name, None)
    if found is None or tuple(found.shape) != shape:
        raise UserError(f"{path}: has no {name} of shape {shape}, which its LoRA needs; "
                        "use another checkpoint")
    return found


# ---------------------------------------------------------------------------------- peft's format

def peft_config(options, saved_modules, base_name):
    """The content of peft's adapter_config.json.

    :param saved_modules: names of the modules that trained as a whole, beside the adapters
    :param base_name: of the weights that the adapters belong to
    """
    return {
        "peft_type": "LORA", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": options.rank, "lora_alpha": options.alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(options.layers()), "modules_to_save": list(saved_modules),
        "fan_in_fan_out": False, "init_lora_weights": True, "task_type": None}


def peft_tensors(trained):
    """The tensors of peft's adapter_model.safetensors.

    :param trained: {name: tensor} of a LoRA checkpoint: adapters, and modules that trained whole
    """
    return {PEFT_PREFIX + name + (".weight" if name.endswith(SUFFIXES) else ""):
            tensor.contiguous() for name, tensor in trained.items()}
