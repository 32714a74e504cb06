"""DiT (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers") for any square grid.

Parameter names are those of the official repository, so its state dicts load unchanged. The
position table is computed for the grid at hand, at coordinates scaled to the grid of pretraining.
`gamma_blocks` adds the scale vectors of DiffFit (Xie et al. 2023).
"""
import math
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

LONG_SEQUENCE = 256  # tokens; from here on the faster kernels for long samples pay off

# nothing in a block is random, so no random state needs to be kept
recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def modulate(x, shift, scale):
    """Adaptive layer norm's modulation of x (N, T, width) by shift and scale (N, 1, width)."""
    return x * (1 + scale) + shift


def modulated_norm(norm, x, shift, scale):
    """modulate(norm(x), shift, scale), computed as the affine of the layer norm itself.

    That is one pass over x, and of the activations only x is kept for the backward pass. The
    affine differs by sample, so it runs sample by sample, which pays off for long sequences. A
    compiler fuses the formula by itself.
    """
    # under autocast these are bf16, in which 1 + scale would lose bits
    shift, scale = shift.to(x.dtype), scale.to(x.dtype)
    if torch.compiler.is_compiling() or x.shape[1] < LONG_SEQUENCE:
        return modulate(norm(x), shift, scale)
    samples = [F.layer_norm(one, norm.normalized_shape, 1 + a[0], b[0], norm.eps)
               for one, a, b in zip(x, scale, shift)]
    return torch.stack(samples)


# ------------------------------------------------------------------------------------ embeddings

class TimestepEmbedder(nn.Module):
    """Sinusoids of t, then an MLP.

    :param freq_shift: 0 spaces the frequencies as the official code does, 1 as diffusers does
    """

    def __init__(self, width, frequencies=256, freq_shift=0):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies
        self.freq_shift = freq_shift

    def forward(self, t):                                           # (N,) -> (N, width)
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        omega = torch.exp(-math.log(10000) * steps / (half - self.freq_shift))
        angles = t[:, None].float() * omega                         # (N, frequencies / 2)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedder(nn.Module):
    """A table of class vectors; the last row is the null class of classifier-free guidance.

    Labels are dropped outside: the caller passes the null class.
    """

    def __init__(self, num_classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y):                                           # (N,) -> (N, width)
        return self.embedding_table(y)


class NumberEmbedder(nn.Module):
    """Fourier features of a standardized number, then an MLP: (N,) -> (N, rank)."""

    def __init__(self, rank, waves=4, longest=16, hidden=32):
        super().__init__()
        self.waves, self.longest = waves, longest                   # standard deviations
        self.mlp_in = nn.Parameter(torch.zeros(2 + 2 * waves, hidden))
        self.mlp_out = nn.Parameter(torch.zeros(hidden, rank))

    def forward(self, value):                                       # (N,) -> (N, rank)
        z = value[:, None]
        octaves = 2 ** torch.arange(self.waves, device=z.device)
        angles = 2 * math.pi / self.longest * octaves * z           # (N, waves)
        features = torch.cat([torch.ones_like(z), z, angles.cos(), angles.sin()], dim=1)
        return F.silu(features @ self.mlp_in) @ self.mlp_out


class CategoryEmbedder(nn.Module):
    """A table of the levels of a category: (N,) -> (N, rank)."""

    def __init__(self, levels, rank):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(levels, rank))

    def forward(self, value):                                       # (N,) -> (N, rank)
        return self.table[value.long()]


class ConditionEmbedder(nn.Module):
    """Covariates of a sample, such as age and sex, as one vector, which is zero before training.

    Each becomes `rank` values; their sum is projected to the width, by zeros at first. This
    bottleneck keeps an XL model's embedder below 2 % of the values that DiffFit trains.

    :param levels: of each covariate: 0 for a number, else how many levels a category has
    """

    def __init__(self, levels, width, rank=16):
        super().__init__()
        self.parts = nn.ModuleList([CategoryEmbedder(count, rank) if count else NumberEmbedder(rank)
                                    for count in levels])
        self.missing = nn.Parameter(torch.zeros(len(levels), rank))
        self.projection = nn.Parameter(torch.zeros(rank, width))

    def initialize_weights(self, seed=0):
        """Random MLPs and tables at one scale, drawn apart from the other weights."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.parts.named_parameters():
            nn.init.normal_(p, std=len(p) ** -0.5 if name.endswith("mlp_out") else 1, generator=g)
        return self

    def forward(self, values, is_null):
        """
        :param values: (N, K) standardized numbers, indices of levels; NaN where missing; None: all
        :param is_null: (N,) bool, samples for which all are missing
        :return: (N, width)
        """
        if values is None:
            values = self.missing.new_full((len(is_null), len(self.parts)), math.nan)
        values = values.masked_fill(is_null[:, None], math.nan)
        known = values.nan_to_num().unbind(1)
        parts = torch.stack([part(value) for part, value in zip(self.parts, known)], dim=1)
        parts = torch.where(values.isnan()[:, :, None], self.missing, parts)
        return parts.sum(1) @ self.projection


def pos_embed(width, grid, base_grid):
    """DiT's fixed 2D sin-cos table at positions arange(grid) * base_grid / grid.

    The scaled positions are DiffFit's interpolation (Xie et al. 2023, section 3.3).

    :param width: a multiple of 4; the first half of a row encodes the column of the patch, the
        second half its row
    :param grid: patches along a side
    :param base_grid: patches along a side at pretraining; `grid` gives the official table
    :return: (grid * grid, width) float32
    :raises ValueError: width is no multiple of 4
    """
    if width % 4:
        raise ValueError(f"width {width}: must be a multiple of 4")
    position = torch.arange(grid, dtype=torch.float64) * base_grid / grid
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = position[:, None] * omega                              # (grid, width / 4)
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)       # (grid, width / 2)
    columns = one_axis[None].expand(grid, grid, -1)
    rows = one_axis[:, None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, width).float()


def base_grid_of(table):
    """The inverse of `pos_embed`: the grid that a table's positions were scaled to.

    :param table: (grid * grid, width)
    :return: patches along a side at pretraining; None if the table is none of `pos_embed`
    """
    tokens, width = table.shape
    grid = math.isqrt(tokens)
    if grid < 2 or grid ** 2 != tokens or width % 4 or not table.isfinite().all():
        return None
    # token 1 lies in column 1: sine and cosine of base_grid / grid, at frequency 1
    angle = math.atan2(table[1, 0], table[1, width // 4]) % (2 * math.pi)
    base_grid = round(angle * grid)
    expected = pos_embed(width, grid, base_grid)
    return base_grid if torch.allclose(table.float(), expected, atol=1e-2) else None


# ----------------------------------------------------------------------------------- the network

class DiTBlock(nn.Module):
    """Attention and MLP under adaLN-Zero.

    With `lean`, what lies between the two (output projection of the attention, gate, residual,
    norm) is computed again in the backward pass. With frozen matrices a block then keeps x;
    query, key and value; the output of the attention; the hidden layer of the MLP before GELU;
    and the output of the MLP: 11 instead of 14 times T x width in bf16, for 2 % of its products.

    :param gamma: add DiffFit's scale vectors after attention and MLP, initialized to 1
    """

    def __init__(self, width, heads, mlp_ratio=4.0, gamma=False, norm2_eps=1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=norm2_eps)
        gelu = partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.gamma1 = nn.Parameter(torch.ones(width)) if gamma else None
        self.gamma2 = nn.Parameter(torch.ones(width)) if gamma else None
        self.lean = False
        # of long sequences on a CPU; training.acceleration replaces it where there is a faster one
        self.long_attention = F.scaled_dot_product_attention

    def forward(self, x, c):                                        # (N, T, width), (N, width)
        modulation = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        if self.gamma1 is not None:
            gate1, gate2 = gate1 * self.gamma1, gate2 * self.gamma2
        heads = self.attend(modulated_norm(self.norm1, x, shift1, scale1))
        # short sequences would save little memory
        if torch.is_grad_enabled() and self.lean and x.shape[1] >= LONG_SEQUENCE:
            x, h = recompute(self.between, x, heads, gate1, shift2, scale2)
        else:
            x, h = self.between(x, heads, gate1, shift2, scale2)
        return x + gate2 * self.mlp(h)                              # (N, T, width)

    def attend(self, h):                                            # (N, T, width)
        n, tokens, _ = h.shape
        qkv = self.attn.qkv(h).view(n, tokens, 3, self.attn.num_heads, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)                            # (3, N, heads, T, width/heads)
        if h.device.type != "cpu":
            return F.scaled_dot_product_attention(*qkv)
        if tokens >= LONG_SEQUENCE:
            # the CPU kernel is 5 % slower on strided heads
            return self.long_attention(*qkv.contiguous())
        # for short sequences the math kernel is as exact, and its backward pass twice as fast
        training = torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if training else nullcontext():
            return F.scaled_dot_product_attention(*qkv)

    def between(self, x, heads, gate, shift, scale):
        """From the heads of the attention to the MLP: the residual stream, and the MLP's input."""
        x = x + gate * self.attn.proj(heads.transpose(1, 2).reshape(x.shape))
        return x, modulated_norm(self.norm2, x, shift, scale)


class FinalLayer(nn.Module):
    """A modulated norm and the projection of each token to its patch."""

    def __init__(self, width, patch_size, out_channels):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):                                        # -> (N, T, p * p * 2C)
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        return self.linear(modulated_norm(self.norm_final, x, shift, scale))


class DiT(nn.Module):
    """Predicts the noise and, in as many channels again, the fraction that interpolates the
    log variance between its bounds.

    :param input_size: side of the latent, a multiple of patch_size
    :param base_grid: patches along a side at pretraining, for the position table; None: the grid
        of this model
    :param gamma_blocks: blocks 1…K that carry DiffFit's scale vectors
    :param numerics: "official", or "diffusers" for weights whose outputs must equal those of
        diffusers' DiTTransformer2DModel, which spaces its time frequencies and sets the epsilon of
        one layer norm differently
    :param covariates: see ConditionEmbedder; of none, there is no such embedder
    :raises ValueError: input_size or gamma_blocks do not fit
    """

    def __init__(self, input_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28,
                 num_heads=16, mlp_ratio=4.0, num_classes=1000, base_grid=None, gamma_blocks=0,
                 numerics="official", covariates=()):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(
                f"latents of side {input_size} cannot be cut into patches of {patch_size}")
        if not 0 <= gamma_blocks <= depth:
            raise ValueError(f"gamma_blocks {gamma_blocks}: the model has {depth} blocks")
        as_diffusers = {"official": False, "diffusers": True}[numerics]
        self.in_channels, self.out_channels = in_channels, 2 * in_channels
        self.patch_size, self.num_classes = patch_size, num_classes
        self.grid = input_size // patch_size
        self.grad_checkpoint = 0

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size, bias=True)
        self.t_embedder = TimestepEmbedder(hidden_size, freq_shift=int(as_diffusers))
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        embedder = ConditionEmbedder(covariates, hidden_size) if covariates else None
        self.condition_embedder = embedder
        table = pos_embed(hidden_size, self.grid, base_grid or self.grid)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        norm2_eps = 1e-5 if as_diffusers else 1e-6
        self.blocks = nn.ModuleList([
            DiTBlock(hidden_size, num_heads, mlp_ratio, i < gamma_blocks, norm2_eps)
            for i in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.keep_tokens(None)
        self.route_around(0, depth)

    def initialize_weights(self):
        """DiT's initialization: Xavier, small normal embeddings, and zero for the layers whose
        zeros make each block the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # the patch embedding as a linear layer, not as a convolution
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        zeros = [block.adaLN_modulation[1] for block in self.blocks]
        zeros += [self.final_layer.adaLN_modulation[1], self.final_layer.linear]
        for layer in zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.condition_embedder is not None:
            self.condition_embedder.initialize_weights()
        return self

    def keep_tokens(self, kept):
        """Sets which tokens are computed; where the others are, the output is 0.

        The kept tokens attend to each other alone, at their own positions. `kept_latents` then
        holds their (K * p * p,) positions in a flattened (H * W) latent, or None.

        :param kept: (K,) int64, counted row by row; None: all
        """
        self.register_buffer("kept_tokens", kept, persistent=False)
        kept_latents = None if kept is None else self._latents_of(kept)
        self.register_buffer("kept_latents", kept_latents, persistent=False)
        return self

    @property
    def computed_tokens(self):
        """Number of tokens that are computed."""
        return self.grid ** 2 if self.kept_tokens is None else len(self.kept_tokens)

    def route_around(self, first, end):
        """Sets the blocks that tokens bypass if a call lets some bypass them.

        :param first: index of the first of these blocks
        :param end: index after the last of them
        """
        self.bypassed = range(first, end)
        return self

    def latents_of(self, computed):
        """Positions in a flattened (H * W) latent, (N, n * p * p).

        :param computed: (N, n) int64, of the tokens that are computed, counted without the others
        """
        if self.kept_tokens is not None:
            computed = self.kept_tokens[computed]
        return self._latents_of(computed)

    def _latents_of(self, tokens):                                  # (…, n) -> (…, n * p * p)
        g, p = self.grid, self.patch_size
        inside = torch.arange(p, device=tokens.device)
        rows = (tokens // g * p)[..., None] + inside                # (…, n, p)
        columns = (tokens % g * p)[..., None] + inside
        return (rows[..., None] * g * p + columns[..., None, :]).flatten(-3)

    def unpatchify(self, x):                                        # (N, T, p * p * C)
        g, p, c = self.grid, self.patch_size, self.out_channels
        x = x.reshape(-1, g, g, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, c, g * p, g * p)                       # (N, C, H, W)

    def save_memory(self, lean, grad_checkpoint):
        """Sets what the backward pass computes again instead of keeping it.

        :param lean: in each block what is cheap, see DiTBlock
        :param grad_checkpoint: K: every K-th block as a whole; 0: none
        """
        self.grad_checkpoint = grad_checkpoint
        for i, block in enumerate(self.blocks):
            block.lean = lean and not self._is_recomputed(i)
        return self

    def _is_recomputed(self, i):
        return bool(self.grad_checkpoint) and i % self.grad_checkpoint == 0

    def forward(self, x, t, y, covariates=None, passing=None):
        """
        :param x: (N, C, H, W) noised latents
        :param t: (N,) timesteps, 0…999
        :param y: (N,) class labels; num_classes is the null class, which has no covariates
        :param covariates: (N, K), see ConditionEmbedder; None: all are missing
        :param passing: (N, n) int64, of the tokens that are computed, counted without the others:
            those that pass all blocks, while the rest bypass those of `route_around`; None: all
        :return: (N, 2C, H, W): predicted noise, variance fraction in [-1, 1]
        """
        x = self.x_embedder(x) + self.pos_embed                     # (N, T, width)
        if self.kept_tokens is not None:
            x = x.index_select(1, self.kept_tokens)                 # (N, K, width)
        c = self.t_embedder(t) + self.y_embedder(y)                 # (N, width)
        if self.condition_embedder is not None:
            c = c + self.condition_embedder(covariates, y == self.num_classes)
        if passing is None:
            x = self._run_blocks(range(len(self.blocks)), x, c)
        else:
            rows = passing[..., None].expand(-1, -1, x.shape[2])    # (N, n, width)
            x = self._run_blocks(range(self.bypassed.start), x, c)
            part = self._run_blocks(self.bypassed, x.gather(1, rows), c)
            x = x.scatter(1, rows, part)
            x = self._run_blocks(range(self.bypassed.stop, len(self.blocks)), x, c)
        x = self.final_layer(x, c)                                  # (N, T or K, p * p * 2C)
        if self.kept_tokens is not None:
            zeros = x.new_zeros(len(x), self.grid ** 2, x.shape[2])
            x = zeros.index_copy(1, self.kept_tokens, x)            # (N, T, p * p * 2C)
        return self.unpatchify(x)                                   # (N, 2C, H, W)

    def _run_blocks(self, indices, x, c):                           # (N, T, width), (N, width)
        for i in indices:
            if self._is_recomputed(i) and torch.is_grad_enabled():
                x = recompute(self.blocks[i], x, c)
            else:
                x = self.blocks[i](x, c)
        return x


# ------------------------------------------------------------------------------- the model sizes

SIZES = {  # width, depth, heads
    "XL": (1152, 28, 16),
    "L": (1024, 24, 16),
    "B": (768, 12, 12),
    "S": (384, 12, 6),
    "T": (384, 4, 6),  # not published: for CPUs
}


def config_of(name):
    """Constructor arguments of a named model.

    :param name: DiT-{XL,L,B,S,T}/{2,4,8}
    :raises KeyError: another name
    """
    if name not in DiT_models:
        raise KeyError(name)
    size, patch = name.removeprefix("DiT-").split("/")
    width, depth, heads = SIZES[size]
    return dict(hidden_size=width, depth=depth, num_heads=heads, patch_size=int(patch))


def _build(name, **kwargs):
    return DiT(**{**config_of(name), **kwargs})


DiT_models = {f"DiT-{size}/{patch}": partial(_build, f"DiT-{size}/{patch}")
              for size in SIZES for patch in (2, 4, 8)}
