"""LoRA: its layers against the formula, and its files against the library peft."""
import json

import pytest
import torch
from helpers import randomize, small_dit
from safetensors.torch import save_file

from training import acceleration, base_weights, finetuning, lora
from utils.errors import UserError
from utils.precision import autocast

ALL = lora.choose(4, 6.0)
CONFIG = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=64, depth=3, num_heads=4,
              num_classes=10)


def with_adapters(options=ALL, seed=0, **config):
    """A DiT of random weights with adapters, B still zero; its trainable parameters."""
    torch.manual_seed(7)
    model = randomize(small_dit(**config)).eval()
    return model, finetuning.set_trainable(model, "lora", options, seed)


def trained(model, parameters):
    """Gives A and B values as after training."""
    torch.manual_seed(8)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.05 * torch.randn_like(p))
    return model


def inputs():
    torch.manual_seed(3)
    return torch.randn(3, 4, 8, 8), torch.tensor([0, 371, 999]), torch.tensor([0, 4, 10])


def plain(model):
    """The base weights of a model with adapters."""
    return {name: p.detach() for name, p in model.state_dict().items()
            if not name.endswith(lora.SUFFIXES) and name != "pos_embed"}


def test_at_step_0_the_model_is_the_base_bitwise():
    torch.manual_seed(7)
    base = randomize(small_dit()).eval()
    model, parameters = with_adapters()
    with torch.no_grad():
        assert torch.equal(model(*inputs()), base(*inputs()))
    assert set(plain(model)) == {k for k in base.state_dict() if k != "pos_embed"}
    kinds = {finetuning.parameter_kind(name) for name in parameters}
    assert kinds == {"LoRA", "class table"}
    # per block: A and B of qkv, proj, fc1, fc2
    assert len(parameters) == 3 * 8 + 1
    count = 3 * 4 * ((64 + 192) + (64 + 64) + 2 * (64 + 256)) + 11 * 64
    assert sum(p.numel() for p in parameters.values()) == count


def test_a_layer_is_the_formula():
    model, parameters = with_adapters()
    trained(model, parameters)
    layer = model.blocks[1].mlp.fc1
    x = torch.randn(2, 5, 64)
    w, b = layer.weight.double(), layer.bias.double()
    a, up = layer.lora_A.double(), layer.lora_B.double()
    expected = x.double() @ w.T + b + 6.0 / 4 * (x.double() @ a.T) @ up.T
    assert (layer(x) - expected).abs().max() < 1e-5


def test_a_is_kaiming_uniform_and_seeded():
    def values(seed):
        model, _ = with_adapters(seed=seed)
        return model.blocks[0].attn.qkv.lora_A.detach(), model.blocks[2].attn.qkv.lora_A.detach()

    torch.manual_seed(1)
    first, third = values(0)
    torch.manual_seed(2)
    again, _ = values(0)
    assert torch.equal(first, again) and not torch.equal(first, third)
    assert not torch.equal(first, values(1)[0])
    bound = 1 / 64 ** 0.5           # sqrt(6 / ((1 + 5) * in))
    assert 0.9 * bound < first.abs().max() <= bound


@pytest.mark.parametrize("targets, layers", [
    (["qkv"], {"attn.qkv"}), (["proj"], {"attn.proj"}), (["mlp", "qkv"], {
        "mlp.fc1", "mlp.fc2", "attn.qkv"})])
def test_targets(targets, layers):
    model, parameters = with_adapters(lora.choose(2, None, targets))
    found = {name.removeprefix("blocks.0.").removesuffix(".lora_A") for name in parameters
             if name.startswith("blocks.0.") and name.endswith("lora_A")}
    assert found == layers
    assert not isinstance(model.x_embedder.proj, lora.LoraLinear)


@pytest.mark.parametrize("options", [ALL, lora.choose(64, 1.0, ["mlp"])])
def test_merged_equals_unmerged(options):
    model, parameters = with_adapters(options)
    trained(model, parameters)
    tensors = {name: p.detach() for name, p in model.state_dict().items() if name != "pos_embed"}
    merged = small_dit().eval()
    merged.load_state_dict(
        lora.merge(tensors, options, "a") | {"pos_embed": merged.pos_embed.detach()})
    with torch.no_grad():
        ours, unmerged = merged(*inputs()), model(*inputs())
        base = small_dit().eval()
        base.load_state_dict(plain(model) | {"pos_embed": base.pos_embed.detach()})
        assert (base(*inputs()) - unmerged).abs().max() > 1e-3 * unmerged.abs().max()
    assert (ours - unmerged).abs().max() <= 1e-6 * unmerged.abs().max()


def test_frozen_matrices_are_narrow_and_every_way_trains_alike():
    def gradients(prepare, precision="fp32"):
        model, parameters = with_adapters()
        trained(model, parameters).train()
        prepare(model)
        with autocast("cpu", precision):
            model(*inputs()).square().mean().backward()
        return {name: p.grad for name, p in parameters.items()}

    reference = gradients(lambda model: None)
    assert all(grad.abs().max() > 0 for grad in reference.values())

    def compiled(model):
        torch.compiler.reset()
        model.blocks[1].compile(backend="aot_eager")

    for way in (lambda m: m.save_memory(False, 1), lambda m: m.save_memory(True, 2), compiled):
        found = gradients(way)
        assert all(torch.allclose(found[k], reference[k], rtol=1e-4, atol=1e-7) for k in reference)

    def narrow(model):
        acceleration.narrow_matrices(model, "bf16")
        layer = model.blocks[0].attn.qkv
        assert (layer.weight.dtype, layer.lora_A.dtype) == (torch.bfloat16, torch.float32)

    found = gradients(narrow, "bf16")
    for k in reference:
        assert (found[k] - reference[k]).norm() < 0.1 * reference[k].norm(), k


@pytest.mark.parametrize("recorded", [
    {}, dict(rank=0, alpha=1, targets=["qkv"]), dict(rank=True, alpha=1, targets=["qkv"]),
    dict(rank=2, alpha=float("nan"), targets=["qkv"]), dict(rank=2, alpha=1, targets=[]),
    dict(rank=2, alpha=1, targets=["all"]), dict(rank=2, alpha=1, targets=[[]])])
def test_damaged_metadata(recorded):
    with pytest.raises(UserError, match="a.safetensors: its metadata is damaged .lora"):
        lora.from_metadata(recorded, "a.safetensors")
    assert lora.from_metadata(ALL.metadata(), "a") == ALL


def test_damaged_adapters():
    model, _ = with_adapters()
    tensors = {k: v for k, v in model.state_dict().items() if k != "pos_embed"}
    name = "blocks.1.mlp.fc2.lora_B"
    for wrong in ({k: v for k, v in tensors.items() if k != name},
                  tensors | {name: torch.zeros(64, 5)}):
        with pytest.raises(UserError, match=rf"has no {name} of shape \(64, 4\)"):
            lora.merge(wrong, ALL, "a")
    with pytest.raises(UserError, match="blocks.0.attn.qkv.weight is not a matrix"):
        lora.merge(tensors | {"blocks.0.attn.qkv.weight": torch.zeros(4)}, ALL, "a")
    with pytest.raises(UserError, match="--lora-rank 0"):
        lora.choose(0)
    # an adapter of a layer that the metadata does not name is left over, and refused as such
    rest = lora.merge(tensors, lora.choose(4, 6.0, ["qkv"]), "a")
    with pytest.raises(UserError, match="also has blocks.0.attn.proj.lora_A"):
        base_weights.check_fit(CONFIG, rest, "a")


@pytest.mark.parametrize("targets", [None, ["proj"]])
def test_peft_loads_what_is_written_for_it(tmp_path, targets):
    peft = pytest.importorskip(
        "peft", reason="needs the library peft (requirements-dev.txt)")
    options = lora.choose(4, 6.0, targets)
    model, parameters = with_adapters(options)
    base = small_dit().eval()
    base.load_state_dict(plain(model) | {"pos_embed": base.pos_embed.detach()})
    trained(model, parameters)
    config = lora.peft_config(options, ["y_embedder.embedding_table"], "base.pt")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(lora.peft_tensors({k: p.detach() for k, p in parameters.items()}),
              tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        before = base(*inputs())
        theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        loaded, expected = theirs(*inputs()), model(*inputs())
        assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
        assert (loaded - expected).abs().max() <= 1e-6 * expected.abs().max()
        merged = theirs.merge_and_unload()(*inputs())
        assert (merged - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_peft_writes_the_same_names(tmp_path):
    """What peft itself saves of such adapters has our names and shapes."""
    peft = pytest.importorskip(
        "peft", reason="needs the library peft (requirements-dev.txt)")
    _, parameters = with_adapters()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(ALL.layers()),
                             modules_to_save=["y_embedder.embedding_table"])
    theirs = peft.get_peft_model_state_dict(peft.get_peft_model(small_dit(), config))
    ours = lora.peft_tensors({k: p.detach() for k, p in parameters.items()})
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}
