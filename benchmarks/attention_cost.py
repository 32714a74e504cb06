"""Cost and error of attention: PyTorch's kernels, and on a CPU training/cpu_attention.py."""
import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import measure
from training import cpu_attention
from utils.precision import NARROW_DTYPES

GPU_KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention 2": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
NOT_AVAILABLE = ("No available kernel", "No viable backend")   # PyTorch says so on GPUs and CPUs
OURS = "cpu_attention.py"
# of T x T x width, in the forward pass and in the backward pass, which computes scores again
PRODUCTS = (2, 5)


@dataclass(frozen=True)
class AttentionCost:
    """Medians of one kernel, and its relative errors (root mean square) against fp64."""
    forward_seconds: float
    backward_seconds: float
    result_error: float
    gradient_error: float       # the largest of those of queries, keys and values


def kernels(q):
    """{name: function of queries, keys and values} to compare on queries such as `q`."""
    found = {"PyTorch's choice": F.scaled_dot_product_attention}
    if q.device.type == "cuda":
        for name, backend in GPU_KERNELS.items():
            found[name] = functools.partial(_with_backend, backend)
    elif cpu_attention.takes(q):
        found[OURS] = cpu_attention.attention
    return found


def _with_backend(backend, q, k, v):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def measure_kernels(shape, precision, device, repeats, mean):
    """Measures all kernels, alternating.

    :param shape: (N, heads, T, D) of queries, keys and values
    :param repeats: how often each kernel is timed
    :param mean: what is added to keys and values, which are otherwise standard normal
    :return: {name: AttentionCost, or None if the kernel does not take these inputs}
    """
    dtype = NARROW_DTYPES.get(precision, torch.float32)
    inputs = _random_inputs(shape, dtype, device, mean)
    found = kernels(inputs[0])
    heads = {name: _one_head_if_available(kernel, inputs) for name, kernel in found.items()}
    times = {name: [] for name, values in heads.items() if values}
    for turn in range(1 + repeats):
        for name, seconds in times.items():
            one = _time_once(found[name], inputs, device)
            if turn:            # the first call of each warms up
                seconds.append(one)
    exact = _one_head(F.scaled_dot_product_attention, [x.cpu().double() for x in inputs])
    costs = dict.fromkeys(found)
    for name, seconds in times.items():
        costs[name] = AttentionCost(*np.median(seconds, axis=0), *_errors(heads[name], exact))
    return costs


def _random_inputs(shape, dtype, device, mean):
    """Queries, keys, values, and the gradient of the result, laid out as in models.DiTBlock."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
    qkv = torch.stack([q, k + mean, v + mean]).to(device, dtype)
    if qkv.device.type == "cuda":       # there heads are views of (N, T, 3, heads, D)
        qkv = qkv.permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    return [*qkv, grad.to(device, dtype)]


def _one_head_if_available(kernel, inputs):
    """As `_one_head`; None if the kernel does not take these inputs."""
    try:
        return _one_head(kernel, inputs)
    except RuntimeError as e:
        if not any(words in str(e) for words in NOT_AVAILABLE):
            raise
        return None


def _one_head(kernel, inputs):
    """The result and the gradients of the first head of the first sample."""
    q, k, v, grad = (x[:1, :1].detach().clone() for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    result = kernel(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def _errors(values, exact):
    found = [((a.cpu().double() - b).norm() / b.norm()).item() for a, b in zip(values, exact)]
    return found[0], max(found[1:])


def _time_once(kernel, inputs, device):
    """Seconds of a forward and of a backward pass."""
    *leaves, grad = (x.detach() for x in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    forward, result = measure.time_call(lambda: kernel(*leaves), device)
    backward, _ = measure.time_call(
        lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True), device)
    return forward, backward


def report(shape, precision, costs):
    """Lines that tell the user what was measured."""
    n, heads, tokens, width = shape
    lines = [f"attention of {n} x {heads} heads of {width}, {tokens} tokens, {precision}",
             f"{'':18} {'forward, ms':>12} {'backward, ms':>13} {'TFLOP/s':>15} "
             f"{'error':>8} {'of gradient':>12}"]
    for name, cost in costs.items():
        if cost is None:
            lines.append(f"{name:18} not available for these inputs")
            continue
        seconds = cost.forward_seconds, cost.backward_seconds
        rates = [count * 2 * n * heads * tokens ** 2 * width / s / 1e12
                 for count, s in zip(PRODUCTS, seconds)]
        lines.append(f"{name:18} {1e3 * seconds[0]:12.2f} {1e3 * seconds[1]:13.2f} "
                     f"{f'{rates[0]:.3g} and {rates[1]:.3g}':>15} "
                     f"{cost.result_error:8.4f} {cost.gradient_error:12.4f}")
    return lines + _ratio(costs)


def _ratio(costs):
    """How much faster our kernel is than PyTorch's, and whether it is used, if it was measured."""
    ours, theirs = costs.get(OURS), costs["PyTorch's choice"]
    if ours is None:
        return []
    ratios = [theirs.forward_seconds / ours.forward_seconds,
              theirs.backward_seconds / ours.backward_seconds]
    used = "use" if cpu_attention.is_faster() else "do not use"
    return [f"{OURS}: {ratios[0]:.2f} and {ratios[1]:.2f} times faster; train.py and sample.py "
            f"{used} it on this machine"]
