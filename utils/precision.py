"""The compute dtype of a piece of work."""
import torch

PRECISIONS = ("bf16", "fp32")


def autocast(device, precision):
    """A context in which matrix products run in bf16 if `precision` is "bf16".

    :param device: "cpu", "cuda", "cuda:0", or a torch.device
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
