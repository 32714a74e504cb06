"""What makes a DiT faster, with results that differ by rounding: narrow matrices, faster blocks."""
import torch

import models
from training import cpu_attention
from training.finetuning import parameter_kind, set_trainable
from utils.errors import UserError, shorten
from utils.precision import NARROW_DTYPES, autocast

# Variants of a block that are compiled: with and without scale vectors and what is recomputed; in
# steps that leave out tokens and in full ones, held-out losses and previews. PyTorch allows 8, and
# would run further ones uncompiled.
MAX_COMPILED_VARIANTS = 32


def narrow_matrices(model, precision):
    """Stores frozen matrices in the compute dtype, to which autocast would round them at every use.

    Half the memory. Nothing to do for "fp32".

    :param precision: "bf16", "fp16" or "fp32"
    """
    dtype = NARROW_DTYPES.get(precision)
    if dtype is None:
        return
    for name, p in model.named_parameters():
        if not p.requires_grad and parameter_kind(name) == "matrix":
            p.data = p.data.to(dtype)


def accelerate_blocks(model, device, compiled=None, precision="bf16"):
    """Chooses what computes the attention of the blocks, and compiles them with torch.compile.

    All blocks of a kind share one compilation, so the first step waits for one block, not 28.

    :param compiled: True, False, or None: on a GPU if the machine has a working compiler
    :param precision: compute dtype
    :return: a message for the user, or None if nothing is compiled
    :raises UserError: compiling is wanted, but impossible on this machine
    """
    kind = torch.device(device).type
    # blocks that are compiled use PyTorch's kernel, as attention() does not unroll its loops there
    if kind == "cpu" and precision == "bf16" and cpu_attention.is_faster():
        for block in model.blocks:
            block.long_attention = cpu_attention.attention
    if compiled is False or (compiled is None and kind != "cuda"):
        return None
    problem = _try_compiler(device, precision if precision in NARROW_DTYPES else "bf16")
    if problem and compiled:
        raise UserError(f"--compile: {problem}; leave it out")
    if problem:
        return f"{problem}: continuing without it, slower"
    allow_all_variants()
    for block in model.blocks:
        block.compile(dynamic=False)  # so that code for a shape does not depend on earlier shapes
    return "blocks are compiled: the first step takes longer"


def allow_all_variants():
    """Lets torch.compile make as many variants of a block as there are kinds and shapes of it."""
    import torch._dynamo  # here, as it takes a second

    # what PyTorch 2.7 and later call recompile_limit
    torch._dynamo.config.cache_size_limit = MAX_COMPILED_VARIANTS


def _try_compiler(device, precision):
    """Compiles a small block, as what can fail is the machine's compiler. Returns the problem."""
    try:
        probe = models.DiTBlock(64, 2, gamma=True).to(device)
        set_trainable(probe, "difffit")
        narrow_matrices(probe, precision)
        probe.lean = True
        probe.compile()
        x = torch.zeros(1, models.LONG_SEQUENCE, 64, device=device)
        with autocast(device, precision):
            probe(x, torch.zeros(1, 64, device=device)).sum().backward()
        # the probe took one of the few compilations that PyTorch allows per function
        torch.compiler.reset()
    except Exception as e:  # dynamo, inductor, triton and the C++ compiler raise many kinds
        return f"torch.compile does not work here ({shorten(e)})"
    return None


def prepare_for_sampling(model, device, precision, compiled=None):
    """Freezes a model and moves it to its device.

    :param precision: "bf16" and "fp16" store its matrices in that dtype
    :param compiled: see `accelerate_blocks`
    :return: a message for the user, or None
    """
    model.requires_grad_(False).to(device)
    narrow_matrices(model, precision)
    return accelerate_blocks(model, device, compiled, precision)
