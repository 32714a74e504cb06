"""Attention for AMD CPUs that multiply in bf16: faster than PyTorch's for long sequences.

PyTorch's kernel leaves its products to MKL, which computes them in fp32 with AVX2 on such a CPU.
Here they are oneDNN's, in bf16 with sums in fp32, for some hundred queries at a time.

oneDNN rounds each product to bf16, which would harm large scores. So scores are shifted before
they are rounded, by the largest one of their query: what counts in a softmax is close to it, hence
close to zero and rounded finely. A softmax does not depend on the shift. In the same way, the
gradient with respect to weights is shifted by the sum that a softmax's backward pass subtracts.
"""
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

QUERIES = 768       # of a chunk, about; 384 to 1,024 are as fast, 256 is slower
MIN_TOKENS = 512    # for shorter sequences PyTorch's kernel is as fast
MAX_THREADS = 4     # PyTorch's kernel gains more from threads: with more it may be as fast
CPU_DESCRIPTION = Path("/proc/cpuinfo")     # of Linux


def is_faster():
    """Whether this is an AMD CPU with instructions for products in bf16, used by few threads.

    That is Zen 4 or later. On Intel CPUs, MKL has such products itself; which attention is faster
    there was not measured.
    """
    try:
        text = CPU_DESCRIPTION.read_text()
    except OSError:
        return False
    return ("AuthenticAMD" in text and "avx512_bf16" in text
            and torch.get_num_threads() <= MAX_THREADS and torch.backends.mkldnn.is_available())


def takes(q):
    """Whether `attention` computes it here, rather than leave it to PyTorch's kernel."""
    return (q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] >= MIN_TOKENS
            and not torch.compiler.is_compiling())


def attention(q, k, v):
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, equation 1), with its first derivatives.

    PyTorch's kernel computes what is not bf16, is shorter than MIN_TOKENS or is being compiled.

    :param q: queries (N, heads, T, D); `k` keys and `v` values have the same shape
    :return: (N, heads, T, D)
    """
    if not takes(q):
        return F.scaled_dot_product_attention(q, k, v)
    return _Attention.apply(q, k, v)


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the result, and the largest score of each query for the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v):
        result = torch.empty_like(q)
        largest = q.new_empty(*q.shape[:3], 1)
        buffers = _buffers(q)
        for head in _heads(q):
            _forward_of_head(q[head], k[head], v[head], result[head], largest[head], buffers)
        ctx.save_for_backward(q, k, v, result, largest)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, result, largest = ctx.saved_tensors
        grad = grad.contiguous()
        # what the backward pass of the softmax subtracts, by query
        weighted = (grad * result).sum(-1, keepdim=True, dtype=torch.float32).to(q.dtype)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        buffers = _buffers(q)
        for head in _heads(q):
            shifts = largest[head], weighted[head]
            _backward_of_head(q[head], k[head], v[head], grad[head], shifts,
                              [x[head] for x in grads], buffers)
        return tuple(grads)


def _buffers(q):
    """For the scores and weights of a chunk: one allocation for all heads.

    With MALLOC_MMAP_THRESHOLD_ (docs/speed.md) each would be memory that is new to the process.
    """
    tokens = q.shape[2]
    return q.new_empty(2, _chunk_size(tokens), tokens)


def _heads(x):
    return [(sample, head) for sample in range(x.shape[0]) for head in range(x.shape[1])]


def _chunk_size(tokens):
    """Queries of a chunk: about QUERIES, the same for all but the last, which may have fewer."""
    return math.ceil(tokens / max(1, round(tokens / QUERIES)))


def _chunks(tokens):
    size = _chunk_size(tokens)
    return [slice(first, first + size) for first in range(0, tokens, size)]


def _with_ones(x):
    return torch.cat((x, x.new_ones(len(x), 1)), 1)


def _shifted_product(a, shift, b_and_ones, scale, out):
    """scale * (a b^T - shift), rounded once: the shift is one more value of each row of a."""
    return _product(torch.cat((a, -shift), 1), b_and_ones.T, scale, out)


def _product(a, b, scale, out):
    # the first argument is not read, as beta is 0
    return torch.addmm(out.new_zeros(()), a, b, beta=0, alpha=scale, out=out)


def _forward_of_head(q, k, v, result, largest, buffers):
    """One head of one sample, (T, D) each. Writes the result and the largest scores (T, 1)."""
    tokens, width = q.shape
    scores, weights = buffers
    k_and_ones = _with_ones(k)
    for rows in _chunks(tokens):
        s, p = scores[:len(q[rows])], weights[:len(q[rows])]
        torch.mm(q[rows], k.T, out=s)
        torch.amax(s, 1, keepdim=True, out=largest[rows])
        _shifted_product(q[rows], largest[rows], k_and_ones, width ** -0.5, out=s)
        torch.ops.aten._softmax.out(s, 1, False, out=p)
        torch.mm(p, v, out=result[rows])


def _backward_of_head(q, k, v, grad, shifts, grads, buffers):
    """One head of one sample, (T, D) each. Writes the gradients of q, k and v.

    :param shifts: (T, 1) each, of the scores and of the gradient with respect to weights
    """
    tokens, width = q.shape
    scale = width ** -0.5
    largest, weighted = shifts
    q_grad, k_grad, v_grad = grads
    scores, weights = buffers
    # sums over queries are kept in fp32, and transposed, as oneDNN is faster that way
    part = q.new_empty(width, tokens)
    k_sum, v_sum = q.new_zeros(2, width, tokens, dtype=torch.float32)
    q_columns, grad_columns = q.T.contiguous(), grad.T.contiguous()
    k_and_ones, v_and_ones = _with_ones(k), _with_ones(v)
    for rows in _chunks(tokens):
        s, p = scores[:len(q[rows])], weights[:len(q[rows])]
        _shifted_product(q[rows], largest[rows], k_and_ones, scale, out=s)
        torch.ops.aten._softmax.out(s, 1, False, out=p)
        v_sum += torch.mm(grad_columns[:, rows], p, out=part)
        _shifted_product(grad[rows], weighted[rows], v_and_ones, 1, out=s)
        # in place: a row is read as a whole, for its sum, before its values are replaced
        torch.ops.aten._softmax_backward_data.out(s, p, 1, s.dtype, grad_input=s)
        k_sum += torch.mm(q_columns[:, rows], s, out=part)
        _product(s, k, scale, out=q_grad[rows])
    torch.mul(k_sum.T, scale, out=k_grad)
    v_grad.copy_(v_sum.T)
