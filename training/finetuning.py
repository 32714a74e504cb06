"""Which parameters train: DiffFit and full finetuning.

To add a method, write an entry in TUNING_METHODS: the choices and help of --tune, what the dry run
counts and what a checkpoint holds follow from it.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class TuningMethod:
    """A choice of trainable parameters.

    :param frozen: kinds of parameters (see `parameter_kind`) that stay as they are
    :param help: phrase for --help
    :param needs_base: of no use on random weights
    """
    frozen: tuple[str, ...]
    help: str
    needs_base: bool = True


TUNING_METHODS = {
    # Xie et al. 2023, section 3.2: biases, normalization, class table, scale vectors. DiT's
    # LayerNorms have no parameters: their affine is the adaLN modulation, whose biases train.
    "difffit": TuningMethod(
        ("matrix", "position table"),
        "biases, normalization parameters, class table, and scale vectors if "
        "--gamma-blocks adds any"),
    "full": TuningMethod(
        ("position table",), "all parameters except the fixed position table", needs_base=False),
}


def describe_methods():
    """One phrase per method, for --help."""
    return "; ".join(f"{name}: {method.help}" for name, method in TUNING_METHODS.items())


def parameter_kind(name):
    """"class table", "covariates", "bias", "gamma", "norm", "position table" or "matrix".

    :param name: a parameter's name in a DiT, or in one of its blocks
    """
    if name == "y_embedder.embedding_table.weight":
        return "class table"
    if name == "pos_embed":
        return "position table"
    if name.startswith("condition_embedder."):
        return "covariates"
    if name.endswith(".bias"):
        return "bias"
    if name.endswith(("gamma1", "gamma2")):
        return "gamma"
    return "norm" if ".norm" in name else "matrix"


def set_trainable(model, method):
    """Freezes all parameters that a method does not train.

    :param method: name in TUNING_METHODS
    :return: the trainable parameters, {name: parameter}
    """
    frozen = TUNING_METHODS[method].frozen
    for name, p in model.named_parameters():
        p.requires_grad_(parameter_kind(name) not in frozen)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
