"""."""


TUNING_METHODS = ("difffit", "full")


def parameter_kind(name):
    """ "class table", "bias", "gamma", "norm", "position table" or "matrix", by a parameter's name."""
    if name == "y_embedder.embedding_table.weight":
        return "class table"
    if name == "pos_embed":
        return "position table"
    if name.endswith(".bias"):
        return "bias"
    if name.endswith(("gamma1", "gamma2")):  # of a model or of a block
        return "gamma"
    return "norm" if ".norm" in name else "matrix"


def set_trainable(model, tune):
    """Freezes all but what trains, and returns that as {name: parameter}.

    "difffit" (Xie et al. 2023, section 3.2): biases, normalisation, class table, gamma. DiT's LayerNorms have no
    parameters: their affine is the adaLN modulation, whose biases train. "full": all but the fixed position table.
    """
    frozen = {"difffit": ("matrix", "position table"), "full": ("position table",)}[tune]
    for name, p in model.named_parameters():
        p.requires_grad_(parameter_kind(name) not in frozen)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
