"""The DiT of facebookresearch/DiT, described apart from models.py: names, shapes and the forward
pass on a state dict."""
import math

import torch
import torch.nn.functional as F


def shapes(width, depth, patch, channels, classes, grid, mlp_ratio=4):
    """{name: shape} of its state dict, for latents of grid x grid patches."""
    hidden = mlp_ratio * width
    found = {
        "pos_embed": (1, grid * grid, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256), "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width), "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width)}
    for i in range(depth):
        for name, rows, columns in (
                ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
                ("mlp.fc1", hidden, width), ("mlp.fc2", width, hidden),
                ("adaLN_modulation.1", 6 * width, width)):
            found[f"blocks.{i}.{name}.weight"] = (rows, columns)
            found[f"blocks.{i}.{name}.bias"] = (rows,)
    out = patch * patch * 2 * channels
    return found | {
        "final_layer.linear.weight": (out, width), "final_layer.linear.bias": (out,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,)}


def forward(state, x, t, y, heads):
    """Its output for latents x (N, C, H, W), timesteps t (N,) and labels y (N,)."""
    def linear(name, values):
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(values, shift, scale):
        norm = F.layer_norm(values, values.shape[-1:], eps=1e-6)
        return norm * (1 + scale[:, None]) + shift[:, None]

    patches = state["x_embedder.proj.weight"]
    patch = patches.shape[-1]
    tokens = F.conv2d(x, patches, state["x_embedder.proj.bias"], stride=patch)
    side = tokens.shape[-1]
    tokens = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = t[:, None] * frequencies
    c = linear("t_embedder.mlp.0", torch.cat([torch.cos(angles), torch.sin(angles)], 1))
    c = linear("t_embedder.mlp.2", F.silu(c)) + state["y_embedder.embedding_table.weight"][y]

    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    n, count, width = tokens.shape
    for block in (f"blocks.{i}." for i in range(depth)):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(
            block + "adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        qkv = linear(block + "attn.qkv", modulated(tokens, shift1, scale1))
        q, k, v = qkv.reshape(n, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        attended = (weights @ v).transpose(1, 2).reshape(n, count, width)
        tokens = tokens + gate1[:, None] * linear(block + "attn.proj", attended)
        hidden = linear(block + "mlp.fc1", modulated(tokens, shift2, scale2))
        hidden = F.gelu(hidden, approximate="tanh")
        tokens = tokens + gate2[:, None] * linear(block + "mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
    out = linear("final_layer.linear", modulated(tokens, shift, scale))
    out = out.reshape(n, side, side, patch, patch, 2 * x.shape[1])
    return torch.einsum("nhwpqc->nchpwq", out).reshape(n, -1, side * patch, side * patch)
