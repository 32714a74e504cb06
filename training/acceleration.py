"""."""

import torch

from models import LONG, DiTBlock
from training.finetuning import parameter_kind, set_trainable
from utils.errors import UserError, shorten


def matrices_to_bf16(model):
    """Holds frozen matrices in bf16, to which autocast would round them at every use: same results, half the memory."""
    for name, p in model.named_parameters():
        if not p.requires_grad and parameter_kind(name) == "matrix":
            p.data = p.data.to(torch.bfloat16)


def compile_blocks(model, device, wanted=None):
    """Compiles the blocks by torch.compile: all of a kind share one compilation, so the first step waits for one block, not 28.

    :param wanted: None: on a GPU, where there is a compiler that works
    :return: a line to tell the user, or None when nothing was done
    :raises UserError: wanted, but not possible here
    """
    if wanted is False or wanted is None and torch.device(device).type != "cuda":
        return None
    try:  # a small block first: what can fail is the machine's compiler
        probe = DiTBlock(64, 2, gamma=True).to(device)
        set_trainable(probe, "difffit")
        matrices_to_bf16(probe)
        probe.lean = True
        probe.compile()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            probe(torch.zeros(1, LONG, 64, device=device), torch.zeros(1, 64, device=device)).sum().backward()
        torch.compiler.reset()  # each kind of block takes one of the few places there are for compilations of one function
    except Exception as e:  # dynamo, inductor, triton and the C++ compiler end in all kinds
        reason = f"torch.compile does not work here ({shorten(e)})"
        if wanted:
            raise UserError(f"--compile: {reason}; leave it out") from None
        return f"{reason}: goes on without it, slower"
    for block in model.blocks:
        block.compile(dynamic=False)  # a shape's code then does not depend on which shapes came before it
    return "blocks are compiled: the first step takes longer"


def prepare_for_sampling(model, device, bf16, compiled=None):
    """Freezes a model and moves it to its device. Returns what is to be said of --compile, as `compile_blocks`."""
    model.requires_grad_(False).to(device)
    if bf16:
        matrices_to_bf16(model)
    return compile_blocks(model, device, compiled)
