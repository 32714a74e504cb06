"""The names of diffusers' DiTTransformer2DModel and the official ones."""
import re

import torch

from utils.errors import UserError

# official name of a module of DiTTransformer2DModel
_MODULES = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
# the same within a block
_BLOCK_MODULES = {
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}
# each block has its copy of these, all equal in a converted DiT
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}


def rename_tensors(theirs, file):
    """The tensors of a DiTTransformer2DModel under the official names.

    :param theirs: {diffusers' name: tensor}
    :param file: where they come from, for the error
    :raises UserError: the blocks' embedders differ from each other
    """
    tensors = {}
    for key, tensor in theirs.items():
        module, kind = key.rsplit(".", 1)  # kind: weight or bias
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if module in _MODULES:
            tensors[f"{_MODULES[module]}.{kind}"] = tensor
        if not block:
            continue
        i, module = block.groups()
        if module.startswith("norm1.emb."):
            name = f"{_EMBEDDERS[module]}.{kind}"
            if not _is_equal(tensors.setdefault(name, tensor), tensor):
                raise UserError(f"{file}: its blocks have embedders of their own, unlike a DiT; "
                                "it was trained further by other code")
        elif module.startswith("attn1.to_q"):
            qkv = [theirs[f"transformer_blocks.{i}.attn1.to_{n}.{kind}"] for n in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
        elif module in _BLOCK_MODULES:
            tensors[f"blocks.{i}.{_BLOCK_MODULES[module]}.{kind}"] = tensor
    return tensors


def _is_equal(a, b):
    """Whether two tensors are equal, or without values (meta device) of the same shape."""
    return a.shape == b.shape if a.is_meta else torch.equal(a, b)
