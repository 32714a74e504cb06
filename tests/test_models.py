import json

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from helpers import GOLDEN, golden, randomize, small_dit

import models
from benchmarks import baseline
from diffusion import gaussian_diffusion
from training import acceleration, cpu_attention, dry_run, finetuning


@pytest.mark.parametrize(
    "way", ["baseline", "as built", "long", "lean", "every second block recomputed", "compiled"]
)
def test_output_is_the_references(way, monkeypatch):
    g = golden("dit_small.npz")
    model = models.DiT(**json.loads(str(g["config"]))).eval()
    state = {
        k.removeprefix("state/"): torch.from_numpy(v)
        for k, v in g.items()
        if k.startswith("state/")
    }
    assert torch.equal(model.pos_embed, state["pos_embed"])
    model.load_state_dict(state)  # strict: every name and shape
    model.save_memory(way == "lean", 2 if way == "every second block recomputed" else 0)
    if way == "compiled":
        torch.compiler.reset()
        for block in model.blocks:
            block.compile(
                backend="aot_eager"
            )  # traced and differentiated as for a GPU, then run op by op
    if way in ("long", "lean"):
        monkeypatch.setattr(models, "LONG_SEQUENCE", 1)
    network = (lambda *a: baseline.forward(model, *a)) if way == "baseline" else model
    out = network(*(torch.from_numpy(g[k]) for k in "xty"))
    assert np.abs(out.detach().numpy() - g["out"]).max() <= 1e-5 * np.abs(g["out"]).max()


@pytest.mark.parametrize("name, size", [("DiT-XL/2", 512), ("DiT-S/8", 256)])
def test_names_and_shapes_are_the_official_ones(name, size):
    official = json.loads((GOLDEN / "state_dict_shapes.json").read_text())[f"{name}@{size}"]
    with torch.device("meta"):
        model = models.DiT_models[name](input_size=size // 8)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == official


def test_position_table_at_the_pretrained_grid():
    g = golden("pos_embed_xl2_512.npz")
    table = models.pos_embed(1152, 32, 32)
    assert table.shape == (1024, 1152) and table.dtype == torch.float32
    assert np.abs(table[g["rows"]].numpy() - g["values"]).max() < 1e-6
    assert np.isclose(table.double().sum(), g["sum"]) and np.isclose(
        table.double().abs().sum(), g["abs_sum"]
    )


def test_position_table_on_a_larger_grid():
    """Row (r, c) of grid 56: sin and cos of column c * 32 / 56, then of row r * 32 / 56."""
    table = models.pos_embed(16, 56, 32).reshape(56, 56, 16)
    for r, c in ((0, 0), (3, 41), (55, 7)):
        omega = 1 / 10000 ** (np.arange(4) / 4)
        x, y = c * 32 / 56 * omega, r * 32 / 56 * omega
        expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
        assert np.abs(table[r, c].numpy() - expected).max() < 1e-6
    assert torch.equal(
        models.pos_embed(16, 56, 56)[:10], models.pos_embed(16, 99, 99)[:10]
    )  # raw positions do not depend on the grid


def test_the_published_sizes():
    """Parameters in millions, table 1 of the DiT paper (patch size 2, 256 x 256)."""
    published = {"DiT-S/2": 33, "DiT-B/2": 130, "DiT-L/2": 458, "DiT-XL/2": 675}
    for name, millions in published.items():
        with torch.device("meta"):
            model = models.DiT_models[name](input_size=32)
        assert (
            round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6) == millions
        )
    assert {f"DiT-{s}/{p}" for s in ("XL", "L", "B", "S") for p in (2, 4, 8)} < set(
        models.DiT_models
    )


def test_difffit_trains_what_the_paper_says():
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, base_grid=32)
    trained = finetuning.set_trainable(model, "difffit")
    kinds = {}
    for name, p in trained.items():
        kinds[finetuning.parameter_kind(name)] = (
            kinds.get(finetuning.parameter_kind(name), 0) + p.numel()
        )
    assert kinds == {"bias": 489_632, "class table": 1_153_152}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, base_grid=32, gamma_blocks=14)
    trained = finetuning.set_trainable(model, "difffit")
    gammas = {n: p.numel() for n, p in trained.items() if finetuning.parameter_kind(n) == "gamma"}
    assert set(gammas) == {f"blocks.{i}.gamma{j}" for i in range(14) for j in (1, 2)} and set(
        gammas.values()
    ) == {1152}
    full = finetuning.set_trainable(model, "full")
    assert set(n for n, _ in model.named_parameters()) - set(full) == {"pos_embed"}


def test_gamma_of_ones_changes_nothing_and_scales_both_branches():
    torch.manual_seed(0)
    plain, scaled = small_dit(), small_dit(gamma_blocks=2)
    randomize(plain)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    args = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    assert torch.equal(plain(*args), scaled(*args))
    with torch.no_grad():
        for i in range(2):
            scaled.blocks[i].gamma1.zero_(), scaled.blocks[i].gamma2.zero_()
    plain.blocks = plain.blocks[2:]  # with gamma zero, both branches of the first two blocks vanish
    assert torch.allclose(plain(*args), scaled(*args), atol=1e-6)


def test_initialization_makes_every_block_the_identity():
    model = small_dit().initialize_weights()
    assert (
        torch.count_nonzero(model(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([0])))
        == 0
    )
    x, c = torch.randn(1, 16, 64), torch.randn(1, 64)
    assert torch.equal(model.blocks[0](x, c), x)


def gradients(network, trained, args, bf16=False):
    """Loss, and the gradient of the trainable parameters as one vector."""
    for p in trained.values():
        p.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = gaussian_diffusion.training_losses(network, *args)["loss"].mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trained.values()])


def deep(gamma_blocks=2):
    """A DiT of 8 blocks in which every branch matters, its trainable parameters, a batch."""
    torch.manual_seed(0)
    model = small_dit(depth=8, hidden_size=96, gamma_blocks=gamma_blocks).initialize_weights()
    randomize(model, 0.08)
    args = (
        torch.randn(4, 4, 8, 8),
        torch.tensor([3, 250, 700, 990]),
        torch.tensor([1, 10, 2, 3]),
        torch.randn(4, 4, 8, 8),
    )
    return model, finetuning.set_trainable(model, "difffit"), args


@pytest.mark.parametrize("long", [1, 10**6])
def test_every_way_gives_the_baselines_gradients(monkeypatch, long):
    monkeypatch.setattr(models, "LONG_SEQUENCE", long)
    model, trained, args = deep()
    loss, grad = gradients(lambda *a: baseline.forward(model, *a), trained, args)
    assert grad.norm() > 0.1
    for lean, k in ((False, 0), (True, 0), (True, 1), (True, 3), (False, 2)):
        model.save_memory(lean, k)
        again, g = gradients(model, trained, args)
        assert abs(again / loss - 1) < 1e-6 and (g - grad).norm() < 1e-5 * grad.norm(), (lean, k)
    finetuning.set_trainable(model, "full")
    full = {n: p for n, p in model.named_parameters() if p.requires_grad}
    _, grad = gradients(lambda *a: baseline.forward(model, *a), full, args)
    _, g = gradients(model.save_memory(True, 3), full, args)
    assert (g - grad).norm() < 1e-5 * grad.norm()


def use_our_attention(blocks, monkeypatch):
    """As acceleration.accelerate_blocks does on a CPU with products in bf16.

    Returns the list to which each call adds whether it computed attention itself.
    """
    monkeypatch.setattr(cpu_attention, "MIN_TOKENS", 1)
    calls = []

    def attention(q, k, v):
        calls.append(cpu_attention.takes(q))
        return cpu_attention.attention(q, k, v)

    for block in blocks:
        block.long_attention = attention
    return calls


@pytest.mark.parametrize("way", ["short", "long", "with our attention"])
def test_bf16_is_within_a_hundredth_of_fp32(monkeypatch, way):
    """Against the baseline in fp32: gradients within 1e-2, loss within 1e-3."""
    monkeypatch.setattr(models, "LONG_SEQUENCE", 10**6 if way == "short" else 1)
    model, trained, args = deep()
    loss, grad = gradients(lambda *a: baseline.forward(model, *a), trained, args)
    acceleration.narrow_matrices(model, "bf16")
    calls = use_our_attention(model.blocks, monkeypatch) if way == "with our attention" else []
    again, g = gradients(model.save_memory(True, 0), trained, args, bf16=True)
    assert calls == [True] * (8 if way == "with our attention" else 0)
    assert 0 < abs(again / loss - 1) < 1e-3 and 0 < (g - grad).norm() < 1e-2 * grad.norm()


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("lean, units", [(True, 11), (False, 14)])
def test_what_a_block_keeps_for_its_backward_pass(lean, units, ours, monkeypatch):
    """In units of T x width in bf16; what has no token axis is less than half a unit.

    x in fp32: 2; query, key and value: 3; heads: 1; hidden layer: 4; MLP output: 1. Not lean: the
    stream between attention and MLP: 2; the output of the attention: 1.
    """
    tokens, width = 256, 128
    block = models.DiTBlock(width, 2)
    for name, p in block.named_parameters():
        p.requires_grad_(finetuning.parameter_kind(name) != "matrix")
    acceleration.narrow_matrices(block, "bf16")
    block.lean = lean
    calls = use_our_attention([block], monkeypatch) if ours else []
    kept = dry_run.kept_for_backward(
        block, "bf16", torch.randn(1, tokens, width, requires_grad=True), torch.randn(1, width)
    )
    assert calls == [True] * ours
    assert units <= kept / (tokens * width * 2) < units + 0.5


def test_every_kth_block_is_computed_twice():
    model, trained, args = deep()
    calls = [0] * 8
    for i, block in enumerate(model.blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    gradients(model.save_memory(True, 3), trained, args)
    assert calls == [2, 1, 1, 2, 1, 1, 2, 1]
    with torch.no_grad():
        model(args[0], args[1], args[2])
    assert calls == [3, 2, 2, 3, 2, 2, 3, 2]


def test_blocks_of_a_kind_share_one_compilation():
    model, trained, args = deep(gamma_blocks=3)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for block in model.save_memory(True, 0).blocks:
        block.compile(backend=counter)
    _, g = gradients(model, trained, args)
    assert counter.frame_count == 2  # with and without scale vectors
    assert (
        g - gradients(lambda *a: baseline.forward(model, *a), trained, args)[1]
    ).norm() < 1e-5 * g.norm()


def test_frozen_matrices_in_bf16_give_autocasts_results():
    torch.manual_seed(0)
    model = small_dit()
    args = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    trained = finetuning.set_trainable(model, "difffit")
    results = []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*args)
        out.float().square().sum().backward()
        results.append([out.detach().clone()] + [p.grad.clone() for p in trained.values()])
        acceleration.narrow_matrices(model, "bf16")
    assert (
        model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
        and model.blocks[0].mlp.fc1.bias.dtype == torch.float32
    )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "kwargs, words", [(dict(input_size=9), "patches of 2"), (dict(gamma_blocks=4), "3 blocks")]
)
def test_errors(kwargs, words):
    with pytest.raises(ValueError, match=words):
        small_dit(**kwargs)
    with pytest.raises(ValueError, match="multiple of 4"):
        models.pos_embed(6, 4, 4)
    with pytest.raises(KeyError):
        models.config_of("DiT-XXL/2")


def test_the_grid_that_a_position_table_was_scaled_to():
    for grid, base_grid in ((56, 32), (32, 32), (12, 48), (96, 32), (2, 3)):
        table = models.pos_embed(16, grid, base_grid)
        assert models.base_grid_of(table) == base_grid
        assert models.base_grid_of(table.half()) == base_grid
    assert models.base_grid_of(table[:3]) is None
    assert models.base_grid_of(torch.randn(16, 16)) is None
    assert models.base_grid_of(torch.full((16, 16), torch.nan)) is None
