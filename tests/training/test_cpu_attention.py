"""Our attention against PyTorch's in fp64, and where it is used."""
import pytest
import torch
import torch.nn.functional as F
from helpers import small_dit

import models
from training import acceleration, cpu_attention

SHAPE = (2, 3, 50, 8)   # samples, heads, tokens, values of a head


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """50 tokens in four chunks: three of 13 queries and one of 11."""
    monkeypatch.setattr(cpu_attention, "QUERIES", 12)
    monkeypatch.setattr(cpu_attention, "MIN_TOKENS", 1)


def random_inputs(shape=SHAPE, sharpness=1.0, mean=0.0, dtype=torch.bfloat16):
    """Queries, keys, values and the gradient of the result, rounded to bf16."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
    rounded = [x.to(torch.bfloat16).to(dtype) for x in (sharpness * q, k + mean, v + mean, grad)]
    return [x.requires_grad_() for x in rounded[:3]], rounded[3]


def result_and_gradients(function, leaves, grad):
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def relative_errors(sharpness=1.0, mean=0.0, shape=SHAPE):
    """Errors of our result and of the gradients of q, k and v, against PyTorch's in fp64."""
    exact = result_and_gradients(F.scaled_dot_product_attention,
                                 *random_inputs(shape, sharpness, mean, torch.float64))
    ours = result_and_gradients(cpu_attention.attention, *random_inputs(shape, sharpness, mean))
    assert all(x.dtype == torch.bfloat16 and x.shape == shape for x in ours)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact)]


def test_all_chunks_but_the_last_have_a_size():
    assert [len(range(50)[rows]) for rows in cpu_attention._chunks(50)] == [13, 13, 13, 11]
    assert [len(range(5)[rows]) for rows in cpu_attention._chunks(5)] == [5]


def test_the_formulas_in_higher_precision():
    """Without rounding to bf16: what is computed is attention and its gradient, to fp32's sums."""
    leaves, grad = random_inputs(mean=1.0, dtype=torch.float64)
    exact = result_and_gradients(F.scaled_dot_product_attention, leaves, grad)
    ours = result_and_gradients(cpu_attention._Attention.apply, leaves, grad)
    for a, b in zip(ours, exact):
        assert (a - b).norm() < 1e-6 * b.norm()
    assert (ours[0] - exact[0]).norm() < 1e-14 * exact[0].norm()
    few, _ = random_inputs((1, 1, 17, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(cpu_attention._Attention.apply, few)


@pytest.mark.parametrize("sharpness", [0.3, 1, 3, 8])
@pytest.mark.parametrize("mean", [0, 2])
def test_errors_of_bf16(sharpness, mean):
    """A value of bf16 is rounded by up to 0.4 %, 0.17 % on average."""
    result, *gradients = relative_errors(sharpness, mean)
    assert result < 4e-3
    assert max(gradients) < 7e-3


def test_large_scores_are_as_exact_as_small_ones(monkeypatch):
    """Keys with a mean of 30 add about 30 to all scores of a query, where bf16 only has eighths.

    Without the shift, gradients of values are 4 % off, and those of queries worthless.
    """
    shifted = relative_errors(mean=30)
    assert shifted[3] < 4e-3 and shifted[1] < 0.06
    monkeypatch.setattr(cpu_attention, "_shifted_product", without_shift)
    rounded = relative_errors(mean=30)
    assert rounded[3] > 0.03 and rounded[1] > 1


def without_shift(a, shift, b_and_ones, scale, out):
    return cpu_attention._product(a, b_and_ones[:, :-1].T, scale, out)


def test_a_mean_of_the_keys_does_not_harm_the_gradient_of_the_queries():
    """It is multiplied by sums over weights' gradients, which are zero unless they are rounded."""
    assert relative_errors(mean=8, shape=(1, 1, 300, 8))[1] < 2e-2     # PyTorch 2.14: 1.3


def test_sizes_of_real_chunks(monkeypatch):
    """Two chunks of 767 queries, as in training."""
    monkeypatch.undo()
    assert cpu_attention._chunk_size(1533) == 767
    assert max(relative_errors(mean=1, shape=(1, 1, 1533, 72))) < 7e-3


def test_no_second_derivatives():
    leaves, grad = random_inputs()
    first = torch.autograd.grad(cpu_attention.attention(*leaves), leaves[0], grad.requires_grad_(),
                                create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_heads_may_lie_anywhere():
    leaves, grad = random_inputs()
    expected = result_and_gradients(cpu_attention.attention, leaves, grad)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
               for x in leaves]
    assert not strided[0].is_contiguous()
    found = result_and_gradients(cpu_attention.attention, strided, grad.transpose(2, 3)
                                 .contiguous().transpose(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_what_is_not_finite_stays_so():
    (q, k, v), grad = random_inputs()
    with torch.no_grad():
        k[0, 0, 7] = float("inf")
    result = result_and_gradients(cpu_attention.attention, [q, k, v], grad)
    assert not result[0][0, 0].isfinite().any() and not result[2][0, 0].isfinite().all()
    assert result[0][1].isfinite().all()


@pytest.mark.parametrize("why", ["fp32", "short", "compiled"])
def test_pytorchs_kernel_computes_the_rest(why, monkeypatch):
    leaves, grad = random_inputs(dtype=torch.float32 if why == "fp32" else torch.bfloat16)
    monkeypatch.setattr(cpu_attention, "MIN_TOKENS", 51 if why == "short" else 50)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: why == "compiled")
    monkeypatch.setattr(cpu_attention._Attention, "apply", None)
    found = result_and_gradients(cpu_attention.attention, leaves, grad)
    expected = result_and_gradients(F.scaled_dot_product_attention, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("description, expected", [
    ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16\n", True),
    ("vendor_id : AuthenticAMD\nflags : avx512f\n", False),
    ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16\n", False), (None, False)])
def test_which_processors_it_is_for(description, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_attention, "CPU_DESCRIPTION", tmp_path / "cpuinfo")
    if description:
        (tmp_path / "cpuinfo").write_text(description)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cpu_attention.is_faster() == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert not cpu_attention.is_faster()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu_attention.is_faster()


@pytest.mark.parametrize("device, precision, fast, expected", [
    ("cpu", "bf16", True, True), ("cpu", "bf16", False, False), ("cpu", "fp32", True, False),
    ("cpu", "fp16", True, False), ("mps", "bf16", True, False)])
def test_where_it_is_chosen(device, precision, fast, expected, monkeypatch):
    monkeypatch.setattr(cpu_attention, "is_faster", lambda: fast)
    model = small_dit()
    assert acceleration.accelerate_blocks(model, device, None, precision) is None
    chosen = [block.long_attention is cpu_attention.attention for block in model.blocks]
    assert chosen == [expected] * len(model.blocks)


def test_a_block_uses_it_for_long_sequences(monkeypatch):
    monkeypatch.setattr(models, "LONG_SEQUENCE", 10)
    torch.manual_seed(0)
    block = models.DiTBlock(16, 2)
    calls = []

    def counted(q, k, v):
        calls.append(q.shape)
        return cpu_attention.attention(q, k, v)

    block.long_attention = counted
    for tokens in (9, 10):
        with torch.autocast("cpu", torch.bfloat16):
            block(torch.randn(3, tokens, 16), torch.randn(3, 16)).sum().backward()
    assert calls == [(3, 2, 10, 8)]
