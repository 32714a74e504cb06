"""Base weights made to fit a model: class table, covariates, scale vectors, position table."""
import torch

import models
from utils.errors import UserError

POSITION_TABLE = "pos_embed"
CLASS_TABLE = "y_embedder.embedding_table.weight"
CONDITION_EMBEDDER = "condition_embedder."
MAX_TABLE_BYTES = 2 ** 30       # of a class table; a million classes of 256 values


def fit_base(weights, config):
    """Tensors of base weights for a model of this config: class table resized, gammas added.

    A table of as many rows as the model has classes, of weights that need not have a null class,
    keeps its rows; the null class becomes their mean. With any other number of rows every class
    starts as the base's null class, its last row, the one that stands for any image.

    Of weights that were trained with covariates, the classes start as they are without any.

    :param config: constructor arguments of models.DiT
    :raises UserError: a class table that is too large, or a damaged embedder of covariates
    """
    tensors = _with_missing_covariates(weights.tensors)
    table = tensors.get(CLASS_TABLE)
    if table is not None and _lacks_null_row(weights, config):
        tensors[CLASS_TABLE] = torch.cat([table.float(), table.float().mean(0, keepdim=True)])
    elif table is not None and len(table) != config["num_classes"] + 1:
        _check_table_size(config["num_classes"] + 1, table.shape[-1])
        tensors[CLASS_TABLE] = table[-1:].repeat(config["num_classes"] + 1, 1)
    for i in range(config["gamma_blocks"]):
        for name in (f"blocks.{i}.gamma1", f"blocks.{i}.gamma2"):
            tensors.setdefault(name, torch.ones(config["hidden_size"]))
    return _with_new_condition_embedder(tensors, config)


def _with_missing_covariates(tensors):
    """Tensors whose class table holds what the embedder of covariates adds where all are missing,
    which `models.ConditionEmbedder` computes as sum(missing) projection."""
    table, missing, projection = (tensors.get(name) for name in (
        CLASS_TABLE, f"{CONDITION_EMBEDDER}missing", f"{CONDITION_EMBEDDER}projection"))
    if any(tensor is None for tensor in (table, missing, projection)):
        return dict(tensors)
    if not (missing.ndim == projection.ndim == table.ndim == 2
            and missing.shape[1] == projection.shape[0] and projection.shape[1] == table.shape[1]):
        raise UserError("--ckpt: its embedder of covariates is damaged; use another checkpoint")
    vector = missing.float().sum(0) @ projection.float()            # (width,)
    return tensors | {CLASS_TABLE: table.float() + vector}


def _with_new_condition_embedder(tensors, config):
    """Tensors in which the embedder of covariates is as before training; without covariates none.

    That of a base stands for other covariates, or for the same on another scale.
    """
    tensors = {name: value for name, value in tensors.items()
               if not name.startswith(CONDITION_EMBEDDER)}
    if config.get("covariates"):
        embedder = models.ConditionEmbedder(config["covariates"], config["hidden_size"])
        tensors |= {CONDITION_EMBEDDER + name: value
                    for name, value in embedder.initialize_weights().state_dict().items()}
    return tensors


def _check_table_size(rows, width):
    if rows * width * 4 > MAX_TABLE_BYTES:      # fp32
        raise UserError(f"--num-classes {rows - 1}: the class table would take "
                        f"{rows * width * 4 / 1e9:.3g} GB, more than the {MAX_TABLE_BYTES >> 30} "
                        "GiB allowed; give the number of classes")


def describe_changes(weights, config):
    """What `fit_base` changes in the base weights, lines for the user."""
    dropped = None
    if any(name.startswith(CONDITION_EMBEDDER) for name in weights.tensors):
        dropped = ("--ckpt was trained with covariates: its embedder of covariates is not used. "
                   "Its classes start as they are without covariates, and those of --condition-on "
                   "start without effect")
    return tuple(filter(None, (describe_class_table(weights, config), dropped)))


def describe_class_table(weights, config):
    """What `fit_base` does to the class table, in a line for the user; None if nothing."""
    table = weights.tensors.get(CLASS_TABLE)
    classes = config["num_classes"]
    if table is None or len(table) == classes + 1:
        return None
    if _lacks_null_row(weights, config):
        return (f"class table of {classes} rows for {classes} classes: kept, and the mean of its "
                "rows is added as the null class")
    return (f"class table of {len(table)} rows, {classes + 1} are needed: every class starts as "
            "its last row, the null class; see --num-classes")


def _lacks_null_row(weights, config):
    table = weights.tensors[CLASS_TABLE]
    return not weights.null_row and len(table) == config["num_classes"]


def assemble(config, tensors, path):
    """A DiT of this config with these tensors, without holding the weights twice.

    :param config: constructor arguments of models.DiT
    :param tensors: under the official names, without the position table, which is computed for
        the grid
    :param path: where they come from, for error messages
    :return: DiT on the CPU, fp32, eval mode
    :raises UserError: names the first tensor that is missing, superfluous, or of another shape
    """
    model = check_fit(config, tensors, path)
    base_grid = config["base_grid"] or model.grid
    table = models.pos_embed(config["hidden_size"], model.grid, base_grid)[None]
    state_dict = {key: value.float() for key, value in tensors.items()}
    state_dict[POSITION_TABLE] = table
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def check_fit(config, tensors, path):
    """Checks that tensors are those of a DiT of this config, by their names and shapes.

    :param config, tensors, path: see `assemble`; the tensors need no values
    :return: DiT on the meta device
    :raises UserError: see `assemble`
    """
    try:
        with torch.device("meta"):
            model = models.DiT(**config)
    except (TypeError, ValueError, KeyError, AssertionError) as e:
        raise UserError(f"{path}: its config is not that of a DiT ({type(e).__name__}: {e})"
                        ) from None
    expected = {key: value.shape for key, value in model.state_dict().items()
                if key != POSITION_TABLE}
    _check_names(expected, tensors, path)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: weights of another model: {name} is "
                            f"{tuple(tensors[name].shape)}, {tuple(shape)} is needed; "
                            "see --model, --num-classes and --vae")
    return model


def _check_names(expected, tensors, path):
    missing = sorted(expected.keys() - tensors.keys())
    superfluous = sorted(tensors.keys() - expected.keys())
    for problem, names in (("lacks", missing), ("also has", superfluous)):
        if names:
            raise UserError(f"{path}: weights of another model: it {problem} {names[0]} "
                            f"({len(names)} in all); see --model and --gamma-blocks")
