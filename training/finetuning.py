"""Which parameters train: DiffFit, BitFit, LoRA and full finetuning.

To add a method, write an entry in TUNING_METHODS: the choices and help of --tune, what the dry run
counts and what a checkpoint holds follow from it.
"""
from dataclasses import dataclass

from training import lora
from utils.errors import UserError


@dataclass(frozen=True)
class TuningMethod:
    """A choice of trainable parameters.

    :param frozen: kinds of parameters (see `parameter_kind`) that stay as they are
    :param help: phrase for --help
    :param needs_base: of no use on random weights
    :param has_adapters: LoRA's matrices are added to the model, and train
    """
    frozen: tuple[str, ...]
    help: str
    needs_base: bool = True
    has_adapters: bool = False


TUNING_METHODS = {
    # Xie et al. 2023, section 3.2: biases, normalization, class table, scale vectors. DiT's
    # LayerNorms have no parameters: their affine is the adaLN modulation, whose biases train.
    "difffit": TuningMethod(
        ("matrix", "position table"),
        "biases, normalization parameters, class table, and scale vectors if "
        "--gamma-blocks adds any"),
    # Ben Zaken et al. 2022
    "bitfit": TuningMethod(
        ("matrix", "position table", "norm", "gamma", "class table"), "biases alone"),
    # The class table trains, too, as in DiffFit: without it, classes of a new table would all
    # remain the null class that they start as
    "lora": TuningMethod(
        ("matrix", "position table", "norm", "gamma", "bias"),
        "low-rank matrices beside the linear layers of --lora-targets, and the class table",
        has_adapters=True),
    "full": TuningMethod(
        ("position table",), "all parameters except the fixed position table", needs_base=False),
}


def describe_methods():
    """One phrase per method, for --help."""
    return "; ".join(f"{name}: {method.help}" for name, method in TUNING_METHODS.items())


def describe(method, adapters=None):
    """A method and its adapters, if it has any, in words.

    :param adapters: LoraOptions, or None
    """
    return f"{method}, {adapters.describe()}" if adapters else method


def parameter_kind(name):
    """"class table", "covariates", "bias", "gamma", "LoRA", "norm", "position table" or "matrix".

    :param name: a parameter's name in a DiT, or in one of its blocks
    """
    if name == "y_embedder.embedding_table.weight":
        return "class table"
    if name == "pos_embed":
        return "position table"
    if name.startswith("condition_embedder."):
        return "covariates"
    if name.endswith(lora.SUFFIXES):
        return "LoRA"
    if name.endswith(".bias"):
        return "bias"
    if name.endswith(("gamma1", "gamma2")):
        return "gamma"
    return "norm" if ".norm" in name else "matrix"


def is_trained(kind, method):
    """Whether a method trains parameters of a kind, see `parameter_kind`."""
    return kind not in TUNING_METHODS[method].frozen


def choose_adapters(method, *lora_flags):
    """LoraOptions of a method with adapters; None for another one.

    :param method: name in TUNING_METHODS
    :param lora_flags: see `lora.choose`; None where the user gave none
    :raises UserError: a flag for another method, or see `lora.choose`
    """
    if TUNING_METHODS[method].has_adapters:
        return lora.choose(*lora_flags)
    if any(value is not None for value in lora_flags):
        raise UserError("--lora-rank, --lora-alpha and --lora-targets: only for --tune lora; "
                        f"leave them out for --tune {method}")
    return None


def set_trainable(model, method, adapters=None, seed=0):
    """Freezes all parameters that a method does not train, and adds those that it adds.

    :param method: name in TUNING_METHODS
    :param adapters: LoraOptions of a method with adapters
    :param seed: of the adapters
    :return: the trainable parameters, {name: parameter}
    """
    if TUNING_METHODS[method].has_adapters:
        lora.add_adapters(model, adapters, seed)
    frozen = TUNING_METHODS[method].frozen
    for name, p in model.named_parameters():
        p.requires_grad_(parameter_kind(name) not in frozen)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
