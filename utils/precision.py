"""The compute dtype of a piece of work."""
from pathlib import Path

import torch

from utils.errors import UserError

NARROW_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FAST_BF16_CAPABILITY = (8, 0)    # CUDA compute capability from which attention has bf16 kernels
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}    # of x86 processors


def autocast(device, precision):
    """A context in which matrix products run in the dtype of `precision`.

    :param device: "cpu", "cuda", "cuda:0", or a torch.device
    :param precision: "bf16", "fp16", or "fp32", which changes nothing
    """
    return torch.autocast(torch.device(device).type, NARROW_DTYPES.get(precision, torch.bfloat16),
                          enabled=precision in NARROW_DTYPES)


def has_fast_bf16(device):
    """False for GPUs before Ampere (V100, T4), whose bf16 attention keeps whole matrices."""
    device = torch.device(device)
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) >= FAST_BF16_CAPABILITY


def resolve_precision(precision, device, flag="--precision"):
    """The compute dtype to use.

    :param precision: as the user gave it; None: bf16, or fp16 on GPUs before Ampere
    :param flag: the flag that named it, for the error
    :raises UserError: fp16 without a CUDA GPU
    """
    if precision is None:
        return "bf16" if has_fast_bf16(device) else "fp16"
    if precision == "fp16" and torch.device(device).type != "cuda":
        raise UserError(f"{flag} fp16: needs a CUDA GPU, this runs on {device}; "
                        "give bf16 or fp32")
    return precision


def cpu_computes_bf16(cpu_info=Path("/proc/cpuinfo")):
    """Whether this processor has instructions for bf16; without them, fp32 is faster.

    :param cpu_info: what Linux says of it; elsewhere False
    """
    try:
        flags = set(cpu_info.read_text().split())
    except OSError:
        return False
    return not CPU_BF16_FLAGS.isdisjoint(flags)
