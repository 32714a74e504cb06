"""Steps that leave out tokens: what is computed, what is drawn, which steps they are."""
import pytest
import torch
import torch._dynamo.testing
from helpers import randomize, small_dit

import models
from benchmarks import baseline
from diffusion import gaussian_diffusion
from training import acceleration, dry_run, finetuning, token_drop
from training.acceleration import narrow_matrices
from training.step import Batches, compute_gradients, draw_step
from utils.errors import UserError

KEPT = torch.tensor([1, 2, 4, 7, 8, 11, 13])               # of the 16 tokens of a 4 x 4 grid
PASSING = torch.tensor([[0, 3, 4], [1, 2, 6]])             # of the kept ones, for two samples
FLAGS = dict(drop=0.0, route=0.0, route_blocks=None, full_steps=0, depth=28, max_steps=100)


def model_of(kept=KEPT, **config):
    torch.manual_seed(0)
    return randomize(small_dit(**config)).keep_tokens(kept)


def inputs():
    """x, t, y of two samples."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, torch.tensor([3, 700]), torch.tensor([1, 10])


def inside(tokens):
    """(8, 8) bool, the latents of some tokens of the 4 x 4 grid."""
    grid = torch.zeros(16, dtype=torch.bool)
    grid[tokens] = True
    return grid.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)


def routed_by_hand(model, x, t, y, kept, passing, first, end):
    """One sample's output: attention is masked, and what bypasses a block stays as it was."""
    attended, routed = (torch.zeros(16, dtype=torch.bool) for _ in range(2))
    attended[kept] = True
    routed[kept[passing]] = True
    x = model.x_embedder(x) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    for i, block in enumerate(model.blocks):
        if first <= i < end:
            x = torch.where(routed[:, None], baseline.block_forward(block, x, c, routed), x)
        else:
            x = baseline.block_forward(block, x, c, attended)
    return model.unpatchify(model.final_layer(x, c) * attended[:, None])


@pytest.mark.parametrize("way", ["as built", "recomputed", "all tokens"])
def test_dropped_steps_are_masked_attention_over_the_drawn_tokens(way):
    kept = torch.arange(16) if way == "all tokens" else KEPT
    model = model_of(None if way == "all tokens" else KEPT)
    model.save_memory(True, 2 if way == "recomputed" else 0)
    x, t, y = inputs()
    out = model(x, t, y, passing=PASSING)
    for i in range(2):
        drawn = kept[PASSING[i]]
        expected = baseline.forward(model_of(drawn), x[i:i + 1], t[i:i + 1], y[i:i + 1])[0]
        where = inside(drawn)
        assert torch.allclose(out[i][:, where], expected[:, where], rtol=1e-4, atol=1e-5)
        found = torch.zeros(64, dtype=torch.bool)
        found[model.latents_of(PASSING)[i]] = True
        assert torch.equal(found.view(8, 8), where)


def test_loss_and_gradients_of_a_dropped_step_are_of_the_drawn_tokens_alone():
    x0, t, y = inputs()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    model = model_of()
    parameters = list(finetuning.set_trainable(model, "difffit").values())
    batch = x0, t, y, noise, torch.zeros(2, 0), PASSING
    sums, is_bad = compute_gradients(model, batch, parameters, accum=2, global_batch_size=2,
                                     precision="fp32")
    ours = [p.grad.clone() for p in parameters]
    losses = []
    for i in range(2):
        model.keep_tokens(KEPT[PASSING[i]])
        losses.append(gaussian_diffusion.training_losses(
            lambda *args: baseline.forward(model, *args), x0[i:i + 1], t[i:i + 1], y[i:i + 1],
            noise[i:i + 1], model.kept_latents)["loss"])
    theirs = torch.autograd.grad(sum(losses) / 2, parameters)
    assert is_bad == 0 and sums[0].item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7


@pytest.mark.parametrize("checkpoint", [0, 1])
def test_routed_steps_equal_a_plain_loop(checkpoint):
    model = model_of(depth=4).route_around(1, 3).save_memory(True, checkpoint)
    x, t, y = inputs()
    out = model(x, t, y, passing=PASSING)
    expected = torch.cat([routed_by_hand(model, x[i:i + 1], t[i:i + 1], y[i:i + 1], KEPT,
                                         PASSING[i], 1, 3) for i in range(2)])
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, model(x, t, y), rtol=1e-2, atol=1e-2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(result.square().mean(), parameters)
                    for result in (out, expected))
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7


@pytest.mark.parametrize("blocks, kinds_and_shapes", [
    ((1, 3), 10), pytest.param((0, 4), 12, marks=pytest.mark.slow)])
def test_compiled_blocks_compute_the_same(monkeypatch, blocks, kinds_and_shapes):
    """All kinds of blocks, in every shape that a run has: steps that leave out tokens, full ones,
    held-out losses and previews. Each is compiled once, and none is left uncompiled."""
    monkeypatch.setattr(models, "LONG_SEQUENCE", 1)
    model = model_of(depth=4, gamma_blocks=2).route_around(*blocks).save_memory(True, 2)
    trained = list(finetuning.set_trainable(model, "difffit").values())
    x, t, y = inputs()
    larger, smaller = (torch.cat([x, x]), t.repeat(2), y.repeat(2)), (x[:1], t[:1], y[:1])

    def outputs():
        found = []
        for passing in (PASSING, None):
            out = model(x, t, y, passing=passing)
            out = out.flatten(2)[..., model.latents_of(PASSING)[0]]
            found += [out, *torch.autograd.grad(out.square().mean(), trained)]
        with torch.no_grad():
            return [*found, model(*larger), model(*smaller)]

    expected = outputs()
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=8):     # PyTorch's own, which is too low
        acceleration.allow_all_variants()
        for ours, theirs in zip(outputs(), expected):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7
        assert counter.frame_count == kinds_and_shapes
        outputs()
        assert counter.frame_count == kinds_and_shapes
    torch.compiler.reset()


def test_the_loss_of_a_routed_step_is_over_all_computed_tokens():
    network, positions = token_drop.network_and_positions(model_of().route_around(1, 2), PASSING)
    assert torch.equal(positions, network.func.kept_latents)
    model = model_of()
    assert token_drop.network_and_positions(model, None) == (model, model.kept_latents)


def test_all_tokens_passing_is_the_model_itself():
    model = model_of()
    everyone = torch.arange(7).expand(2, -1)
    assert torch.equal(model(*inputs(), passing=everyone), model(*inputs()))


def test_tokens_are_drawn_last_for_each_volume_without_replacement():
    plain = draw_step(3, 2, 5, 200, (1, 2, 2), 0.5)
    drawn = draw_step(3, 2, 5, 200, (1, 2, 2), 0.5, tokens=8, passing=3)
    assert plain.passing.shape == (200, 0) and drawn.passing.shape == (200, 3)
    assert all(torch.equal(getattr(plain, name), getattr(drawn, name))
               for name in plain._fields if name != "passing")
    assert (drawn.passing.diff(dim=1) > 0).all()           # ascending, so none twice
    counts = drawn.passing.flatten().bincount(minlength=8)
    assert len(counts) == 8 and counts.min() > 50 and counts.max() < 100   # 75 expected
    assert not torch.equal(drawn.passing,
                           draw_step(3, 3, 5, 200, (1, 2, 2), 0.5, tokens=8, passing=3).passing)


def test_last_steps_draw_nothing():
    dropped = token_drop.plan(**FLAGS | dict(drop=0.5, full_steps=2, max_steps=9))
    batches = Batches(torch.randn(5, 8, 8, 8), torch.zeros(5, dtype=torch.long),
                      dict(scaling_factor=1), 3, seed=0, global_batch_size=4, label_dropout=0,
                      last_step=9, device="cpu", token_drop=dropped, tokens=7)
    assert [len(batches.prepare(step)) for step in (1, 7, 8, 9)] == [6, 6, 5, 5]
    assert batches.prepare(7)[5].shape == (4, 3)


@pytest.mark.parametrize("tokens, share, passing", [(7, 0.5, 3), (2118, 0.5, 1059), (3, 0.99, 1),
                                                    (8, 0.25, 6)])
def test_number_of_tokens_by_hand(tokens, share, passing):
    dropped = token_drop.plan(**FLAGS | dict(drop=share))
    assert dropped.passing(tokens) == passing
    assert dropped.tokens_by_block(tokens) == [passing] * 28


@pytest.mark.parametrize("depth, blocks", [(28, [3, 24]), (24, [3, 20]), (12, [3, 8]), (4, [2, 3])])
def test_middle_blocks_by_hand(depth, blocks):
    dropped = token_drop.plan(**FLAGS | dict(route=0.5, depth=depth))
    assert dropped.numbers == blocks
    assert dropped.tokens_by_block(10).count(5) == blocks[1] - blocks[0] + 1
    assert f"compute 5 of 10 tokens in blocks {blocks[0]} to {blocks[1]}" in dropped.describe(10)


@pytest.mark.parametrize("flags, words", [
    (dict(drop=0.5, route=0.5), "--token-drop 0.5: give it or --token-route, not both"),
    (dict(drop=1.0), "--token-drop 1: a share of the tokens, must be below 1"),
    (dict(route=1.5), "--token-route 1.5: a share of the tokens, must be below 1"),
    (dict(full_steps=3), "--full-steps 3: needs --token-drop or --token-route"),
    (dict(drop=0.5, full_steps=100), "--full-steps 100: must be below the run's 100 steps"),
    (dict(route_blocks=[3, 4]), "--route-blocks: needs --token-route"),
    (dict(route=0.5, route_blocks=[0, 4]), "--route-blocks 0 4"),
    (dict(route=0.5, route_blocks=[4, 3]), "--route-blocks 4 3"),
    (dict(route=0.5, route_blocks=[1, 28]), "but not all, of the model's 28 blocks"),
    (dict(route=0.5, route_blocks=[3, 29]), "--route-blocks 3 29")])
def test_flags_that_contradict_each_other(flags, words):
    with pytest.raises(UserError, match=words):
        token_drop.plan(**FLAGS | flags)
    assert token_drop.plan(**FLAGS) is None


def measured_activations(config, blocks, checkpoint):
    """Bytes that autograd saves in a step of a whole model in which 256 of 512 tokens pass."""
    model = small_dit(**config).keep_tokens(torch.arange(0, 1024, 2)).route_around(*blocks)
    finetuning.set_trainable(model, "difffit")
    narrow_matrices(model, "bf16")
    model.save_memory(True, checkpoint)
    passing = torch.arange(256).expand(2, -1).contiguous()
    x, t, y = torch.randn(2, 4, 64, 64), torch.tensor([1, 2]), torch.tensor([0, 1])
    return dry_run.kept_for_backward(model, "bf16", x, t, y, passing=passing)


@pytest.mark.parametrize("checkpoint", [0, 1, 2])
@pytest.mark.parametrize("blocks", [((0, 4), (0, 8)), ((1, 3), (3, 6))])
def test_estimated_activations_are_those_that_are_kept(blocks, checkpoint):
    """Between models of 4 and of 8 blocks, as what else is kept is not estimated."""
    measured, estimated = [], []
    for depth, (first, end) in zip((4, 8), blocks):
        config = dict(input_size=64, patch_size=2, in_channels=4, hidden_size=128, depth=depth,
                      num_heads=2, num_classes=3, gamma_blocks=0)
        measured.append(measured_activations(config, (first, end), checkpoint))
        by_block = [256 if first <= i < end else 512 for i in range(depth)]
        options = dry_run.MemoryOptions(2, grad_checkpoint=checkpoint)
        estimated.append(dry_run.activation_bytes(config, "difffit", by_block, options))
    assert estimated[1] - estimated[0] == pytest.approx(measured[1] - measured[0], rel=0.02)
