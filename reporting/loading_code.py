"""How published weights are loaded, as Markdown for the model card."""
FOLDER = "In MosaicDiT's folder, with this folder's path as FOLDER"


def original_code(metadata, file_name, changes):
    """Of weights for the original repository's sample.py.

    :param metadata: of the checkpoint
    :param changes: sentences on what has to be changed in its code
    """
    text = (f"With the original repository's sample.py: `--model {metadata['model']} "
            f"--image-size {metadata['image_size']} "
            f"--num-classes {metadata['config']['num_classes']} --ckpt {file_name}`.")
    if changes:
        text += " Its code has to be changed:\n\n" + "\n".join(f"- {line}" for line in changes)
    return f"{text}\n\n{_untiling(metadata)}"


def state_dict(metadata, file_name, row=None):
    """Of a safetensors file with all weights.

    :param row: values of a model's covariates to ask for, as an example; None: it takes none
    """
    if row is None:
        return ("A state dict under the names of the original repository's `models.DiT`, built "
                f"with the arguments in `config.json`; also `train.py --ckpt {file_name}` of "
                f"MosaicDiT.\n\n{_untiling(metadata)}")
    lines = ["import json, models",
             "from safetensors.torch import load_file",
             "config = json.load(open('FOLDER/config.json'))",
             "model = models.DiT(**config['model']).eval()",
             f"model.load_state_dict(load_file('FOLDER/{file_name}'))"]
    return f"{FOLDER}:\n\n{_code(lines, row)}\n\n{_untiling(metadata)}"


def peft_adapter(metadata, row=None):
    """Of a folder for the library peft.

    :param row: see `state_dict`
    """
    lines = ["import json, peft",
             "from training import base_weights, pretrained",
             "config = json.load(open('FOLDER/config.json'))",
             f"path = {'weights/' + metadata['base']['name']!r}",
             "tensors = base_weights.fit_base(pretrained.load_weights(path), config['model'])",
             "base = base_weights.assemble(config['model'], tensors, path)",
             "model = peft.PeftModel.from_pretrained(base, 'FOLDER').eval()"]
    return (f"{FOLDER} and the base weights in `weights/`:\n\n{_code(lines, row)}\n\n"
            + _untiling(metadata))


def _code(lines, row):
    """Lines of Python as a block; of a model with covariates with those that give it a row."""
    if row is None:
        return _block(lines)
    lines = [*lines,
             "from mri.covariates import columns_from_json",
             "from training.conditions import encode, with_covariates",
             "columns = columns_from_json(config['covariates'], 'config.json')",
             f"covariates = encode(columns, [{row!r}], 'this row')",
             "conditioned = with_covariates(model, covariates, 'cpu')"]
    return (f"{_block(lines)}\n\n"
            "`conditioned(x, t, y)` predicts for these covariates, and for the null class without "
            "any, as guidance needs it. A row lists them in the order of `config.json`; None "
            "stands for a missing one. `model(x, t, y)` is asked for none.")


def _block(lines):
    return "\n".join(f"    {line}" for line in lines)


def _untiling(metadata):
    header = metadata["header"]
    return ("A sampled mosaic becomes a volume by MosaicDiT's "
            f"`mri.mosaic.untile(mosaic, {header['size']}, {header['layout']!r})`; its voxels' "
            "place in the world is the `affine` in `config.json`.")
